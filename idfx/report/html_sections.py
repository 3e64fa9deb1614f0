"""Audits → the parts of the page that need no script: verdict, findings, measures, spectra as numbers, costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from idfx.core.findings import SEVERITIES, Audit, Finding, Spectrum
from idfx.report.html_places import Places
from idfx.report.layout import count

SYMBOLS = {"error": "✕", "warning": "▲", "info": "●", "clean": "✓"}
_FIRST = 8  # findings of one kind that are shown without expanding

Cases = Sequence[tuple[str, Audit]]


def digits(value: float | int | str | None) -> str:
    """Return a number with four digits and a true minus sign; text is escaped.

    Example:
        >>> digits(0.02131), digits(-12), digits(1.5e-7), digits(None), digits("<b>")
        ('0.02131', '−12', '1.5e−7', '–', '&lt;b&gt;')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = f"{value:,.4g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return text.replace("-", "−")


def badge(severity: str, words: str = "") -> str:
    """Return a severity as a symbol and a word."""
    symbol = f'<span class="symbol" aria-hidden="true">{SYMBOLS[severity]}</span>'
    return f'<span class="badge {severity}">{symbol}{escape(words or severity)}</span>'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """Return a table of HTML cells; the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    kind = "plain numbers" if numbers else "plain"
    scroller = '<div class="scroller" tabindex="0" role="region" aria-label="Table">'
    return f'{scroller}<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def summary(cases: Cases) -> str:
    """Return the verdict, the number of findings and the batch of each case."""
    return '<div class="cards">' + "".join(_card(label, audit) for label, audit in cases) + "</div>"


def _card(label: str, audit: Audit) -> str:
    found = [(sum(one.severity == name for one in audit.findings), name) for name in reversed(SEVERITIES)]
    counts = "".join(f"<li>{badge(name, _count(total, name))}</li>" for total, name in found if total)
    facts = [("batch", _batch(audit)), ("metrics", escape(", ".join(audit.metrics)) or "none")]
    if audit.parameters:
        entries = sum(math.prod(one.shape) for one in audit.parameters)
        facts.insert(0, ("parameters", f"{count(len(audit.parameters), 'tensor')}, {entries:,} entries"))
    if audit.blocks:
        closed = sum(one.closed for one in audit.blocks)
        facts.insert(1, ("branches", f"{len(audit.blocks) - closed} open, {closed} closed"))
    if audit.seconds:
        facts.append(("time", f"{digits(float(sum(audit.seconds.values())))} s"))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    listing = f'<ul class="counts">{counts}</ul>' if counts else ""
    title = f'<h2><code>{escape(label)}</code></h2><p class="verdict">{badge(audit.verdict)}</p>'
    return f'<section class="card">{title}{listing}<dl>{listed}</dl></section>'


def _count(total: int, name: str) -> str:
    return count(total, name, "info" if name == "info" else "")


def _batch(audit: Audit) -> str:
    if audit.batch is None:
        return "none: no data was run through the model"
    shapes = ", ".join("×".join(map(str, shape)) or "scalar" for shape in audit.batch.shapes)
    samples = "an unknown number of samples" if audit.batch.samples is None else count(audit.batch.samples, "sample")
    return f"{escape(audit.batch.source)}: {samples}" + (f", {shapes}" if shapes else "")


def findings(cases: Cases) -> str:
    """Return the findings of each case by severity and kind, each with a link to its place."""
    return "".join(_findings(number, label, audit, len(cases) > 1) for number, (label, audit) in enumerate(cases))


def _findings(case: int, label: str, audit: Audit, several: bool) -> str:
    parts = [f"<h3><code>{escape(label)}</code></h3>"] if several else []
    places, groups = Places(audit), dict[tuple[str, str, str], list[tuple[int, Finding]]]()
    for position, one in enumerate(audit.findings):
        groups.setdefault((one.severity, one.metric, one.remedy), []).append((position, one))
    for (severity, metric, remedy), found in groups.items():
        items = [_finding(case, position, one, places.of(one)) for position, one in found]
        shown, rest = "".join(items[:_FIRST]), "".join(items[_FIRST:])
        if rest:
            more = f"and {count(len(items) - _FIRST, 'more', 'more')}"
            rest = f'<details><summary>{more}</summary><ol class="found">{rest}</ol></details>'
        head = f"{badge(severity)} <b>{escape(metric)}</b> <small>{count(len(items), 'finding')}</small>"
        told = f'<p class="remedy"><span>Remedy</span> {escape(remedy)}</p>' if remedy else ""
        parts.append(
            f'<article class="group {severity}"><h4>{head}</h4>{told}<ol class="found">{shown}</ol>{rest}</article>'
        )
    if not audit.findings:
        parts.append(f"<p>{badge('clean', 'no findings')}</p>")
    return f'<div class="case">{"".join(parts)}</div>'


def _finding(case: int, position: int, one: Finding, place: str) -> str:
    name = f"<code>{escape(one.parameter or one.site or 'the model')}</code>"
    name = f'<a class="place" href="#c{case}-{place}">{name}</a>' if place else name
    where = f' <span class="site">in <code>{escape(one.site)}</code></span>' if one.parameter and one.site else ""
    numbers = f"<b>{digits(one.value)}</b> <span>against {digits(one.threshold)}</span>"
    line = f'<p>{name}{where}</p><p class="numbers">{numbers}</p><p class="message">{escape(one.message)}</p>'
    return f'<li id="c{case}-f{position}" tabindex="-1">{line}</li>'


def measures(cases: Cases) -> str:
    """Return the measures as a table, a column for each case."""
    names = list(dict.fromkeys((metric, name) for _, a in cases for metric, of in a.measures.items() for name in of))
    rows = [
        [f"<b>{escape(metric)}</b> {escape(name)}", *(digits(a.measures.get(metric, {}).get(name)) for _, a in cases)]
        for metric, name in names
    ]
    return table(["measure", *_labels(cases)], rows) if rows else ""


def left_out(cases: Cases) -> str:
    """Return what was not measured, with the reasons."""
    kept = [(label, *item) for label, audit in cases for item in audit.left_out.items()]
    several = len(cases) > 1
    return "".join(
        f"<li><b>{escape(metric)}</b>{f' of <code>{escape(label)}</code>' if several else ''}: {escape(reason)}</li>"
        for label, metric, reason in kept
    )


def costs(cases: Cases) -> str:
    """Return the seconds that each metric took, a column for each case."""
    names = list(dict.fromkeys(name for _, audit in cases for name in audit.seconds))
    rows = [[escape(name), *(digits(audit.seconds.get(name)) for _, audit in cases)] for name in names]
    rows.append(["together", *(digits(float(sum(audit.seconds.values()))) for _, audit in cases)])
    return table(["metric", *(f"{label}, s" for label in _labels(cases))], rows) if names else ""


def spectra(cases: Cases) -> str:
    """Return the spectrum of each whole model in numbers.

    The number after a singular value bounds its error: the largest may be larger, and the smallest smaller.
    """
    rows = [
        [f"<code>{escape(label)}</code>", *_spectrum(one)]
        for label, audit in cases
        for one in audit.spectra
        if not one.place
    ]
    heads = ["model", "Jacobian", "largest σ", "smallest σ", "χ (mean σ²)", "spread of σ²", "products", "computed", ""]
    return table(heads, rows) if rows else ""


def _spectrum(one: Spectrum) -> list[str]:
    return [
        f"{one.rows:,} × {one.columns:,}",
        _within(one.largest, one.largest_error, "+"),
        _within(one.smallest, one.smallest_error, "−"),
        _within(one.mean_square, one.mean_square_error, "±"),
        _within(one.spread, one.spread_error, "±"),
        f"{one.products:,}",
        ("exactly" if one.exact else "estimated") + ("" if one.complete else ", cut short by the budget"),
        escape(one.note),
    ]


def _within(value: float, error: float, side: str) -> str:
    """A number and its error, on one side or on both."""
    if math.isnan(value):
        return "not measured"
    return digits(value) if not error or math.isnan(error) else f"{digits(value)} {side} {digits(error)}"


def _labels(cases: Cases) -> list[str]:
    return [f"<code>{escape(label)}</code>" for label, _ in cases]
