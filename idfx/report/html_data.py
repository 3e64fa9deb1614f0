"""Audits → the data for the page's script, as JSON for a script block."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from idfx.core.findings import SEVERITIES, ActivationStats, Audit, Block, ParameterState, Spectrum
from idfx.report.html_places import Places, is_matrix

PLOTS = {
    "variance": "Variance",
    "gradient": "Gradient, norm",
    "mean": "Mean",
    "kurtosis": "Excess kurtosis",
    "dead": "Dead units, share",
    "saturated": "Saturated entries, share",
    "correlation": "Correlation between two batches",
    "effective_rank": "Effective rank, share of its bound",
}


def data(cases: Sequence[tuple[str, Audit]]) -> str:
    """Return the cases as JSON that is safe in a script block: nothing in it ends the block.

    Example:
        >>> data([("</script>", Audit("m", (), {}, ()))])[:45]
        '{"cases":[{"label":"\\\\u003c/script\\\\u003e","par'
    """
    found = {"cases": [_case(label, audit) for label, audit in cases]}
    text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plots(cases: Sequence[tuple[str, Audit]]) -> list[str]:
    """Return the names of the depth plots for which any case has data."""
    points = [point for _, audit in cases for point in audit.profile]
    return [name for name in PLOTS if any(getattr(point, name) is not None for point in points)]


def _case(label: str, audit: Audit) -> dict[str, Any]:
    places = Places(audit)
    parameters = _columns(ParameterState, audit.parameters)
    parameters["shape"] = ["×".join(map(str, one.shape)) or "scalar" for one in audit.parameters]
    parameters["likeness"] = [one.likeness.kind if one.likeness else "" for one in audit.parameters]
    parameters["scheme"] = [one.likeness.scheme if one.likeness else "" for one in audit.parameters]
    parameters["entries"] = [math.prod(one.shape) for one in audit.parameters]
    parameters["ratio"] = [number(one.ratio) for one in audit.parameters]
    parameters["matrix"] = [int(is_matrix(one)) for one in audit.parameters]
    blocks = _columns(Block, audit.blocks)
    del blocks["branch"]
    points = _columns(ActivationStats, audit.profile)
    points["shown"] = list(places.shown_at)
    return {
        "label": label,
        "parameters": {**parameters, "home": places.home, "box": places.box},
        "blocks": {**blocks, "above": places.parents},
        "tree": places.tree(),
        "points": points,
        "spectra": [_spectrum(one, places) for one in audit.spectra],
        "marks": _marks(audit, places),
    }


def _columns(record: type, rows: Iterable[Any]) -> dict[str, list[Any]]:
    rows = list(rows)
    return {one.name: [number(getattr(row, one.name)) for row in rows] for one in dataclasses.fields(record)}


def _spectrum(one: Spectrum, places: Places) -> dict[str, Any]:
    plain = {name: number(value) for name, value in vars(one).items() if name != "density"}
    density = [[number(value) for value in pair] for pair in one.density]
    return {**plain, "density": density, "block": places.blocks.get(one.place)}


def _marks(audit: Audit, places: Places) -> list[list[Any]]:
    """The place and severity of each finding with a place, in the order of the findings."""
    return [
        [place, SEVERITIES.index(one.severity), position]
        for position, one in enumerate(audit.findings)
        if (place := places.of(one))
    ]


def number(value: Any) -> Any:
    """Return a value that JSON can represent: non-finite floats become their JavaScript names.

    Example:
        >>> number(float("nan")), number(-float("inf")), number(0.5), number("a")
        ('NaN', '-Infinity', 0.5, 'a')
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, float):
        return float(f"{value:.7g}")
    return value
