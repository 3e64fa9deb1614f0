"""summary.md: the results of a study, every number with its spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from idfx.bench.statistics import Comparison, Point, Record, compare, epochs_to, final, holm, point_of, spread
from idfx.bench.study import Study, chosen, unit

ENOUGH = 5  # seeds


@dataclass(frozen=True)
class Row:
    """One scheme on one model at its own best rate, over the finished seeds.

    `soon`: epochs to the level, by seed. `corrected`: p of the paired t-test after Holm's correction.
    """

    model: str
    scheme: str
    point: Point
    edge: bool
    runs: list[Record]
    soon: list[int | None]
    against: Comparison | None
    corrected: float = math.nan

    @property
    def accuracy(self) -> list[float]:
        """Final test accuracies."""
        return [final(run, "test_accuracy") for run in self.runs]


def at_best(study: Study, records: Sequence[Record], model: str, scheme: str) -> tuple[Point, list[Record]] | None:
    """Return the chosen rate of a model and a scheme and its runs by seed; None if it is not known yet."""
    point = chosen(study, records, model, scheme)
    if point is None:
        return None
    runs = [r for r in unit(records, model, scheme) if point_of(r) == point and r["seed"] < study.suite.seeds]
    return (point, sorted(runs, key=lambda run: run["seed"])) if runs else None


def rows(study: Study, records: Sequence[Record], model: str, reference: str) -> tuple[float, list[Row]]:
    """Return the level, 90% of the best mean final test accuracy of any scheme, and a row for each scheme."""
    found = {scheme: at_best(study, records, model, scheme) for scheme in study.suite.schemes}
    known = {scheme: entry for scheme, entry in found.items() if entry is not None}
    if not known:
        return 0.0, []
    level = 0.9 * max(statistics.fmean(final(r, "test_accuracy") for r in runs) for _, runs in known.values())
    grid = study.suite.models[model].grid
    rates = [lr for lr, _ in grid]
    base = {r["seed"]: final(r, "test_accuracy") for r in known[reference][1]} if reference in known else {}
    made = []
    for scheme, (point, runs) in known.items():
        own = {r["seed"]: final(r, "test_accuracy") for r in runs}
        made.append(
            Row(
                model,
                scheme,
                point,
                len({*rates}) > 1 and point[0] in (min(rates), max(rates)),
                runs,
                [None if r["diverged"] else epochs_to(r["test_accuracy"], level) for r in runs],
                compare(own, base) if scheme != reference else None,
            )
        )
    return level, made


def tables(study: Study, records: Sequence[Record], reference: str) -> dict[str, tuple[float, list[Row]]]:
    """Return level and rows of every model as in `rows`, with p corrected for all comparisons of the study."""
    found = {model: rows(study, records, model, reference) for model in study.suite.models}
    values = iter(holm([row.against.t for _, its in found.values() for row in its if row.against is not None]))
    return {
        model: (level, [row if row.against is None else replace(row, corrected=next(values)) for row in its])
        for model, (level, its) in found.items()
    }


def reference_of(study: Study) -> str:
    """Return the scheme that others are compared with: the model's own initialisation, or otherwise the first one."""
    return "default" if "default" in study.suite.schemes else study.suite.schemes[0]


def markdown(
    study: Study, records: Sequence[Record], done: int, total: int, pictures: Mapping[str, Sequence[str]]
) -> str:
    """Return the summary of a study as Markdown.

    Args:
        study: of the runs.
        records: of runs.jsonl.
        done, total: numbers of runs.
        pictures: file names by model.
    """
    reference = reference_of(study)
    made = tables(study, records, reference)
    compared = sum(row.against is not None for _, found in made.values() for row in found)
    parts = [*_head(study, done, total, reference, compared)]
    for model, (level, found) in made.items():
        parts += ["", f"## {model}", ""]
        if not found:
            parts.append("No scheme has a chosen learning rate yet.")
        else:
            parts += _table(level, found, reference)
            parts += ["", *_grid(study, records, model)]
        parts += [line for picture in pictures.get(model, ()) for line in ("", f"![{picture}]({picture})")]
        parts += _notes(records, model, study.suite.schemes)
    return "\n".join(parts) + "\n"


