"""Question 6, of a study with `--full`: the share of learning rates and weight decays in which training succeeds.

A point of the grid succeeds if the mean final test accuracy over its seeds is at least 90% of the best mean of any
scheme.

    python docs/evidence/sensitivity.py docs/evidence/sensitivity --picture docs/evidence/sensitivity/area.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    found: dict[str, dict[str, dict[tuple[float, float], list[float]]]] = {}
    for line in (given.folder / "runs.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        if "lr" in run:
            point = found.setdefault(run["model"], {}).setdefault(run["scheme"], defaultdict(list))
            point[run["lr"], run["weight_decay"]].append(0.0 if run["diverged"] else run["test_accuracy"][-1])
    for model, schemes in found.items():
        means = {s: {at: statistics.fmean(values) for at, values in points.items()} for s, points in schemes.items()}
        level = 0.9 * max(max(points.values()) for points in means.values())
        seeds = {len(values) for points in schemes.values() for values in points.values()}
        rates = sorted({lr for points in means.values() for lr, _ in points})
        decays = sorted({decay for points in means.values() for _, decay in points})
        print(
            f"\n{model}: points of {len(rates)} rates × {len(decays)} weight decays at {level:.3f} or above, "
            f"{', '.join(map(str, sorted(seeds)))} seeds\n"
        )
        print("| scheme | succeed | rates from | to | best | worst of those that succeed |\n|---|---|---|---|---|---|")
        for scheme, points in sorted(means.items(), key=lambda entry: -sum(v >= level for v in entry[1].values())):
            good = {at: value for at, value in points.items() if value >= level}
            ends = [f"{end([lr for lr, _ in good]):g}" if good else "–" for end in (min, max)]
            worst = f"{min(good.values()):.4f}" if good else "–"
            cells = [f"`{scheme}`", f"{len(good)} of {len(points)}", *ends, f"{max(points.values()):.4f}", worst]
            print(f"| {' | '.join(cells)} |")
        if given.picture is not None:
            import matplotlib as mpl

            mpl.use("Agg")
            from matplotlib import pyplot

            figure, axes = pyplot.subplots(1, len(means), figsize=(2.2 * len(means), 2.4), squeeze=False, sharey=True)
            for axis, (scheme, points) in zip(axes[0], means.items(), strict=True):
                grid = [[points.get((lr, decay), float("nan")) for lr in rates] for decay in decays]
                image = axis.imshow(grid, vmin=0, vmax=1, origin="lower", aspect="auto")
                axis.set_xticks(range(len(rates)), [f"{lr:g}" for lr in rates], rotation=90, fontsize=7)
                axis.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays], fontsize=7)
                axis.set_title(scheme, fontsize=8)
            figure.colorbar(image, ax=axes, shrink=0.8, label="final test accuracy")
            axes[0][0].set_ylabel("weight decay")
            figure.supxlabel("learning rate", y=-0.18, fontsize=9)
            figure.savefig(given.picture.with_stem(f"{model}-{given.picture.stem}"), dpi=110, bbox_inches="tight")
            pyplot.close(figure)


if __name__ == "__main__":
    main()
