"""Structure → a picture for graphviz: weights and joins in the order of the data, branches beside the main stem."""

from __future__ import annotations

from idfx.flow import Flow, read
from idfx.records import Join, Structure


def _interesting(found: Structure, flow: Flow) -> dict[int, str]:
    """The terms that are drawn: inputs, weight sites and joins, by name."""
    names = {p: f"input {i}" for i, p in enumerate(p for p, t in enumerate(flow.terms) if t.kind == "input")}
    steps = {site.step: site.parameter for site in found.sites}
    joins = {join.step: join.name for join in found.joins}
    for position, term in enumerate(flow.terms):
        step = flow.step(position)
        if term.data and term.kind == "contract" and step in steps:
            names[position] = steps[step]
        elif term.data and term.kind == "sum" and not term.tag and step in joins:
            names[position] = joins[step]
    return names


def _shortcut_operands(found: Structure, flow: Flow) -> dict[int, int]:
    """The term that each join's shortcut comes in by, by the term of the join."""
    calls = {join.step: join.operand for join in found.joins if join.operand >= 0}
    operands: dict[int, int] = {}
    for position, term in enumerate(flow.terms):
        step = flow.step(position)
        if term.data and term.kind == "sum" and not term.tag and step in calls:
            argument = flow.nodes[term.node].args[calls[step]]
            operands[position] = flow.positions.get(getattr(argument, "name", ""), -1)
    return operands


def _arrows(flow: Flow, names: dict[int, str], shortcuts: dict[int, int]) -> dict[tuple[int, int], bool]:
    """Arrows between drawn terms that no drawn term lies between; True for those that bring a shortcut."""
    nearest: dict[int, frozenset[int]] = {}
    arrows: dict[tuple[int, int], bool] = {}
    for position, term in enumerate(flow.terms):
        if not term.data:
            continue
        before: frozenset[int] = frozenset().union(*(nearest[s] for s in flow.sources(position)))
        if position in names:
            direct = nearest.get(shortcuts.get(position, -1), frozenset())
            arrows.update(((source, position), source in direct) for source in sorted(before))
        nearest[position] = frozenset({position}) if position in names else before
    return arrows


def structure(found: Structure) -> str:
    """Return the structure in the DOT language; `dot -Tsvg` draws it.

    Weights are boxes: branch ends red, inner weights grey, projection shortcuts blue, the main stem white. Joins are
    rounded and marked +, those that cannot be closed dashed; the arrow that brings a join's shortcut is thick.

    Args:
        found: with its capture.
    """
    flow = read(found.capture)
    names = _interesting(found, flow)
    joins = {join.name: join for join in found.joins}
    lines = ["digraph structure {", "  rankdir=TB;", '  node [fontname="Helvetica", fontsize=10];']
    for position, name in names.items():
        lines.append(f"  n{position} [{_style(found, flow, position, name, joins)}];")
    for (source, target), direct in _arrows(flow, names, _shortcut_operands(found, flow)).items():
        lines.append(f"  n{source} -> n{target}{' [penwidth=3]' if direct else ''};")
    return "\n".join([*lines, "}"]) + "\n"


def _style(found: Structure, flow: Flow, position: int, name: str, joins: dict[str, Join]) -> str:
    label = name.replace('"', "'")
    kind = flow.terms[position].kind
    if kind == "input":
        return f'label="{label}", shape=plaintext'
    if kind == "sum":
        style = "rounded" if joins[name].zeroable else "rounded,dashed"
        return f'label="+ {label}\\n{joins[name].kind}", shape=box, style="{style}"'
    role = found.roles.get(name)
    colour = {"end": "#f4b6b0", "inner": "#e4e4e4", "projection shortcut": "#cfe3f5"}.get(
        role.name if role else "", "white"
    )
    what = role.name if role else ""
    return f'label="{label}\\n{what}", shape=box, style=filled, fillcolor="{colour}"'
