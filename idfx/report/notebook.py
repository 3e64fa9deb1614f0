"""Records → tables for notebooks: rows by column, as HTML or as pandas.DataFrame."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from idfx.core.errors import UsageError
from idfx.core.findings import Audit, ParameterState
from idfx.core.records import Certificate, Plan, Report, Structure
from idfx.core.registry import did_you_mean
from idfx.report.layout import count

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]
Tables = Mapping[str, list[Row]]
MOST_ROWS = 200  # of a table in HTML


@functools.singledispatch
def tables(record: object) -> Tables:
    """Return the tables of a record by name, the most important one first.

    Example:
        >>> tables(Certificate((), True, True, ()))
        {'joins': []}
    """
    expected = "expected a Structure, Plan, Certificate, Report or Audit. Pass one of them."
    raise UsageError(f"{type(record).__name__}: it has no table; {expected}")


@functools.singledispatch
def summary(record: object) -> str:
    """Return one line on a record."""
    return type(record).__name__


@tables.register
def _(record: Structure) -> Tables:
    weights = [
        {
            "parameter": name,
            "shape": info.shape,
            "matrix": role.layout.matrix(info.shape) if role.layout else None,
            "role": str(role.name),
            "traits": ", ".join(role.traits),
            "evidence": role.evidence,
        }
        for name, info in record.parameters.items()
        for role in (record.roles[name],)
    ]
    joins = [
        {
            "join": join.name,
            "fork": join.fork,
            "shortcut": join.kind,
            "ends": ", ".join(end.parameter for end in join.ends),
            "can be closed": join.zeroable,
            "reason": join.reason,
        }
        for join in record.joins
    ]
    sums = [{"sum": found.name, "kind": found.kind, "reason": found.reason} for found in record.sums]
    return {"weights": weights, "joins": joins, "sums": sums}


@summary.register
def _(record: Structure) -> str:
    closed = sum(join.zeroable for join in record.joins)
    return (
        f"{record.model}: {count(len(record.parameters), 'parameter tensor')}, "
        f"{count(len(record.joins), 'residual join')}, {closed} can be closed"
    )


@tables.register
def _(record: Plan) -> Tables:
    return {"parameters": [_planned(record, name) for name in record.shapes]}


def _planned(plan: Plan, name: str) -> Row:
    decision = plan.decisions.get(name)
    row: Row = {"parameter": name, "shape": tuple(plan.shapes[name])}
    if decision is not None:
        return row | {"fill": decision.fill, "arguments": dict(decision.arguments), "reason": decision.reason}
    if name in plan.loaded:
        return row | {"fill": "load", "arguments": {}, "reason": f"from {plan.loaded[name]}"}
    return row | {"fill": "keep", "arguments": {}, "reason": plan.kept[name]}


@summary.register
def _(record: Plan) -> str:
    loaded = f", {len(record.loaded)} loaded" if record.loaded else ""
    written = f"{len(record.decisions)} written, {len(record.kept)} kept{loaded}"
    return f"{record.model}: {record.scheme}, seed {record.seed}; {written}"


@tables.register
def _(record: Certificate) -> Tables:
    return {
        "joins": [
            {
                "join": check.join,
                "shortcut": check.kind,
                "status": check.status,
                "deviation": check.deviation,
                "tolerance": check.tolerance,
            }
            for check in record.checks
        ]
    }


@summary.register
def _(record: Certificate) -> str:
    said = "passed" if record.passed else f"failed: {'; '.join(record.failures)}"
    return f"certificate {said}; {record.certified} of {count(len(record.checks), 'join')} equal to their shortcut"


@tables.register
def _(record: Report) -> Tables:
    checks = tables(record.certificate) if record.certificate is not None else {}
    return {**tables(record.plan), **checks}


@summary.register
def _(record: Report) -> str:
    told = summary(record.certificate) if record.certificate is not None else "no certificate"
    return f"{summary(record.plan)}; {told}"


@tables.register
def _(record: Audit) -> Tables:
    findings = [
        {
            "severity": found.severity,
            "metric": found.metric,
            "parameter": found.parameter,
            "place": found.site,
            "value": found.value,
            "message": found.message,
            "remedy": found.remedy,
        }
        for found in record.findings
    ]
    measures = [
        {"metric": metric, "measure": name, "value": value}
        for metric, found in record.measures.items()
        for name, value in found.items()
    ]
    return {"findings": findings, "measures": measures, "parameters": [_state(one) for one in record.parameters]}


def _state(one: ParameterState) -> Row:
    return {"parameter": one.name, "shape": one.shape, "role": one.role, "rms": one.rms, "gradient": one.gradient}


@summary.register
def _(record: Audit) -> str:
    found = Counter(one.severity for one in record.findings)
    told = ", ".join(count(number, severity) for severity, number in found.items() if severity != "info")
    notes = f"{found['info']} info" if found["info"] else ""
    return f"{record.model}: {', '.join(filter(None, (told, notes))) or 'clean'}"


def html(record: object) -> str:
    """Return a record as HTML: a line that sums it up, and its tables, of which the first one is open.

    Example:
        >>> html(Certificate((), True, True, ()))
        '<div class="idfx"><p>certificate passed; 0 of 0 joins equal to their shortcut</p></div>'
    """
    told = [
        f"<details{' open' * (not number)}><summary>{escape(name)}: {len(rows)}</summary>{_table(rows)}</details>"
        for number, (name, rows) in enumerate(tables(record).items())
        if rows
    ]
    return f'<div class="idfx"><p>{escape(summary(record))}</p>{"".join(told)}</div>'


def _table(rows: list[Row]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(_line(row.values(), "td") for row in rows[:MOST_ROWS])
    more = f"<p>and {len(rows) - MOST_ROWS} more: to_pandas() has all</p>" if len(rows) > MOST_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _line(values: Iterable[Any], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(_shown(value))}</{tag}>' for value in values)}</tr>"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_shown(one)}" for name, one in value.items())
    return " × ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def frame(record: object, table: str | None = None) -> pandas.DataFrame:
    """Return one table of a record as a pandas.DataFrame, the first one by default.

    Raises:
        UsageError: an unknown table, or pandas is not installed.
    """
    found = tables(record)
    name = next(iter(found)) if table is None else table
    if name not in found:
        expected = f"expected one of {', '.join(found)}.{did_you_mean(name, found)}"
        raise UsageError(f"{type(record).__name__}: no table {name!r}; {expected}")
    try:
        import pandas
    except ImportError as error:
        raise UsageError(
            "to_pandas: pandas is not installed; expected it. Run pip install 'idfx[notebook]'."
        ) from error
    return pandas.DataFrame(found[name])
