"""Audits → one self-contained HTML file: findings, structure, plots, tables."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from html import escape
from importlib import metadata, resources

from idfx.core.errors import UsageError
from idfx.core.findings import Audit
from idfx.core.version import __version__
from idfx.report import html_sections as sections
from idfx.report.html_data import PLOTS, data, plots
from idfx.report.layout import count

_SCRIPTS = ("tools.js", "table.js", "drawing.js", "plots.js", "main.js")
_SPECTRA = {
    "density": "Singular values of the whole model",
    "extremes": "Largest and smallest singular value of each block",
    "chi": "χ of each block: the mean square of its singular values",
    "spread": "Spread of the squared singular values of each block",
}


def page(cases: Sequence[tuple[str, Audit]], command: str) -> str:
    """Return the report of one or more audits as one self-contained HTML page.

    Cases share the plots and tables, and differ in colour, symbol and name. Without scripts the page still shows
    verdicts, findings, measures and costs. plotly.js (about 4.8 MB) is included only if there is a plot.

    Args:
        cases: the label and the audit of each case: models, or one model under several schemes.
        command: the command line that made this page, or "".

    Example:
        >>> page([("mine", Audit("M", (), {}, ("dead",)))], "")[:30]
        '<!doctype html>\\n<html lang="en'
    """
    library = _plotly() if any(audit.profile or audit.spectra for _, audit in cases) else ""
    program = '(() => {\n"use strict";\n' + "\n".join(map(_asset, _SCRIPTS)) + "\n})();\n"
    told = {name: text for name, text in _sections(cases).items() if text}
    slots = {
        "policy": _policy(library, program),
        "title": escape("Audit of " + (cases[0][0] if len(cases) == 1 else count(len(cases), "model"))),
        "style": _asset("page.css"),
        "heading": "Audit" if len(cases) == 1 else f"Audit of {count(len(cases), 'case')}",
        "links": "".join(f'<a href="#{name}">{_NAMES[name]}</a>' for name in told),
        "summary": sections.summary(cases),
        "made": _made(command),
        "sections": "".join(_section(name, text) for name, text in told.items()),
        "data": data(cases),
        "library": f'<script type="text/plain" id="library">{library}</script>' if library else "",
        "program": program,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: slots[slot[1]], _asset("page.html"))


_NAMES = {
    "findings": "Findings",
    "structure": "Structure",
    "depth": "Signal over depth",
    "jacobians": "Jacobians",
    "parameters": "Parameters",
    "places": "Places",
    "measures": "Measures",
    "left-out": "Left out",
    "costs": "Costs",
}


def _sections(cases: Sequence[tuple[str, Audit]]) -> dict[str, str]:
    """The sections of the page by name; empty sections are ""."""
    audits = [audit for _, audit in cases]
    drawn = any(audit.parameters or audit.blocks for audit in audits)
    missing = sections.left_out(cases)
    return {
        "findings": sections.findings(cases),
        "structure": '<div class="script" id="drawing"></div>' if drawn else "",
        "depth": _figures({name: PLOTS[name] for name in plots(cases)}),
        "jacobians": _jacobians(cases),
        "parameters": '<div class="script"></div>' if any(audit.parameters for audit in audits) else "",
        "places": '<div class="script"></div>' if any(audit.profile for audit in audits) else "",
        "measures": sections.measures(cases),
        "left-out": f"<ul>{missing}</ul>" if missing else "",
        "costs": sections.costs(cases),
    }


def _jacobians(cases: Sequence[tuple[str, Audit]]) -> str:
    found = [one for _, audit in cases for one in audit.spectra]
    blocks = any(one.place for one in found)
    whole = any(not one.place and one.density for one in found)
    shown = {name: title for name, title in _SPECTRA.items() if (whole if name == "density" else blocks)}
    return sections.spectra(cases) + _figures(shown)


def _figures(titles: dict[str, str]) -> str:
    if not titles:
        return ""
    figures = "".join(
        f'<figure data-plot="{name}"><figcaption>{title}</figcaption>'
        '<div class="canvas"></div><p class="note"></p></figure>'
        for name, title in titles.items()
    )
    return f'<div class="script"><div class="legend"></div><div class="figures">{figures}</div></div>'


def _section(name: str, text: str) -> str:
    title = f'<h2 id="{name}-title">{_NAMES[name]}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{title}{text}</section>'


def _made(command: str) -> str:
    versions = f"idfx {__version__}, torch {metadata.version('torch')}"
    made = f"<p>{escape(versions)}</p>"
    return f'<p class="command"><code>{escape(command)}</code></p>{made}' if command else made


def _asset(name: str) -> str:
    return resources.files("idfx.report").joinpath("page", name).read_text(encoding="utf-8")


def check_plotly() -> None:
    """Raise UsageError if the library of the plots is missing, before anything is measured for them."""
    if importlib.util.find_spec("plotly") is None:
        raise UsageError(
            "the page: plotly is not installed; expected it for the plots. Run pip install 'idfx[report]', or leave "
            "them out with --batch none (batch=False in Python)."
        )


def _plotly() -> str:
    check_plotly()
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text.replace("\r\n", "\n")


def _policy(*scripts: str) -> str:
    """The content security policy: run these scripts, by their hashes, apply styles and make images; load nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts if script)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"
