"""An audit → text for a terminal: verdict, findings by severity, measures."""

from __future__ import annotations

from collections.abc import Sequence

from idfx.findings import SEVERITIES, Audit, Finding
from idfx.report.layout import count, table, text

_SHOWN = 3


def audit(found: Audit, spec: str) -> str:
    """Return the verdict, the findings, those of one kind together, and the measures."""
    counts = [(sum(one.severity == name for one in found.findings), name) for name in reversed(SEVERITIES)]
    told = ", ".join(count(number, name, "info" if name == "info" else "") for number, name in counts if number)
    parts: list[object] = [f"{spec}: {told or 'no findings'}, by {count(len(found.metrics), 'metric')}"]
    for group in _groups(found.findings):
        parts += ["", *_lines(group)]
    rows = [
        (metric, name, f"{value:,.4g}" if isinstance(value, float) else f"{value}")
        for metric, measures in found.measures.items()
        for name, value in measures.items()
    ]
    if rows:
        parts += ["", table(("measure", "", ""), rows)]
    if found.left_out:
        parts += ["", *(f"left out: {metric}: {reason}" for metric, reason in found.left_out.items())]
    return text(*parts)


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """The findings of one kind together, in the order of the first of each."""
    found: dict[tuple[str, str, str], list[Finding]] = {}
    for one in findings:
        found.setdefault((one.severity, one.metric, one.remedy), []).append(one)
    return list(found.values())


def _lines(group: Sequence[Finding]) -> list[str]:
    lines = []
    for one in group[:_SHOWN]:
        lines.append(f"{one.severity}  {one.metric}  {one.parameter or 'the model'} in {one.site}: {one.message}")
    if len(group) > _SHOWN:
        lines.append(f"  and {len(group) - _SHOWN} more (--json lists them)")
    return [*lines, f"  remedy: {group[0].remedy}"]
