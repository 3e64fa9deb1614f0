"""What is registered, with the first line of each docstring."""

from __future__ import annotations

import inspect


def _first_line(item: object) -> str:
    return (inspect.getdoc(item) or "").split("\n", 1)[0]


def catalogue(what: str) -> list[tuple[str, str]]:
    """Return the names and summaries of the registered schemes, fills, sources, operators or metrics.

    Args:
        what: "schemes", "fills", "sources", "operators" or "audits".

    Example:
        >>> "idinit" in [name for name, _ in catalogue("schemes")]
        True
    """
    if what == "schemes":
        from idfx.schemes.scheme import SCHEMES

        return [(name, SCHEMES[name].summary) for name in SCHEMES]
    if what == "fills":
        from idfx.fills import fills

        return [(name, _first_line(fills[name])) for name in fills]
    if what == "sources":
        from idfx.sources import SOURCES

        return [(name, SOURCES[name].description.split("\n", 1)[0]) for name in SOURCES]
    if what == "audits":
        from idfx.audits.metric import METRICS

        return [(name, METRICS[name].summary) for name in METRICS]
    from idfx.ops.semantics import OPERATORS

    return [(name, _first_line(OPERATORS[name])) for name in OPERATORS]
