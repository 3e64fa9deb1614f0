"""zoo.md and zoo.png: the table and the picture of a sweep of the zoo."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idfx.bench.plots import save
from idfx.bench.starts import DEFAULT
from idfx.bench.zoo.results import LEARNT, MARGIN, VERDICTS, Result, Row, totals


def schemes_of(found: Sequence[Row]) -> list[str]:
    """Return the schemes in a table, the author's start first."""
    names = dict.fromkeys(scheme for row in found for scheme in row.results)
    return [DEFAULT, *(name for name in names if name != DEFAULT)]


def markdown(found: Sequence[Row], config: dict[str, Any], picture: str | None = None) -> str:
    """Return the page of a sweep.

    Args:
        found: rows of models.
        config: of the results directory.
        picture: its file name.
    """
    schemes = schemes_of(found)
    parts = [
        f"# The zoo: {len(found)} models, {config['steps']} steps of {config['optimiser']}",
        "",
        "The number is the mean loss of the last ten steps at the best of the rates, by that number; ◦ marks the lowest"
        f" or highest rate tried. *At chance*: not below {LEARNT:g} of the loss of the best output that ignores the"
        f" input, where the author's start is. *Worse* and *better*: by more than {MARGIN:.0%} of the author's loss and"
        f" {MARGIN**2:.0%} of that of chance; with several seeds also beyond a 95% interval over them. *Diverged*: the"
        " loss became infinite at every rate. ! marks a start whose certificate fails.",
        "",
        f"| scheme | {' | '.join(VERDICTS)} |",
        "|---" * (len(VERDICTS) + 1) + "|",
        *_totals(found, schemes[1:]),
        *(["", f"![loss from each scheme against the author's]({picture})"] if picture else []),
        *_trouble(found, schemes[1:]),
        "",
        "## All models",
        "",
        f"| model | parameters | chance | author | {' | '.join(f'`{name}` | ' for name in schemes[1:])} |",
        "|---" * (4 + 2 * (len(schemes) - 1)) + "|",
    ]
    for row in found:
        cells = [f"`{row.model}`", f"{row.parameters:,}", "–" if row.chance is None else f"{row.chance:.3g}"]
        cells.append(_cell(row.author))
        for name in schemes[1:]:
            own = row.results.get(name)
            verdict = "" if own is None else row.verdict(name)
            strong = f"**{verdict}**" if verdict in ("worse", "at chance", "failed", "unfinished") else verdict
            cells += ["", ""] if own is None else [_cell(own), strong]
        parts.append(f"| {' | '.join(cells)} |")
    return "\n".join([*parts, *_failures(found)]) + "\n"


def _totals(found: Sequence[Row], schemes: Sequence[str]) -> list[str]:
    """A line for each scheme, and one for each scheme and set."""
    sets = sorted({row.model.partition(":")[0] for row in found})
    lines = []
    for scheme in schemes:
        parts = {"": found, **{name: [row for row in found if row.model.startswith(f"{name}:")] for name in sets}}
        for name, its in parts.items() if len(sets) > 1 else [("", found)]:
            told = f"{scheme}, {name}" if name else f"**{scheme}**"
            lines.append(f"| {told} | {' | '.join(str(count) for count in totals(its, scheme).values())} |")
    return lines


def _trouble(found: Sequence[Row], schemes: Sequence[str]) -> list[str]:
    """The models that the author's start leaves at chance, and those that a scheme does or makes worse, worst first."""
    dull = [row.model for row in found if not row.author.failed and row.learns(DEFAULT) is False]
    lines = ["", f"The author's start ends at chance ({len(dull)}): {', '.join(dull)}."] if dull else []
    for scheme in schemes:
        for verdict in ("at chance", "worse"):
            its = [row for row in found if scheme in row.results and row.verdict(scheme) == verdict]
            its.sort(key=lambda row: -row.results[scheme].mean / max(row.author.mean, 1e-9))
            if its:
                told = (f"{row.model} {row.author.mean:.3g} → {row.results[scheme].mean:.3g}" for row in its)
                lines += ["", f"`{scheme}` {verdict} ({len(its)}): {', '.join(told)}."]
    return lines


def _failures(found: Sequence[Row]) -> list[str]:
    lines = [
        f"- `{row.model}` from `{scheme}`: {result.failed}"
        for row in found
        for scheme, result in row.results.items()
        if result.failed
    ]
    return ["", "## What failed", "", *lines] if lines else []


def _cell(result: Result) -> str:
    if result.failed:
        return "–"
    mark = "" if result.certificate in (None, "passed") else "!"
    if math.isinf(result.mean):
        return f"diverged{mark}"
    return f"{result.mean:.3g}{mark} at {result.rate:g}{'◦' if result.edge else ''}"


def draw(found: Sequence[Row], path: Path) -> None:
    """Draw the loss from every scheme against the author's, on logarithmic axes.

    Raises:
        UsageError: matplotlib is not installed.
    """
    from idfx.bench.plots import pyplot_of

    pyplot = pyplot_of()
    schemes = schemes_of(found)[1:]
    figure, axes = pyplot.subplots(1, len(schemes), figsize=(5.5 * len(schemes), 5), squeeze=False)
    sets = sorted({row.model.partition(":")[0] for row in found})
    for axis, scheme in zip(axes[0], schemes, strict=True):
        known = [row for row in found if scheme in row.results and not row.author.failed]
        known = [row for row in known if math.isfinite(row.author.mean) and math.isfinite(row.results[scheme].mean)]
        for number, name in enumerate(sets):
            its = [row for row in known if row.model.startswith(f"{name}:")]
            points = [(max(row.author.mean, 1e-5), max(row.results[scheme].mean, 1e-5)) for row in its]
            if points:
                axis.scatter(*zip(*points, strict=True), s=14, color=f"C{number}", label=name, alpha=0.8)
        lost = [row for row in known if row.verdict(scheme) == "at chance"]
        if lost:
            x, y = zip(*((row.author.mean, row.results[scheme].mean) for row in lost), strict=True)
            axis.scatter(x, y, s=70, facecolors="none", edgecolors="black", label="at chance")
        if known:
            ends = [1e-5, max(max(row.author.mean, row.results[scheme].mean) for row in known) * 1.2]
            low = min(min(row.author.mean, row.results[scheme].mean) for row in known)
            axis.plot(ends, ends, color="grey", linewidth=0.8)
            axis.set(xlim=(max(low, 1e-5) / 1.2, ends[1]), ylim=(max(low, 1e-5) / 1.2, ends[1]))
        axis.set(xscale="log", yscale="log", xlabel="loss from the author's start", ylabel=f"loss from {scheme}")
        axis.grid(alpha=0.3)
        if known:
            axis.legend(fontsize=7)
    save(figure, path)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a results directory."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found
