"""The parameters and residual blocks of a model, which an audit lists in addition to its findings."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import networkx as nx

from idfx.audits.branches import is_closed
from idfx.audits.subject import AuditContext
from idfx.core.findings import Block, ParameterState, WeightFingerprint


def parameters(
    subject: AuditContext, gradients: Mapping[str, float], likenesses: Mapping[str, WeightFingerprint]
) -> tuple[ParameterState, ...]:
    """Return the parameters in the model's order, each with its role, its location and its root mean square.

    Args:
        subject: of the audit.
        gradients: the measured gradient norms, by parameter.
        likenesses: what weights resemble, by parameter.
    """
    roles, homes = subject.structure.roles, _homes(subject)
    found = []
    for name, info in subject.structure.parameters.items():
        place, block, rms = subject.place(name), homes.get(name), subject.rms(name)
        measured = gradients.get(name), likenesses.get(name)
        found.append(ParameterState(name, info.shape, roles[name].name, place, block, rms, *measured))
    return tuple(found)


def blocks(subject: AuditContext) -> tuple[Block, ...]:
    """Return the residual blocks in order of execution, inner blocks before outer ones."""
    beside = _beside(subject.structure.graph, "shortcut_of")
    return tuple(
        Block(join.name, join.kind, join.parent, is_closed(subject, join), join.branch, beside.get(join.name, ()))
        for join in subject.structure.joins
    )


def _homes(subject: AuditContext) -> dict[str, str]:
    """The innermost block whose branch uses each parameter: weights, and everything else between fork and join."""
    found: dict[str, str] = {}
    inside = _beside(subject.structure.graph, "branch")
    for join in subject.structure.joins:  # inner ones come first
        found.update((name, join.name) for name in inside.get(join.name, ()) if name not in found)
    around = ((name, subject.network.around(name)) for name in subject.structure.parameters)
    return {**{name: join.name for name, join in around if join is not None}, **found}


def _beside(graph: nx.DiGraph[str], attribute: str) -> Mapping[str, tuple[str, ...]]:
    """By join, the parameters that act in its branch ("branch") or on its shortcut ("shortcut_of")."""
    backwards, found = graph.reverse(copy=False), dict[str, dict[str, None]]()
    for node, known in graph.nodes(data=True):
        if attribute in known:
            fixed = [source for source in graph.predecessors(node) if not graph.nodes[source]["data"]]
            made_of = (graph.nodes[one] for one in chain.from_iterable(nx.bfs_layers(backwards, fixed)))
            names = (one["parameter"] for one in made_of if one["kind"] == "parameter")
            found.setdefault(graph.nodes[known[attribute]]["join"], {}).update(dict.fromkeys(names))
    return {join: tuple(names) for join, names in found.items()}
