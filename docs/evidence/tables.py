"""The short tables of docs/evidence.md, from the runs of the studies; each summary.md has the long ones.

python docs/evidence/tables.py > docs/evidence/tables.txt
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from idfx.bench.statistics import holm
from idfx.bench.study import Study, read_config, suite_of
from idfx.bench.summary import Row, reference_of, rows, tables

HERE = Path(__file__).parent
LEFT_OUT = ("sensitivity", "watched")  # they have scripts of their own


def epochs(row: Row) -> str:
    """The median over seeds of the epoch in which the level is reached, and how many never reach it."""
    ordered = sorted(float("inf") if epoch is None else epoch for epoch in row.soon)
    middle, never = statistics.median(ordered), sum(epoch is None for epoch in row.soon)
    told = "never" if middle == float("inf") else f"{middle:g}"
    return told + (f" ({never} of {len(ordered)} never)" if never and told != "never" else "")


def table(name: str) -> None:
    """Print the tables of a study, best first."""
    folder = HERE / name
    config = read_config(folder)
    if config is None:
        return
    study = Study(suite_of(config), config["full"], config["watch"])
    records = [json.loads(line) for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    reference = reference_of(study)
    for model, (level, its) in tables(study, records, reference).items():
        print(f"\n## {name}: {model}\n")
        print(
            f"| scheme | rate | final accuracy | epochs to {level:.3f} | against {reference}, 95% interval | p (Holm) |"
        )
        print("|---|---|---|---|---|---|")
        for row in sorted(its, key=lambda row: -statistics.fmean(row.accuracy)):
            against, p = "", ""
            if row.against is not None:
                c = row.against
                against, p = f"{c.difference:+.3f} ({c.low:+.3f} to {c.high:+.3f})", f"{row.corrected:.2g}"
            lost = sum(run["diverged"] for run in row.runs)
            accuracy = f"{statistics.fmean(row.accuracy):.4f} ± {statistics.stdev(row.accuracy):.4f}"
            cells = [f"`{row.scheme}`", f"{row.point[0]:g}{'◦' if row.edge else ''}"]
            cells += [accuracy + (f", {lost} diverged" if lost else ""), epochs(row), against, p]
            print(f"| {' | '.join(cells)} |")


def duel(first: str, second: str) -> None:
    """Print how one scheme compares with another in every study that has both, each at its own best rate."""
    found = {}
    for path in sorted(HERE.glob("*/config.json")):
        config = read_config(path.parent)
        if config is None or path.parent.name in LEFT_OUT or not {first, second} <= {*config["schemes"]}:
            continue
        study = Study(suite_of(config), config["full"], config["watch"])
        records = [json.loads(line) for line in (path.parent / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
        for model in study.suite.models:
            its = {row.scheme: row for row in rows(study, records, model, second)[1]}
            found[model] = its[first], its[second]
    corrected = holm([row.against.t if row.against else float("nan") for row, _ in found.values()])
    print(f"\n## {first} against {second}\n")
    print(f"| model | {first} | {second} | difference, 95% interval | p (Holm) | epochs to 90%, {first} | {second} |")
    print("|---|---|---|---|---|---|---|")
    for (model, (row, other)), p in zip(found.items(), corrected, strict=True):
        assert row.against is not None
        c, means = row.against, [f"{statistics.fmean(its.accuracy):.4f}" for its in (row, other)]
        shift = f"{c.difference:+.3f} ({c.low:+.3f} to {c.high:+.3f})"
        print(f"| `{model}` | {' | '.join(means)} | {shift} | {p:.2g} | {epochs(row)} | {epochs(other)} |")


def main() -> None:
    print("n = 5 seeds; 3 in bert, deep, deep-bn, deeper, deeper-bn and watched.")
    print("± is the standard deviation over seeds, ◦ a rate at the edge of the grid.")
    for path in sorted(HERE.glob("*/config.json")):
        if path.parent.name not in LEFT_OUT:
            table(path.parent.name)
    duel("idfx", "idinit")


if __name__ == "__main__":
    main()
