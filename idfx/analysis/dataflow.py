"""Captured graph → data flow: every operator as terms, with whether each carries data.

For operators without an entry in `idfx.ops`, torch's own information is used: an operator whose schema aliases its
input is a view, and a pointwise one is tried on a zero. The rest is unknown and is listed.
"""

from __future__ import annotations

import functools
import operator as python_operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
import torch.fx

from idfx.analysis.by_value import ByValue
from idfx.analysis.degrees import Degrees
from idfx.analysis.graph import SINK, data_graph, term_graph
from idfx.analysis.stacks import stacked
from idfx.analysis.terms import NO_READINGS, DataflowNode, Readings
from idfx.capture.graph import overwritten
from idfx.core.records import Capture, Layout, Unknown
from idfx.ops.kinds import Kind
from idfx.ops.semantics import OPERATORS, OpSemantics, Reading, gate, move, operator_name, reading, scale, tensors

_ZEROS = frozenset({"aten.zeros", "aten.new_zeros", "aten.zeros_like", "aten.zero_", "aten._efficientzerotensor"})
_ZERO = object()  # stands for a tensor of zeros
_OWN = "the model's own forward"
_INTEGERS = frozenset({"bool", "uint8", "int8", "int16", "int32", "int64"})


@dataclass(frozen=True)
class Dataflow:
    """The terms of a capture in the order of execution; `positions` and `nodes` go by node name.

    `cancelled` are those that a later sum takes away again (`idfx.analysis.cancelling`).
    """

    capture: Capture
    terms: tuple[DataflowNode, ...]
    outputs: tuple[int, ...]
    unknown: tuple[Unknown, ...]
    positions: Mapping[str, int]
    nodes: Mapping[str, torch.fx.Node]
    cancelled: frozenset[int] = frozenset()

    def module(self, term: int) -> str:
        """Path of the module in whose forward a term stands."""
        return self.capture.modules.get(self.terms[term].node, "")

    def step(self, term: int) -> int:
        """Number of the operator call that a term belongs to."""
        return self.capture.steps.get(self.terms[term].node, -1)

    @functools.cached_property
    def normalises(self) -> bool:
        """Whether a value that depends on the inputs is normalised anywhere, by its own or by running statistics."""
        return any(term.data and normalises(self, position) for position, term in enumerate(self.terms))

    @functools.cached_property
    def degrees(self) -> Degrees:
        """How values scale with each other."""
        return Degrees(self.terms, self.nodes, self.positions)

    @functools.cached_property
    def data_graph(self) -> nx.DiGraph[int]:
        """The terms that carry data, as a graph (`idfx.analysis.graph`)."""
        return data_graph(self.terms, self.outputs)

    @functools.cached_property
    def term_graph(self) -> nx.DiGraph[int]:
        """All terms, as a graph."""
        return term_graph(self.terms)

    @functools.cached_property
    def users(self) -> Mapping[int, tuple[int, ...]]:
        """The terms that read each data term."""
        graph = self.data_graph
        return {node: tuple([user for user in graph.successors(node) if user != SINK]) for node in graph}

    @functools.cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """Of each term the operands and gates that carry data, each once."""
        graph = self.data_graph
        return tuple(
            tuple(graph.predecessors(position)) if term.data and term.kind != "input" else ()
            for position, term in enumerate(self.terms)
        )

    def plus(self, position: int) -> float | None:
        """The number that a sum adds to a parameter or an expression of some; None for what is no such sum."""
        term = self.terms[position]
        beside = [self.terms[operand] for operand in term.operands if not self.terms[operand].parametric]
        summed = term.kind is Kind.SUM and len(term.operands) == 2 and len(beside) == 1
        return beside[0].factor if summed else None

    def addends(self, term: int) -> tuple[int, ...]:
        """The operands of a sum that carry data, each once."""
        return tuple(dict.fromkeys(o for o in self.terms[term].operands if self.terms[o].data))