def _head(study: Study, done: int, total: int, reference: str, comparisons: int) -> list[str]:
    chosen_on = ", ".join(map(str, study.selection))
    few = study.suite.seeds < ENOUGH
    return [
        f"# {study.suite.name}: {done} of {total} runs",
        "",
        study.suite.about,
        "",
        "The learning rate (and weight decay) of each scheme is the point of the grid with the best mean validation "
        f"accuracy over the seeds {chosen_on}; test figures are for that rate over all its seeds. All schemes of a "
        "seed share the samples for training, validation and testing, their order and the augmentation. ± is the "
        "standard deviation over seeds. A diverged run counts as accuracy 0.",
        "",
        f"*Against {reference}*: mean of the differences seed by seed, its 95% interval (Student), effect size (mean / "
        "standard deviation of the differences), p of the paired t-test, the same after Holm's correction for all "
        f"{comparisons} comparisons on this page, and p of Wilcoxon's signed-rank test, which is never below 0.0625 "
        "with 5 seeds. ◦ marks a rate at the edge of the grid, † fewer than 5 seeds.",
        *(["", f"**{study.suite.seeds} seeds are too few: for orientation only.**"] if few else []),
    ]


def _table(level: float, found: Sequence[Row], reference: str) -> list[str]:
    lines = [
        f"| scheme | rate | final test accuracy | final test loss | epochs to {level:.3f} (90% of the best) | diverged "
        f"| against {reference} | effect | p | p, Holm | p, Wilcoxon |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(found, key=lambda row: -statistics.fmean(row.accuracy)):
        few = "†" if len(row.runs) < ENOUGH else ""
        against = ["", "", "", "", ""]
        if (c := row.against) is not None:
            shift = f"{c.difference:+.4f} ({c.low:+.4f} to {c.high:+.4f})"
            against = [shift, _number(c.effect, 2), _p(c.t), _p(row.corrected), _p(c.wilcoxon)]
        losses = [final(run, "test_loss") for run in row.runs]
        finite = [loss for loss in losses if math.isfinite(loss)]
        cells = [
            f"`{row.scheme}`",
            f"{row.point[0]:g}{'◦' if row.edge else ''}" + (f", {row.point[1]:g}" if row.point[1] else ""),
            f"{_spread(row.accuracy)} (n = {len(row.runs)}{few})",
            _spread(finite) if finite else "–",
            _epochs(row.soon),
            str(sum(run["diverged"] for run in row.runs)),
            *against,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _epochs(soon: Sequence[int | None]) -> str:
    """Median and range of the epochs; a run that never reaches the level counts as later than all others."""
    ordered = sorted(math.inf if epoch is None else epoch for epoch in soon)
    middle = statistics.median(ordered)
    told = ["never" if math.isinf(value) else f"{value:g}" for value in (middle, ordered[0], ordered[-1])]
    never = sum(epoch is None for epoch in soon)
    return f"{told[0]} ({told[1]} to {told[2]})" + (f", {never} never" if never and not math.isinf(ordered[0]) else "")


def _spread(values: Sequence[float]) -> str:
    mean, deviation = spread(values)
    return f"{mean:.4f}" if math.isnan(deviation) else f"{mean:.4f} ± {deviation:.4f}"


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"


def _grid(study: Study, records: Sequence[Record], model: str) -> list[str]:
    """Final validation accuracy at every point of the grid, averaged over the selection seeds."""
    points = study.suite.models[model].grid
    if len(points) < 2:
        return []
    names = [
        f"{lr:g}" + (f", {decay:g}" if len(study.suite.models[model].weight_decay) > 1 else "") for lr, decay in points
    ]
    lines = [
        "Final validation accuracy by learning rate, averaged over the selection seeds; d: number of diverged runs.",
        "",
        f"| scheme | {' | '.join(names)} |",
        "|---" * (len(points) + 1) + "|",
    ]
    for scheme in study.suite.schemes:
        its = [r for r in unit(records, model, scheme) if r["seed"] in study.selection]
        if not its:
            continue
        cells = []
        for point in points:
            runs = [r for r in its if point_of(r) == point]
            lost = sum(r["diverged"] for r in runs)
            mean = f"{statistics.fmean(final(r, 'validation_accuracy') for r in runs):.3f}" if runs else "not run"
            cells.append(mean + (f" {lost}d" if lost else ""))
        lines.append(f"| `{scheme}` | {' | '.join(cells)} |")
    return lines


def _notes(records: Sequence[Record], model: str, schemes: Sequence[str]) -> list[str]:
    """Schemes that do not apply and failed certificates, without repetition."""
    notes: dict[str, Any] = {}
    for record in records:
        if record["model"] != model or record["scheme"] not in schemes:
            continue
        if record.get("applies") is False:
            notes[f"- `{record['scheme']}` was not run: {record['reason']}."] = True
        elif record["certificate"] not in (None, "passed"):
            notes[f"- `{record['scheme']}` was trained although its certificate fails: {record['certificate']}"] = True
    return ["", *notes] if notes else []
