"""Structure → a picture for graphviz: weights and joins in data-flow order, branches next to the main stem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx

from idfx.core.records import Structure

_WEIGHTS = ("weight", "table", "recurrent")


def _names(graph: nx.DiGraph[str]) -> dict[str, str]:
    """The nodes that are drawn: inputs, weight sites and joins, by name."""
    names: dict[str, str] = {}
    inputs = 0
    for node, found in graph.nodes(data=True):
        if found["kind"] == "input":
            names[node], inputs = f"input {inputs}", inputs + 1
        elif found["kind"] == "contract" and found["data"] and found.get("use") in _WEIGHTS:
            names[node] = found["parameter"]
        elif "join" in found:
            names[node] = found["join"]
    return names


def _arrows(graph: nx.DiGraph[str], names: dict[str, str]) -> dict[tuple[str, str], bool]:
    """Arrows between drawn nodes that no drawn node lies between; True for those that bring a shortcut.

    Written by hand: networkx contracts two nodes into one, but leaves none out.
    """
    nearest: dict[str, frozenset[str]] = {}
    arrows: dict[tuple[str, str], bool] = {}
    for node, found in graph.nodes(data=True):
        if not found["data"]:
            continue
        before: frozenset[str] = frozenset().union(*(nearest.get(source, ()) for source in graph.predecessors(node)))
        if node in names:
            direct = nearest.get(found.get("shortcut", ""), frozenset())
            ordered = sorted(before, key=lambda source: graph.nodes[source]["position"])
            arrows.update(((source, node), source in direct) for source in ordered)
        nearest[node] = frozenset({node}) if node in names else before
    return arrows


def structure(found: Structure) -> str:
    """Return the structure in the DOT language; `dot -Tsvg` draws it.

    Weights are boxes: branch ends red, inner weights grey, projection shortcuts blue, the main stem white. Joins are
    circles, those that cannot be closed dashed; the arrow that brings a join's shortcut is thick and names both.

    Args:
        found: with its capture.
    """
    graph = found.graph
    names = _names(graph)
    arrows, told = _styled(graph, names)
    lines = ["digraph structure {", "  rankdir=TB;", '  node [fontname="Helvetica", fontsize=10];']
    numbers = {node: f"n{graph.nodes[node]['position']}" for node in names}
    for node, name in names.items():
        beside = f', xlabel="{_label(name)}"' if "join" in graph.nodes[node] and node not in told else ""
        lines.append(f"  {numbers[node]} [{_style(graph.nodes[node], name)}{beside}];")
    lines += [f"  {numbers[source]} -> {numbers[target]}{style};" for (source, target), style in arrows.items()]
    return "\n".join([*lines, "}"]) + "\n"


def _label(name: str) -> str:
    return name.replace('"', "'")


def _styled(graph: nx.DiGraph[str], names: dict[str, str]) -> tuple[dict[tuple[str, str], str], set[str]]:
    """The attributes of each arrow, and the joins that are named by one: labels of arrows keep clear of the rest."""
    styles: dict[tuple[str, str], str] = {}
    told: set[str] = set()
    for (source, target), direct in _arrows(graph, names).items():
        label = ""
        if direct and target not in told:
            told.add(target)
            kind = graph.nodes[target]["shortcut_kind"]
            label = f', label="  {_label(names[target])}: {kind}", fontname="Helvetica", fontsize=10'
        styles[source, target] = f" [penwidth=3{label}]" if direct else ""
    return styles, told


def _style(found: Mapping[str, Any], name: str) -> str:
    label = _label(name)
    if found["kind"] == "input":
        return f'label="{label}", shape=plaintext'
    if "join" in found:
        dashed = "" if found["zeroable"] else ", style=dashed"
        return f'label="+", shape=circle, width=0.3, fixedsize=true{dashed}'
    role = found["role"]
    colour = {"end": "#f4b6b0", "inner": "#e4e4e4", "projection shortcut": "#cfe3f5"}.get(role, "white")
    return f'label="{label}\\n{role}", shape=box, style=filled, fillcolor="{colour}"'
