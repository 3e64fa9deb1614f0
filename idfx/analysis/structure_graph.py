"""Structure → the graph of its data flow for users: a `networkx.DiGraph` with names and plain attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import networkx as nx

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.sides import Blocks
from idfx.analysis.sites import ParameterUses
from idfx.core.records import FACTS, Join, Structure
from idfx.ops.kinds import Kind
from idfx.ops.semantics import operator_name

Plain = str | int | bool  # what GraphML takes


class Read(NamedTuple):
    """What a structure was made of."""

    flow: Dataflow
    uses: ParameterUses
    blocks: Blocks


def structure_graph(structure: Structure, read: Read) -> nx.DiGraph[str]:
    """Return the graph of a structure; docs/structure.md lists its attributes.

    A node is called as the torch.fx node whose value it is. A term inside an operator is `NODE.KIND`: of a node
    `linear`, whose value is the sum with the bias, `linear.contract` is the product with the weight.

    Args:
        structure: of a model.
        read: that it was made of.

    Example:
        >>> import torch, idfx
        >>> graph = idfx.analyze(torch.nn.Linear(3, 2), (torch.ones(1, 3),)).graph
        >>> [(found["kind"], found.get("parameter")) for _, found in graph.nodes(data=True) if found["data"]]
        [('input', None), ('contract', 'weight'), ('sum', 'bias')]
    """
    flow, names = read.flow, _names(read.flow)
    graph: nx.DiGraph[str] = nx.DiGraph(name=structure.model)
    for position, name in enumerate(names):
        graph.add_node(name, **_term(flow, position))
    graph.add_edges_from((names[a], names[b], data) for a, b, data in flow.term_graph.edges(data=True))
    for position, parameters in _parameters(structure, read).items():
        first, how = next(iter(parameters.items()))
        role = str(structure.roles[first].name.value)
        graph.add_node(names[position], parameter=", ".join(parameters), use=how, role=role)
    for found in (_joins(structure, read, names), _sums(read, names)):
        for position, attributes in found:
            graph.add_node(names[position], **attributes)
    for position, closed in _ends(structure, read).items():
        graph.add_node(names[position], end=", ".join(names[join] for join in closed))
    return graph


def _names(flow: Dataflow) -> list[str]:
    """The name of each term: its torch.fx node's own if the node's value is it, else with its kind."""
    names: list[str] = []
    counts: Counter[str] = Counter()
    for position, term in enumerate(flow.terms):
        name = term.node if flow.positions[term.node] == position else f"{term.node}.{term.kind}"
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return names


def _term(flow: Dataflow, position: int) -> dict[str, Plain]:
    """The attributes of a term itself."""
    term = flow.terms[position]
    node, step, module = flow.nodes[term.node], flow.step(position), flow.module(position)
    found: dict[str, Plain] = {"kind": str(term.kind.value), "position": position, "node": term.node, "data": term.data}
    if node.op == "call_function":
        found["operator"] = operator_name(node.target)
    elif node.op == "get_attr" and term.kind is not Kind.PARAMETER and term.node not in flow.capture.constants:
        found["buffer"] = node.meta[FACTS].name
    if step >= 0:
        found["step"] = step
    if module:
        found["module"] = module
    if term.shape is not None:
        found["shape"] = str(list(term.shape))
    if position in flow.outputs:
        found["output"] = True
    return found


def _parameters(structure: Structure, read: Read) -> Mapping[int, dict[str, str]]:
    """The parameters that a term is or that meet data there, with their use; of weights and others, the weights."""
    flow = read.flow
    first = structure.first_names
    found: dict[int, dict[str, str]] = {}
    for position, term in enumerate(flow.terms):
        if term.kind is Kind.PARAMETER:
            found[position] = {first[flow.capture.parameters[term.node]]: "parameter"}
    for uses in read.uses.uses.values():
        for use in uses:
            found.setdefault(use.term, {}).setdefault(first[use.parameter], str(use.how.value))
    for position, sites in read.uses.at.items():
        found[position] = {first[site.parameter]: found[position][first[site.parameter]] for site in sites}
    return found


def _joins(structure: Structure, read: Read, names: list[str]) -> Iterator[tuple[int, dict[str, Plain]]]:
    """The attributes of residual joins, and of the terms in their branches and on their shortcuts."""
    blocks = read.blocks
    for position, join in zip(sorted(blocks.sides), structure.joins, strict=True):
        side = blocks.sides[position]
        found: dict[str, Plain] = {"join": join.name, "shortcut_kind": join.kind, "zeroable": join.zeroable}
        found.update(fork=names[side.fork], shortcut=names[side.operand])
        if join.reason:
            found["reason"] = join.reason
        yield position, found
    for attribute, inside in (("branch", blocks.stem), ("shortcut_of", blocks.shortcut), ("branch", blocks.parent)):
        for position, join_ in inside.items():
            yield position, {attribute: names[join_]}


def _sums(read: Read, names: list[str]) -> Iterator[tuple[int, dict[str, Plain]]]:
    """The kind of each sum of data that is not a join, and the reason."""
    for position, (kind, reason) in read.blocks.refused.items():
        yield position, {"refused": kind, "reason": reason}


def _ends(structure: Structure, read: Read) -> Mapping[int, list[int]]:
    """The joins that a term closes when its parameter is zero."""
    found: dict[int, list[int]] = {}
    for position, join in zip(sorted(read.blocks.sides), structure.joins, strict=True):
        for term in dict.fromkeys(_ending(structure, read, position, join)):
            found.setdefault(term, []).append(position)
    return found


def _ending(structure: Structure, read: Read, position: int, join: Join) -> Iterator[int]:
    """The terms at which the ends of a join act: those that were found, or all in the branch if --role named them."""
    for end in join.ends if join.zeroable else ():
        info = structure.parameters[structure.first_names[end.parameter]]
        for use in (use for alias in (info.name, *info.aliases) for use in read.uses.uses.get(alias, ())):
            acts = read.flow.step(use.term) in join.end_steps
            if acts or (not join.end_steps and position in read.blocks.around(use.term)):
                yield use.term
