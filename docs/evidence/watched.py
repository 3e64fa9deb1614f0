"""Questions 3 and 7, of a study with `--watch`: dead units and gradients, and whether isometry predicts training.

python docs/evidence/watched.py docs/evidence/watched --picture docs/evidence/watched/isometry.png
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from scipy import stats

Record = dict[str, Any]
SHAPES = ("chi", "spread", "block_chi", "block_spread")


def read(folder: Path) -> dict[tuple[str, str], list[Record]]:
    """The runs of a study by model and scheme, those at the rate with the best mean validation accuracy."""
    by_rate: dict[tuple[str, str, float], list[Record]] = defaultdict(list)
    for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "watch" in record:
            by_rate[record["model"], record["scheme"], record["lr"]].append(record)

    def merit(runs: list[Record]) -> float:
        return statistics.fmean(0.0 if run["diverged"] else run["validation_accuracy"][-1] for run in runs)

    best: dict[tuple[str, str], list[Record]] = {}
    for (model, scheme, _), runs in by_rate.items():
        if (model, scheme) not in best or merit(runs) > merit(best[model, scheme]):
            best[model, scheme] = runs
    return best


def dead(runs: list[Record], look: int) -> str:
    """Dead units over all units of a look: mean over seeds, in per cent; how many weights get no gradient."""
    whole = [run["watch"] for run in runs if len(run["watch"]) > (run["epochs"] if look < 0 else look)]
    shares = [
        sum(w["dead"] for w in looks[look].values()) / sum(w["units"] for w in looks[look].values()) for looks in whole
    ]
    still = [sum(w["gradient"] == 0 for w in looks[look].values()) for looks in whole]
    return f"{100 * statistics.fmean(shares):.1f} ({max(still)})" if shares else "–"


def gradients(runs: list[Record]) -> str:
    """The gradient that reaches each weight at the start, as least over largest of its entries' root mean square."""
    found = []
    for run in runs:
        norms = [w["gradient"] / math.sqrt(w["units"]) for w in run["watch"][0].values() if w["gradient"] is not None]
        found.append(min(norms) / max(norms) if max(norms) else 0.0)
    return f"{statistics.median(found):.1e}"


def soon(runs: list[Record], level: float) -> float:
    """Median over seeds of the epoch in which test accuracy is at the level; one more than there are if never."""
    reached = [
        next((e for e, v in enumerate(run["test_accuracy"], 1) if v >= level), run["epochs"] + 1) for run in runs
    ]
    return statistics.median(reached)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    best = read(given.folder)
    points: dict[str, list[tuple[str, Record, float, float]]] = defaultdict(list)
    for model in dict.fromkeys(model for model, _ in best):
        mine = {scheme: runs for (name, scheme), runs in best.items() if name == model}
        final = {
            s: statistics.fmean(0.0 if r["diverged"] else r["test_accuracy"][-1] for r in runs)
            for s, runs in mine.items()
        }
        level = 0.9 * max(final.values())
        print(f"\n{model}: dead units in % of all rows (weights without any gradient, the most of a seed)\n")
        print("| scheme | rate | at the start | after 1 epoch | after 2 | at the end | least / most gradient at first"
              " | final accuracy |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
        for scheme, runs in mine.items():
            looks = " | ".join(dead(runs, look) for look in (0, 1, 2, -1))
            print(f"| `{scheme}` | {runs[0]['lr']:g} | {looks} | {gradients(runs)} | {final[scheme]:.4f} |")
        print(f"\n{model}: singular values of the Jacobian at four samples, medians over seeds; start → end\n")
        print(
            f"| scheme | chi | spread | chi of blocks | spread of blocks | epochs to {level:.3f} |\n"
            "|---|---|---|---|---|---|"
        )
        for scheme, runs in mine.items():
            cells = []
            for name in SHAPES:
                ends = []
                for look in (0, 1):
                    values = [r["isometry"][look].get(name) for r in runs if len(r["isometry"]) > look]
                    known = [value for value in values if value is not None]
                    ends.append(f"{statistics.median(known):.2g}" if known else "–")
                cells.append(" → ".join(ends))
            when = soon(runs, level)
            told = "never" if when > runs[0]["epochs"] else f"{when:g}"
            print(f"| `{scheme}` | {' | '.join(cells)} | {told} |")
            for run in runs:
                points[model].append(
                    (scheme, run, soon([run], level), 0.0 if run["diverged"] else run["test_accuracy"][-1])
                )
    print("\nSpearman's rank correlation over all runs of a model, and its p (runs of a scheme are not independent):\n")
    print("| model | of | with the epochs to the level | with the final accuracy |\n|---|---|---|---|")
    for model, found in points.items():
        for name in SHAPES:
            rows = [(r["isometry"][0].get(name), when, end) for _, r, when, end in found]
            whole = [r["isometry"][0].get("chi") for _, r, *_ in found]  # 0 behind a head of zeros: neither is defined
            kept = [
                row[0] is not None and bool(chi or name.startswith("block"))
                for row, chi in zip(rows, whole, strict=True)
            ]
            rows = [row for row, keep in zip(rows, kept, strict=True) if keep]
            if len({row[0] for row in rows}) < 3:
                continue
            # chi: how far from critical; a spread: how far from an isometry
            x = [abs(math.log(row[0])) if "chi" in name else row[0] for row in rows]
            told = []
            for column in (1, 2):
                test = stats.spearmanr(x, [row[column] for row in rows])
                told.append(f"{test.statistic:+.2f} (p {test.pvalue:.2g}, n = {len(rows)})")
            what = f"distance of {name.replace('_', ' ')} from 1" if "chi" in name else name.replace("_", " ")
            print(f"| {model} | {what} | {told[0]} | {told[1]} |")
    if given.picture is not None:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot, ticker

        figure, axes = pyplot.subplots(1, len(points), figsize=(3.6 * len(points), 3.6), layout="constrained")
        every = list(dict.fromkeys(scheme for _, scheme in best))
        for axis, (model, found) in zip(axes, points.items(), strict=True):
            for number, scheme in enumerate(every):
                own = [(r["isometry"][0].get("spread"), when) for s, r, when, _ in found if s == scheme]
                own = [(x, y) for x, y in own if x]
                marker = "os^D"[number % 4]
                x, y = zip(*own, strict=True) if own else ((), ())
                axis.scatter(x, y, s=26, marker=marker, alpha=0.7, color=pyplot.cm.tab20(number), label=scheme)
            axis.set(xscale="log", xlabel="spread at the start", title=model)
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
            axis.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("epochs to the level")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
        figure.savefig(given.picture, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