def divides(flow: Dataflow, position: int) -> bool:
    """Return whether a product divides one value by another.

    Args:
        flow: the data flow.
        position: the product's term.
    """
    operands = (flow.terms[operand] for operand in flow.terms[position].operands)
    return any(operand.kind == "gate" and operand.tag == "reciprocal" for operand in operands)


def normalises(flow: Dataflow, position: int) -> bool:
    """Return whether a term is a value divided by its own size, f(c · x) = f(x) for c > 0, or by fixed statistics.

    Args:
        flow: the data flow.
        position: of the term.
    """
    term = flow.terms[position]
    if term.kind is Kind.NORM or (term.kind is Kind.SCALE and term.eps is not None):
        return True
    beside = [flow.terms[operand] for operand in term.operands if not flow.terms[operand].data]
    fixed = len(beside) == 1 and not beside[0].parametric
    return term.kind is Kind.PRODUCT and fixed and divides(flow, position)


@functools.cache
def _is_view(target: Any) -> bool:
    returns, arguments = target._schema.returns, target._schema.arguments
    aliased = any(r.alias_info is not None for r in returns)
    return aliased and not any(a.alias_info is not None and a.alias_info.is_write for a in arguments)


def _is_zero_at_zero(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
    """Try an operator with zeros for all its tensors; None if it does not run."""

    def zero(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(zero(item) for item in value)
        return _ZERO if isinstance(value, torch.fx.Node) else value

    tried = target, tuple(zero(a) for a in args), tuple((k, zero(v)) for k, v in kwargs.items())
    try:
        return _tried(*tried)
    except TypeError:  # an argument that cannot be a key
        return _tried.__wrapped__(*tried)


@functools.lru_cache(maxsize=1024)
def _tried(target: Any, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> bool | None:
    def number(value: Any) -> Any:
        if isinstance(value, tuple):
            return [number(item) for item in value]
        return torch.zeros(1) if value is _ZERO else value

    try:
        with torch.no_grad():
            result = target(*[number(a) for a in args], **{k: number(v) for k, v in kwargs})
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    return bool((result == 0).all()) if isinstance(result, torch.Tensor) else None


def _is_whole(term: OpSemantics) -> bool:
    """Whether a term is made of nodes and terms throughout, and not of a list, say, which its entry did not expect."""
    parts = (*term.operands, *term.gates)
    return all(_is_whole(part) if isinstance(part, OpSemantics) else isinstance(part, torch.fx.Node) for part in parts)


@functools.cache
def _results(target: Any) -> frozenset[str]:
    """The arguments that an operator only writes its results into."""
    return frozenset(argument.name for argument in target._schema.arguments if argument.is_out)


def read_operator(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OpSemantics | None:
    """Return what an operator means for its arguments, or None if nothing tells."""
    given, kwargs = kwargs, {key: value for key, value in kwargs.items() if key not in _results(target)}
    meaning = OPERATORS.get(operator_name(target))
    if meaning is not None:
        try:
            term = meaning(*args, **kwargs)
        except TypeError:  # an overload with another signature than the one that the entry explains
            return None
        return term if _is_whole(term) else None
    operands = tensors(*args, *kwargs.values())
    if _is_view(target):
        return move(operands[0], operands[1:])
    if target.namespace == "aten" and torch.Tag.pointwise in target.tags:
        keeps = _is_zero_at_zero(target, args, given)
        if keeps is not None:
            both = operands[0] if len(operands) == 1 else OpSemantics(Kind.CONCAT, operands)
            return OpSemantics(Kind.MAP, (both,)) if keeps else gate(*operands)
    return None


class _Reader:
    """Turns nodes into terms, in one pass over the graph."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.terms: list[DataflowNode] = []
        self.positions: dict[str, int] = {}
        self.nodes = {node.name: node for node in capture.graph.nodes}
        self.by_value = ByValue(self.terms, Degrees(self.terms, self.nodes, self.positions))
        self.value: dict[torch.fx.Node, int] = {}
        self.made_zeros: set[int] = set()  # by the forward itself, where a buffer of zeros may change
        self.unknown: dict[str, list[str]] = {}

    def read(self) -> Dataflow:
        outputs: tuple[int, ...] = ()
        for node in self.capture.graph.nodes:
            if node.op == "output":
                outputs = tuple(dict.fromkeys(self.value[n] for n in node.all_input_nodes))
            else:
                self.value[node] = self.positions[node.name] = self._node(node)
        unknown = tuple(Unknown(name, tuple(sites)) for name, sites in sorted(self.unknown.items()))
        cancelled = frozenset(self.by_value.cancelled)
        return Dataflow(self.capture, tuple(self.terms), outputs, unknown, self.positions, self.nodes, cancelled)

    def _node(self, node: torch.fx.Node) -> int:
        if node.op == "placeholder":
            return self._leaf(Kind.INPUT, node)
        if node.op == "get_attr":
            if node.name in self.capture.parameters:
                return self._leaf(Kind.PARAMETER, node)
            return self._leaf(Kind.ZERO if node.name in self.capture.zeros else Kind.CONSTANT, node)
        inputs = [self.terms[self.value[n]] for n in node.all_input_nodes]
        if not any(term.data or term.parametric for term in inputs):
            return self._zero(node) if self._stays_zero(node) else self._leaf(Kind.CONSTANT, node)
        return self._add(self._meaning(node), node)

    def _meaning(self, node: torch.fx.Node) -> OpSemantics:
        if node.target is overwritten:
            return OpSemantics(Kind.CONCAT, tensors(node.args))
        if self.capture.dtypes.get(node.name) in _INTEGERS:
            return OpSemantics(Kind.GATE, tuple(node.all_input_nodes), tag="integer")
        if node.target is python_operator.getitem:
            return move(node.args[0])
        if (parts := stacked(node, self.capture.shapes)) is not None:
            return OpSemantics(
                Kind.SUM, tuple(v if parts.factor == 1 else scale(v, parts.factor) for v in parts.values)
            )
        found = read_operator(node.target, node.args, node.kwargs)
        if found is None:
            where = self.capture.modules.get(node.name, "") or _OWN
            self.unknown.setdefault(operator_name(node.target), []).append(where)
            return OpSemantics(Kind.UNKNOWN, tuple(node.all_input_nodes))
        return found

    def _stays_zero(self, node: torch.fx.Node) -> bool:
        """Whether a value made of fixed values alone is zero because they are."""
        if operator_name(node.target) in _ZEROS:
            return True
        kinds = {n: self.terms[self.value[n]].kind for n in node.all_input_nodes}
        if Kind.ZERO not in kinds.values():
            return False

        def is_zero(value: Any) -> bool:
            if not isinstance(value, OpSemantics):
                return kinds[value] is Kind.ZERO
            return value.kind.vanishes([is_zero(operand) for operand in value.operands])

        meaning = self._meaning(node)
        return is_zero(meaning)

    def _zero(self, node: torch.fx.Node) -> int:
        """A value that is zero; noted if it is made of no others."""
        sources = [self.value[n] for n in node.all_input_nodes if self.terms[self.value[n]].kind is Kind.ZERO]
        position = self._leaf(Kind.ZERO, node)
        if operator_name(node.target) in _ZEROS or self.made_zeros.issuperset(sources):
            self.made_zeros.add(position)
        return position

    def _leaf(self, kind: Kind, node: torch.fx.Node) -> int:
        shape = self.capture.shapes.get(node.name)
        self.terms.append(DataflowNode(kind, (), (), node.name, shape, kind is Kind.INPUT, kind is Kind.PARAMETER))
        return len(self.terms) - 1

    def _add(self, term: OpSemantics, node: torch.fx.Node, shaped: bool = True) -> int:
        if term.arranged is not None:
            parts = [self.terms[self._position(o, node)] for o in term.operands]
            term = term.arranged([2 if part.data else int(part.parametric) for part in parts])
        kind, tag, readings = term.kind, term.tag, NO_READINGS
        shaped_too = shaped and kind is not Kind.CONTRACT  # the operands have another shape than the result
        operands = tuple([self._position(o, node, shaped_too) for o in term.operands])
        gates = tuple([self._position(g, node) for g in term.gates]) if term.gates else ()
        data = parametric = False
        for position in operands + gates:
            part = self.terms[position]
            data, parametric = data or part.data, parametric or part.parametric
        if kind is Kind.CONTRACT:
            kind, operands, readings = self._resolved(term, operands)
            if kind is Kind.CONTRACT and self._sums_over_nothing(operands[1], readings[1]):
                kind, tag, readings = Kind.PRODUCT, "scale", NO_READINGS
            if kind is Kind.MIX and operands[1] in self.made_zeros:  # the derivative of a layer by its input alone
                return self._leaf(Kind.ZERO, node)
            if kind is Kind.MIX:  # a contraction with something fixed
                operands, gates = operands[:1], (*operands[1:], *gates)
        self.terms.append(
            DataflowNode(
                kind=kind,
                operands=operands,
                gates=gates,
                node=node.name,
                shape=self._shape(term, operands, node) if shaped else None,
                data=data,
                parametric=parametric,
                tag=tag,
                readings=readings,
                axes=term.axes,
                factor=term.factor,
                eps=term.eps,
                degree=term.degree,
            )
        )
        self.by_value.read(len(self.terms) - 1)
        return len(self.terms) - 1

    def _shape(self, term: OpSemantics, operands: tuple[int, ...], node: torch.fx.Node) -> tuple[int, ...] | None:
        """The shape of a value; a list of parts has that of the whole."""
        shape = self.capture.shapes.get(node.name)
        return self.terms[operands[0]].shape if shape is None and term.kind is Kind.MOVE else shape

    def _position(self, operand: Any, node: torch.fx.Node, shaped: bool = True) -> int:
        return self._add(operand, node, shaped) if isinstance(operand, OpSemantics) else self.value[operand]

    def _resolved(self, term: OpSemantics, operands: tuple[int, ...]) -> tuple[Kind, tuple[int, ...], Readings]:
        """Say of a contraction whether it is a weight site, and put its data operand first."""
        first, second = (self.terms[operand] for operand in operands)
        if not first.data and not second.data:  # a layer only where the operator says which operand is the weight
            one, other = (reading(x, None, None) if isinstance(x, Layout) else None for x in term.layouts)
            return Kind.PRODUCT, operands, (one, other)
        one = reading(term.layouts[0], first.shape, second.shape)
        other = reading(term.layouts[1], second.shape, first.shape)
        if first.data and second.data:
            return Kind.PRODUCT, operands, (one, other)
        kind = Kind.CONTRACT if (second if first.data else first).parametric else Kind.MIX
        return (kind, operands, (None, other)) if first.data else (kind, operands[::-1], (None, one))

    def _sums_over_nothing(self, weight: int, read: Reading | None) -> bool:
        """Whether a vector was given an axis of size 1 for a contraction to sum over: it multiplies entry by entry."""
        shape, layout = self.terms[weight].shape, read.layout if read is not None else None
        if shape is None or layout is None or layout.in_axis is None or layout.in_rest or layout.tap_axes:
            return False
        while self.terms[weight].kind is Kind.MOVE and len(self.terms[weight].operands) == 1:
            weight = self.terms[weight].operands[0]
        own = self.terms[weight]
        return shape[layout.in_axis] == 1 and own.kind is Kind.PARAMETER and len(own.shape or ()) == 1


def read(capture: Capture) -> Dataflow:
    """Return the data flow of a captured graph.

    Args:
        capture: the graph of ATen operators of one forward pass.

    Example:
        >>> from idfx.capture.tracing import capture
        >>> from idfx.core.records import Example
        >>> flow = read(capture(torch.nn.Linear(3, 2), Example((torch.ones(1, 3),))))
        >>> [term.kind for term in flow.terms]
        ['input', 'parameter', 'parameter', 'contract', 'sum']
    """
    return _Reader(capture).read()
