"""Whether a model without its biases is an odd function, f(−x) = −f(x), and which biases would make it another one.

With biases of 0, a model of linear layers and odd functions, such as tanh or sin, is odd. Classes that look the same
from both sides, two rings for instance, are the same to it, and it leaves this symmetry slowly.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import networkx as nx
import torch
import torch.fx

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.graph import SINK
from idfx.core.records import Structure
from idfx.ops.kinds import Kind
from idfx.ops.semantics import operator_name


class Parity(Enum):
    """What happens to a value if the sign of all inputs changes."""

    ZERO = "it is 0"
    EVEN = "it stays"
    ODD = "its sign changes"
    NEITHER = "something else"


_PASSES = frozenset({Kind.MOVE, Kind.MIX, Kind.SCALE, Kind.NORM})
_MULTIPLIES = frozenset({Kind.PRODUCT, Kind.CONTRACT})
_JOINS = frozenset({Kind.SUM, Kind.CONCAT})


def is_odd(structure: Structure, flow: Dataflow) -> bool:
    """Return whether the outputs change their sign with the inputs, if biases and shifts are 0."""
    found: list[Parity] = []
    for position in range(len(flow.terms)):
        found.append(_parity(structure, flow, position, found))
    return bool(flow.outputs) and all(found[output] is Parity.ODD for output in flow.outputs)


def _parity(structure: Structure, flow: Dataflow, position: int, known: list[Parity]) -> Parity:
    """The parity of a term, given those before it."""
    term = flow.terms[position]
    read = [known[operand] for operand in term.operands]
    if term.kind is Kind.INPUT:
        return Parity.ODD if structure.capture.dtypes.get(term.node, "").startswith("float") else Parity.NEITHER
    if term.node in structure.capture.zeros:
        return Parity.ZERO
    if not term.data:
        name = structure.capture.parameters.get(term.node)
        role = structure.roles.get(structure.first_names.get(name, "")) if name is not None else None
        moved = term.kind is Kind.MOVE and read[:1] == [Parity.ZERO]
        return Parity.ZERO if moved or (role is not None and role.name.is_shift) else Parity.EVEN
    if Parity.NEITHER in read or term.gates:
        return Parity.NEITHER
    if term.kind in _PASSES:
        return read[0]
    if term.kind in _MULTIPLIES:
        return Parity.ZERO if Parity.ZERO in read else Parity.ODD if read.count(Parity.ODD) % 2 else Parity.EVEN
    if term.kind in _JOINS:
        added = set(read) - {Parity.ZERO}
        return added.pop() if len(added) == 1 else Parity.NEITHER
    if term.kind.is_function and read[:1] == [Parity.ODD]:
        return _of_function(flow.nodes[term.node])
    return Parity.NEITHER


def _of_function(node: torch.fx.Node) -> Parity:
    """The parity of a function of one tensor, by its values on both sides of 0."""
    points = torch.linspace(0.1, 3.0, 16, dtype=torch.float64)
    try:
        there, back = (_value(node, points), _value(node, -points))
    except (RuntimeError, TypeError, NotImplementedError, AttributeError):
        return Parity.NEITHER
    if there.dtype != points.dtype or back.shape != there.shape:
        return Parity.NEITHER
    if torch.allclose(there, -back):
        return Parity.ODD
    return Parity.EVEN if torch.allclose(there, back) else Parity.NEITHER


def _value(node: torch.fx.Node, points: torch.Tensor) -> torch.Tensor:
    """The value of a function, in place or not, at some points."""
    assert callable(node.target)
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda _: points.clone())
    value: Any = node.target(*args, **kwargs)
    return torch.as_tensor(value)


def breaks_oddness(structure: Structure, flow: Dataflow, name: str) -> tuple[str, int] | None:
    """Return the nearest function behind a bias, and the number of inputs of the weight that it belongs to.

    Args:
        structure: of a model that is odd without its biases.
        flow: of the structure.
        name: of a bias.

    Returns:
        None if no function follows it, if it ends a residual branch, or if it belongs to no weight. Of several uses,
        the first one with a function behind it counts.
    """
    if any(name == structure.first_names.get(bias) for join in structure.joins for bias in join.zeroed_biases):
        return None
    for at in _added(structure, flow, name):
        steps = {flow.step(source) for source in flow.terms[at].operands}
        weights = [site for site in structure.sites if site.step in steps and site.layout is not None]
        operator = _function_behind(flow, at)
        if operator and len(weights) == 1 and weights[0].layout is not None:
            shape = structure.parameters[structure.first_names[weights[0].parameter]].shape
            return operator, max(weights[0].layout.matrix(tuple(shape))[1], 1)
    return None


def _function_behind(flow: Dataflow, position: int) -> str:
    """The nearest nonlinear function that a term reaches; empty if it reaches none."""
    reached = (user for _, user in nx.bfs_edges(flow.data_graph, position) if user != SINK)
    functions = (flow.terms[user] for user in reached if flow.terms[user].kind.is_function)
    return next((operator_name(flow.nodes[term.node].target).removesuffix("_") for term in functions), "")


def _added(structure: Structure, flow: Dataflow, name: str) -> list[int]:
    """The terms where a parameter, moved at most, meets the data."""
    read = structure.capture.parameters.items()
    own = [flow.positions[node] for node, parameter in read if structure.first_names.get(parameter) == name]
    graph = flow.term_graph
    fixed = graph.subgraph(position for position, term in enumerate(flow.terms) if not term.data)
    moved = set(own).union(*(nx.descendants(fixed, position) for position in own))
    return sorted({user for position in moved for user in graph.successors(position) if flow.terms[user].data})


def bound(inputs: int) -> float:
    """Return the bound of torch's own uniform draws of a bias: 1 / √inputs.

    Example:
        >>> bound(16)
        0.25
    """
    return 1 / math.sqrt(inputs)
