"""Structure → a picture for graphviz: weights and joins in the order of the data, branches beside the main stem."""

from __future__ import annotations

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.structure import analysis_of
from idfx.core.records import Join, Structure


def _interesting(found: Structure, flow: Dataflow) -> dict[int, str]:
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


def _shortcut_operands(found: Structure, flow: Dataflow) -> dict[int, int]:
    """The term that each join's shortcut comes in by, by the term of the join."""
    calls = {join.step: join for join in found.joins if join.operand >= 0}
    operands: dict[int, int] = {}
    for position, term in enumerate(flow.terms):
        step = flow.step(position)
        if term.data and term.kind == "sum" and not term.tag and step in calls:
            join = calls[step]
            if join.part is not None:
                operands[position] = term.operands[join.part[1][0]]
                continue
            argument = flow.nodes[term.node].args[join.operand]
            operands[position] = flow.positions.get(getattr(argument, "name", ""), -1)
    return operands


def _arrows(flow: Dataflow, names: dict[int, str], shortcuts: dict[int, int]) -> dict[tuple[int, int], bool]:
    """Arrows between drawn terms that no drawn term lies between; True for those that bring a shortcut."""
    nearest: dict[int, frozenset[int]] = {}
    arrows: dict[tuple[int, int], bool] = {}
    for position, term in enumerate(flow.terms):
        if not term.data:
            continue
        before: frozenset[int] = frozenset().union(*(nearest[s] for s in flow.sources[position]))
        if position in names:
            direct = nearest.get(shortcuts.get(position, -1), frozenset())
            arrows.update(((source, position), source in direct) for source in sorted(before))
        nearest[position] = frozenset({position}) if position in names else before
    return arrows


def structure(found: Structure) -> str:
    """Return the structure in the DOT language; `dot -Tsvg` draws it.

    Weights are boxes: branch ends red, inner weights grey, projection shortcuts blue, the main stem white. Joins are
    circles, those that cannot be closed dashed; the arrow that brings a join's shortcut is thick and names both.

    Args:
        found: with its capture.
    """
    flow = analysis_of(found).flow
    names = _interesting(found, flow)
    joins = {join.name: join for join in found.joins}
    arrows, told = _styled(_arrows(flow, names, _shortcut_operands(found, flow)), names, joins)
    lines = ["digraph structure {", "  rankdir=TB;", '  node [fontname="Helvetica", fontsize=10];']
    for position, name in names.items():
        beside = f', xlabel="{_label(name)}"' if name in joins and position not in told else ""
        lines.append(f"  n{position} [{_style(found, flow, position, name, joins)}{beside}];")
    lines += [f"  n{source} -> n{target}{style};" for (source, target), style in arrows.items()]
    return "\n".join([*lines, "}"]) + "\n"


def _label(name: str) -> str:
    return name.replace('"', "'")


def _styled(
    arrows: dict[tuple[int, int], bool], names: dict[int, str], joins: dict[str, Join]
) -> tuple[dict[tuple[int, int], str], set[int]]:
    """The attributes of each arrow, and the joins that are named by one: labels of arrows keep clear of the rest."""
    styles: dict[tuple[int, int], str] = {}
    told: set[int] = set()
    for (source, target), direct in arrows.items():
        label = ""
        if direct and target not in told:
            told.add(target)
            name = names[target]
            label = f', label="  {_label(name)}: {joins[name].kind}", fontname="Helvetica", fontsize=10'
        styles[source, target] = f" [penwidth=3{label}]" if direct else ""
    return styles, told


def _style(found: Structure, flow: Dataflow, position: int, name: str, joins: dict[str, Join]) -> str:
    label = _label(name)
    kind = flow.terms[position].kind
    if kind == "input":
        return f'label="{label}", shape=plaintext'
    if kind == "sum":
        dashed = "" if joins[name].zeroable else ", style=dashed"
        return f'label="+", shape=circle, width=0.3, fixedsize=true{dashed}'
    role = found.roles.get(name)
    colour = {"end": "#f4b6b0", "inner": "#e4e4e4", "projection shortcut": "#cfe3f5"}.get(
        role.name if role else "", "white"
    )
    what = role.name if role else ""
    return f'label="{label}\\n{what}", shape=box, style=filled, fillcolor="{colour}"'
