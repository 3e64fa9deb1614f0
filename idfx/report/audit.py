"""Audits → text for a terminal: verdict, findings by severity, a profile along depth, measures."""

from __future__ import annotations

from collections.abc import Sequence

from idfx.core.findings import SEVERITIES, Audit, Batch, Finding
from idfx.report.layout import count, table, text
from idfx.report.profile import profile

_SHOWN = 3


def audits(found: Sequence[tuple[str, Audit]]) -> str:
    """Return audits as text, with several of them side by side.

    Args:
        found: each audit with its label.
    """
    if len(found) == 1:
        label, audit = found[0]
        return text(*_verdict(label, audit), *_profile(audit), *_measures(found), *_rest(audit))
    parts: list[object] = []
    for label, audit in found:
        parts += [*_verdict(label, audit), *_profile(audit), *_rest(audit), ""]
    return text(*parts, *_measures(found)[1:])


def _verdict(label: str, found: Audit) -> list[object]:
    counts = [(sum(one.severity == name for one in found.findings), name) for name in reversed(SEVERITIES)]
    told = ", ".join(count(number, name, "info" if name == "info" else "") for number, name in counts if number)
    parts: list[object] = [f"{label}: {told or 'no findings'}, from {count(len(found.metrics), 'metric')}"]
    if found.batch is not None:
        parts.append(f"batch: {describe(found.batch)}")
    for group in _groups(found.findings):
        parts += ["", *_lines(group)]
    return parts


def describe(batch: Batch) -> str:
    """Return a batch in words.

    Example:
        >>> describe(Batch("standard normal", 4, ((4, 3, 32, 32),)))
        'standard normal, 4 × 3 × 32 × 32'
    """
    shapes = [" × ".join(map(str, shape)) for shape in batch.shapes]
    return ", ".join([batch.source, *shapes])


def _profile(found: Audit) -> list[object]:
    rows = profile(found.profile)
    return ["", table(("along depth", "", "first to last place", "smallest to largest"), rows)] if rows else []


def _measures(found: Sequence[tuple[str, Audit]]) -> list[object]:
    names = dict.fromkeys(
        (metric, name) for _, one in found for metric, values in one.measures.items() for name in values
    )
    if not names:
        return []
    rows = [
        (metric, name, *(_number(one.measures.get(metric, {}).get(name)) for _, one in found)) for metric, name in names
    ]
    headings = [label for label, _ in found] if len(found) > 1 else [""]
    return ["", table(("measure", "", *headings), rows)]


def _number(value: float | int | str | None) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value}"


def _rest(found: Audit) -> list[object]:
    """What was left out, and what took long."""
    parts: list[object] = []
    if found.left_out:
        parts += ["", *(f"left out: {metric}: {reason}" for metric, reason in found.left_out.items())]
    slow = [(seconds, name) for name, seconds in found.seconds.items() if seconds >= 0.1]
    if slow:
        parts += ["", "time: " + ", ".join(f"{name} {seconds:.1f} s" for seconds, name in sorted(slow, reverse=True))]
    return parts


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Group findings by kind, in the order of the first of each."""
    found: dict[tuple[str, str, str], list[Finding]] = {}
    for one in findings:
        found.setdefault((one.severity, one.metric, one.remedy), []).append(one)
    return list(found.values())


def _lines(group: Sequence[Finding]) -> list[str]:
    lines = []
    for one in group[:_SHOWN]:
        place = one.site if one.parameter in ("", one.site) else f"{one.parameter} in {one.site}"
        lines.append(f"{one.severity}  {one.metric}  {place}: {one.message}")
    if len(group) > _SHOWN:
        lines.append(f"  and {len(group) - _SHOWN} more (--json lists them)")
    return [*lines, f"  remedy: {group[0].remedy}"]
