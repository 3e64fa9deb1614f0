"""The role of each parameter, with the evidence, from where it acts on the data and in which block.

A weight has one of these roles: input stem, main stem, transition, projection shortcut, inner, end, head. Its further
properties (query, gate, depthwise, ...) are its traits.
"""

from __future__ import annotations

from collections.abc import Mapping

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.graph import before, behind
from idfx.analysis.paths import Paths
from idfx.analysis.role_rules import Case, Parts, role_of
from idfx.analysis.sites import ParameterUses
from idfx.analysis.surroundings import Surroundings
from idfx.analysis.traits import read_traits
from idfx.core.records import Join, Role
from idfx.core.roles import RoleName

_UNUSED = Role(RoleName.UNUSED, "the forward pass of the example does not use it")
_UNSEEN = Role(RoleName.UNRESOLVED, "no use of it was found, but some values come from outside torch's operators")


def _first_and_last(flow: Dataflow, paths: Paths) -> tuple[frozenset[int], frozenset[int]]:
    """The weight sites with no weight before them, and those with none between them and the outputs."""
    sites = {p for p, term in enumerate(flow.terms) if term.kind == "contract" and term.tag != "table" and term.data}
    reaching = {p for p in sites if paths.reaches_output(p)}
    return frozenset(sites - behind(flow.data_graph, sites)), frozenset(reaching - before(flow.data_graph, sites))


def assign_roles(
    flow: Dataflow, paths: Paths, sites: ParameterUses, stem: Mapping[int, int], shortcut: Mapping[int, int],
    names: Mapping[int, str], joins: Mapping[int, Join],
) -> dict[str, Role]:  # fmt: skip
    """Return the role of every parameter.

    Args:
        flow, paths, sites: from the analysis of the graph.
        stem, shortcut: the join whose branch or shortcut contains a term.
        names: how joins are called.
        joins: the residual joins, by term.
    """
    first, last = _first_and_last(flow, paths)
    between = frozenset(behind(flow.data_graph, joins) & before(flow.data_graph, joins))
    traits = read_traits(flow, paths)
    around = Surroundings(flow, stem, shortcut, names, first, last, between, paths.signal, traits)
    parts = Parts.of([join for join in joins.values() if join.zeroable])
    roles = {}
    for name, info in flow.capture.info.items():
        uses = [use for alias in (name, *info.aliases) for use in sites.uses.get(alias, ())]
        if uses:
            roles[name] = role_of(Case(uses, info.shape, around, parts))
        else:
            roles[name] = _UNSEEN if flow.capture.out_of_sight else _UNUSED
    return roles
