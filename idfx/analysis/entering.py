"""Where parameters enter the data, and how each of them acts there, by the kind of the term that it enters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import networkx as nx

from idfx.analysis.dataflow import Dataflow, normalises
from idfx.analysis.terms import DataflowNode
from idfx.analysis.uses import How
from idfx.ops.kinds import Kind

_BEFORE_BIAS = frozenset({Kind.MOVE, Kind.SCALE, Kind.MIX, Kind.PRODUCT})


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter that enters the data at a term: the operand that it is part of, and the terms from there down to it.

    `fixed`: the operand is made by a layer, a weight applied to a value that no input enters.
    """

    flow: Dataflow
    term: int
    operand: int
    leaf: int
    chain: tuple[int, ...] = ()
    fixed: bool = False

    @property
    def parameter(self) -> str:
        """Its name in the graph."""
        return self.flow.capture.parameters[self.flow.terms[self.leaf].node]

    @property
    def entered(self) -> DataflowNode:
        """The term at which it enters the data."""
        return self.flow.terms[self.term]

    @property
    def own(self) -> tuple[int, ...]:
        """The shape of the parameter, () where it is not known."""
        return self.flow.terms[self.leaf].shape or ()

    @property
    def used(self) -> tuple[int, ...]:
        """The shape of the operand, () where it is not known."""
        return self.flow.terms[self.operand].shape or ()

    @property
    def plain(self) -> bool:
        """Whether the operand is the parameter, at most moved."""
        return all(self.flow.terms[position].kind is Kind.MOVE for position in self.chain)

    @property
    def added(self) -> float | None:
        """The number that is added to the parameter, moved at most; None if the operand is more than that."""
        total = 0.0
        for position in self.chain:
            if (plus := self.flow.plus(position)) is not None:
                total += plus
            elif self.flow.terms[position].kind is not Kind.MOVE:
                return None
        return total

    @property
    def carries(self) -> bool:
        """Whether the operand is part of the value of the term, not a gate of it."""
        return self.operand in self.entered.operands


def entries(flow: Dataflow) -> Iterator[Entry]:
    """Yield every way in which a parameter enters the data, in the order of execution.

    Args:
        flow: the data flow of one forward pass.
    """
    terms = flow.terms
    for position, term in enumerate(terms):
        if not term.data or not term.parametric:
            continue
        for operand in dict.fromkeys(term.operands + term.gates):
            if terms[operand].kind is Kind.PARAMETER:
                yield Entry(flow, position, operand, operand)
            elif terms[operand].parametric and not terms[operand].data:
                leaves = _values(flow, list(_leaves(flow, operand)))
                fixed = any(_is_layer(flow, inside) for _, chain in leaves for inside in chain)
                yield from (Entry(flow, position, operand, leaf, chain, fixed) for leaf, chain in leaves)


