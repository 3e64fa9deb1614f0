"""What a parameter does together with others: zeros that make a branch zero, and gains of weights that stay."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import networkx as nx

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.queries import StructureQueries
from idfx.analysis.structure import analysis_of
from idfx.analysis.uses import How
from idfx.core.records import Decision, Join
from idfx.core.roles import RoleName
from idfx.ops.kinds import Kind


def closed_by(network: StructureQueries, zeros: Sequence[str], shifted: Collection[str] = ()) -> dict[str, list[str]]:
    """Return the joins that can be closed by each parameter that is all 0 in the author's start and closes some.

    Args:
        network: the structure of the model.
        zeros: parameters that are 0 throughout, under their first names.
        shifted: biases and shifts that are not 0, or will not be.
    """
    before = _vanishing_joins(network, (), shifted) if zeros else set()  # those that are zero without any of them
    if not zeros or _vanishing_joins(network, zeros, shifted) <= before:
        return {}
    found = {name: sorted(_vanishing_joins(network, (name,), shifted) - before) for name in zeros}
    return {name: joins for name, joins in found.items() if joins}


def gates_of(network: StructureQueries, closed: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the zero weights that close each join as gates, in addition to its ends.

    They are gates because the fork reaches the ends without passing through them.

    Kept beside an end near zero, such a zero would leave that end, and itself, without a gradient.

    Args:
        network: the structure of the model.
        closed: the joins that each zero parameter closes.
    """
    roles, joins = network.structure.roles, {join.name: join for join in network.structure.joins}
    found: dict[str, list[str]] = {}
    for name, closes in closed.items():
        within = roles[name].name.is_weight and roles[name].name is not RoleName.END
        for join in closes if within else ():
            if _leads_past(network, joins[join], name):
                found.setdefault(join, []).append(name)
    return found


def _leads_past(network: StructureQueries, join: Join, weight: str) -> bool:
    """Whether the fork of a join reaches its ends otherwise than through a weight."""
    structure, flow = network.structure, network.flow
    own = {site.step for site in structure.sites if structure.first_names[site.parameter] == weight}
    around = nx.subgraph_view(flow.data_graph, filter_node=lambda term: flow.step(term) not in own)
    reached = nx.descendants(around, flow.positions[join.fork_node])
    return {flow.step(term) for term in reached}.issuperset(join.end_steps)


def _vanishing_joins(network: StructureQueries, zeros: Collection[str], shifted: Collection[str]) -> set[str]:
    """The joins that can be closed whose branch is zero if these parameters and all biases are."""
    roles, flow = network.structure.roles, network.flow
    shifts = {name for name, role in roles.items() if role.name.is_shift and name not in shifted}
    zero = _zero_terms(flow, network.structure.first_names, {*zeros, *shifts})
    joins = {join.step: join for join in network.structure.joins if join.zeroable and join.operand >= 0}
    found = set()
    for position, term in enumerate(flow.terms):
        join = joins.get(flow.step(position)) if term.kind is Kind.SUM else None
        if join is not None and len(term.operands) > 1:
            others = [operand for place, operand in enumerate(term.operands) if place != join.operand]
            if all(zero[operand] for operand in others):
                found.add(join.name)
    return found


def _zero_terms(flow: Dataflow, names: Mapping[str, str], zeros: Collection[str]) -> list[bool]:
    """Of each term whether it is zero if these parameters are."""
    found: list[bool] = []
    for term in flow.terms:
        if term.kind is Kind.PARAMETER:
            found.append(names[flow.capture.parameters[term.node]] in zeros)
        else:
            found.append(term.kind.vanishes([found[operand] for operand in term.operands]))
    return found


def bound_gains(network: StructureQueries, decisions: Mapping[str, Decision]) -> dict[str, str]:
    """Return the gains of weights that are not written, and those that are matrices, each with the reason to keep it.

    A gain of 1 leaves a weight unchanged that the plan has written; a weight that stays has its own gain.

    Args:
        network: the structure of the model.
        decisions: of a scheme, by parameter.
    """
    names, parameters = network.structure.first_names, network.structure.parameters
    gains: dict[str, set[int]] = {}
    written: set[int] = set()
    for parameter, uses in analysis_of(network.structure).uses.uses.items():
        for use in uses:
            if use.how is How.GAIN:
                gains.setdefault(names[parameter], set()).add(use.term)
            elif use.how is How.WEIGHT and names[parameter] in decisions:
                written.add(use.term)
    found = {}
    for name, terms in gains.items():
        if sum(size > 1 for size in parameters[name].shape) > 1:
            found[name] = "it is a matrix inside a weight, for which there is no rule; its author's values are kept"
        elif not terms & written:
            found[name] = "it multiplies a weight that is not written; its author's values are kept"
    return found