def _leaves(flow: Dataflow, position: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The parameters of an expression, each with the terms from the expression's value down to it.

    Written by hand: an expression has a handful of terms, and a graph of its own would cost more than the walk.
    """
    stack: list[tuple[int, tuple[int, ...]]] = [(position, ())]
    while stack:
        top, chain = stack.pop()
        term = flow.terms[top]
        if term.kind is Kind.PARAMETER:
            yield top, chain
        elif term.parametric and not term.data:
            stack.extend((o, (*chain, top)) for o in reversed((*term.operands, *term.gates)))


def _values(flow: Dataflow, leaves: list[tuple[int, tuple[int, ...]]]) -> list[tuple[int, tuple[int, ...]]]:
    """The paths from a value down to its parameters, without those that only determine the size or mean of another."""

    def is_aside(position: int) -> bool:
        kind = flow.terms[position].kind
        return kind is Kind.GATE or (kind.mixes and kind is not Kind.NORM)

    straight = {leaf for leaf, chain in leaves if not any(map(is_aside, chain))}
    return [(leaf, chain) for leaf, chain in leaves if leaf not in straight or not any(map(is_aside, chain))]


def _is_layer(flow: Dataflow, position: int) -> bool:
    """Whether a term of an expression applies a weight, named so by its operator, to a value that no input enters."""
    term = flow.terms[position]
    return term.kind is Kind.PRODUCT and term.readings[0] is None and term.readings[1] is not None


def how(entry: Entry) -> How:
    """Return how a parameter acts where it enters the data.

    Args:
        entry: of the parameter.
    """
    if entry.fixed:
        return How.FIXED
    if any(_looks_up(entry.flow.terms[position]) for position in entry.chain):
        return How.POSITION
    return _BY_KIND.get(entry.entered.kind, _otherwise)(entry)


def _looks_up(term: DataflowNode) -> bool:
    """Whether a term of an expression selects entries by another tensor."""
    return (term.kind is Kind.MOVE and bool(term.gates)) or (term.kind is Kind.PRODUCT and term.tag == "table")


def _divides_too(entry: Entry) -> bool:
    """Whether a parameter divides a value before it multiplies it, as the step of a quantiser does."""
    graph = entry.flow.term_graph
    inside = nx.ancestors(graph, entry.operand) | {entry.operand}
    divisors = [position for position in inside if entry.flow.terms[position].tag == "reciprocal"]
    return any(nx.has_path(graph, entry.leaf, divisor) for divisor in divisors)


def _contracted(entry: Entry) -> How:
    inside = [entry.flow.terms[position].kind for position in entry.chain]
    smaller = math.prod(entry.own) < math.prod(entry.used) and Kind.CONCAT not in inside
    if smaller and Kind.PRODUCT in inside:
        return How.OTHER if _divides_too(entry) else How.GAIN
    return How.TABLE if entry.entered.tag == "table" else How.WEIGHT


def _moved(entry: Entry) -> How:
    return How.TABLE if entry.carries else How.OTHER  # only where it is looked up does data come in


def _multiplied(entry: Entry) -> How:
    if not entry.carries:
        return How.OTHER
    if entry.entered.tag == "norm scale":
        return How.NORM_SCALE
    scales = entry.added is not None and _scales_norm(entry.flow, entry.term) and not _mixes(entry)
    return How.NORM_SCALE if scales else How.SCALE


def _mixes(entry: Entry) -> bool:
    """Whether it is one number, and what it multiplies is added to another value next: the share in a mixture."""
    flow, position = entry.flow, entry.term
    if flow.terms[entry.operand].shape is None or math.prod(entry.used) != 1:
        return False
    while flow.terms[position].kind.is_proportional or position == entry.term:
        users = flow.users.get(position, ())
        if any(flow.terms[user].kind is Kind.SUM and len(flow.addends(user)) > 1 for user in users):
            return True
        if len(users) != 1:
            return False
        (position,) = users
    return False


def _added(entry: Entry) -> How:
    if not entry.carries:
        return How.OTHER
    if entry.entered.tag == "bias":
        return How.BIAS
    if entry.entered.tag == "shift" or (entry.plain and _shifts_norm(entry.flow, entry.term)):
        return How.NORM_SHIFT
    return How.BIAS if _is_bias(entry) else How.OFFSET


def _otherwise(entry: Entry) -> How:
    return How.OTHER


_BY_KIND: Mapping[Kind, Callable[[Entry], How]] = {
    Kind.CONTRACT: _contracted,
    Kind.RECURRENT: lambda entry: How.RECURRENT,
    Kind.MOVE: _moved,
    Kind.PRODUCT: _multiplied,
    Kind.SUM: _added,
    Kind.CONCAT: lambda entry: How.TOKEN,
}


def _data(flow: Dataflow, position: int) -> int | None:
    """The only data operand of a term, past moves and scales."""
    while True:
        sources = flow.sources[position]
        if len(sources) != 1:
            return None
        position = sources[0]
        if not flow.terms[position].kind.is_proportional:
            return position


def _scales_norm(flow: Dataflow, position: int) -> bool:
    """Whether a product multiplies the output of a normalisation."""
    before = _data(flow, position)
    return before is not None and normalises(flow, before)


def _shifts_norm(flow: Dataflow, position: int) -> bool:
    """Whether a sum adds to the output of a normalisation, scaled or not."""
    before = _data(flow, position)
    if before is not None and flow.terms[before].kind is Kind.PRODUCT and len(flow.sources[before]) == 1:
        return _scales_norm(flow, before)
    return before is not None and normalises(flow, before)


def _is_bias(entry: Entry) -> bool:
    """Whether a sum adds one number to each output of a weight; the output may have been mixed since."""
    flow = entry.flow
    weight = _weight_before(flow, [o for o in entry.entered.operands if o != entry.operand and flow.terms[o].data])
    if weight is None or weight.tag == "table":
        return False
    read, width = weight.readings[1], flow.terms[weight.operands[1]].shape
    if read is None or width is None or not 1 <= sum(size > 1 for size in entry.own) <= len(read.axes):
        return False
    return math.prod(entry.own) == read.layout.outputs(width)


def _weight_before(flow: Dataflow, before: list[int]) -> DataflowNode | None:
    """The contraction with a weight that a value comes from, moved, scaled, mixed or multiplied by a value since."""
    while len(before) == 1 and flow.terms[before[0]].kind in _BEFORE_BIAS:
        term = flow.terms[before[0]]
        values = [o for o in term.operands if flow.terms[o].data]
        if term.kind is Kind.PRODUCT:
            if term.tag or len(flow.sources[before[0]]) != 2:
                return None
            values = values[-1:]
        before = values
    found = flow.terms[before[0]] if len(before) == 1 else None
    return found if found is not None and found.kind is Kind.CONTRACT else None
