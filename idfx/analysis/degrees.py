"""How a value scales with another one: f(c · x) = cᵏ · f(x) for c > 0, where k is the degree of homogeneity.

Degrees follow from the kinds of terms: a product adds them, a sum needs equal ones, moves and fixed combinations keep
them. Of a function of one value the degree is found by a trial: the operator itself runs on small numbers of two sizes.
A number that is small against 1 and is added to a value that scales (the eps of a normalisation) is left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx

from idfx.analysis.terms import DataflowNode
from idfx.ops.kinds import Kind, Zero

SMALL = 1e-2  # what is added to a divisor so that it is not zero
_NEAREST = 64  # terms between a value and a function of it alone; as a rule it is a handful
_WIDEST = 4  # entries along each axis of a trial
_SIZES = (0.1, 7.0)  # by which a trial is made smaller and larger
_ALIKE = 1e-2  # by how much two trials may differ, relative to the largest entry
_INDEPENDENT = 0.0


class Degrees:
    """The degrees of the terms of a data flow, and its products that are functions of one term alone.

    Args:
        terms: of the data flow; it may still grow.
        nodes: the nodes of the graph, by name.
        positions: the term that is the value of each node, by name.
    """

    def __init__(
        self, terms: Sequence[DataflowNode], nodes: Mapping[str, torch.fx.Node], positions: Mapping[str, int]
    ) -> None:
        self._terms, self._nodes, self._positions = terms, nodes, positions

    def of(self, position: int, sources: frozenset[int]) -> float | None:
        """Return the degree of a term in some others, taken together, or None if it has none.

        Args:
            position: of the term.
            sources: the terms that scale; 0 is also the degree of what depends on none of them.
        """
        return self._degree(position, sources, min(sources), {})

    def origin(self, positions: Sequence[int]) -> int | None:
        """Return the nearest term that some terms are functions of, without a weight or a second value in between.

        Args:
            positions: of the terms.
        """
        inside = {position for position in positions if self._varies(position)}
        for _ in range(_NEAREST):
            if len(inside) < 2:
                break
            last = max(inside)
            term = self._terms[last]
            if not term.operands or term.kind is Kind.CONTRACT or term.kind in (Kind.RECURRENT, Kind.UNKNOWN):
                return None
            inside.remove(last)
            inside |= {source for source in (*term.operands, *term.gates) if self._varies(source)}
        return inside.pop() if len(inside) == 1 else None

    def least(self, position: int, source: int) -> float:
        """Return how large a term is where a term that it is a function of is zero: what is added to a divisor.

        Args:
            position: of the term.
            source: that it scales with.
        """
        known: dict[int, float] = {source: 0.0}

        def size(position: int) -> float:
            if position not in known:
                term = self._terms[position]
                if not self._varies(position):
                    return abs(term.factor or 0.0)
                known[position] = self._least(position, [size(operand) for operand in term.operands])
            return known[position]

        return size(position)

    def _least(self, position: int, operands: Sequence[float]) -> float:
        term = self._terms[position]
        if term.kind is Kind.SUM:
            return sum(operands)
        if term.kind.multiplies:
            return math.prod(operands)
        largest = max(operands, default=0.0)
        if term.kind is Kind.SCALE:
            return largest if term.factor is None else largest * abs(term.factor)
        power = (self._own(position) or 1.0) if term.kind in (Kind.MAP, Kind.GATE) else 1.0
        return math.inf if not largest and power < 0 else max(largest**power, term.eps or 0.0)

    def _varies(self, position: int) -> bool:
        return self._terms[position].data or self._terms[position].parametric

    def _degree(
        self, position: int, sources: frozenset[int], first: int, known: dict[int, float | None]
    ) -> float | None:
        if position in sources:
            return 1.0
        if position < first or not self._varies(position):
            return _INDEPENDENT
        if position not in known:
            if len(known) > 4 * _NEAREST:
                return None
            known[position] = None
            known[position] = self._read(position, sources, first, known)
        return known[position]

    def _read(self, position: int, sources: frozenset[int], first: int, known: dict[int, float | None]) -> float | None:
        term = self._terms[position]
        degrees = [self._degree(operand, sources, first, known) for operand in term.operands]
        scaling = [degree for degree in degrees if degree is not None]
        if len(scaling) < len(degrees):
            return None
        if term.kind is Kind.NORM:
            return _INDEPENDENT
        if not all(self._is_fixed(gate, sources, first, known) for gate in term.gates):
            return None
        if not any(scaling):
            return _INDEPENDENT
        if term.kind.multiplies:
            return sum(scaling)
        if term.kind.zero is Zero.ALL:
            alike = {degree for o, degree in zip(term.operands, scaling, strict=True) if not self._is_small(o)}
            return alike.pop() if len(alike) == 1 else None
        if len(scaling) != 1:
            return None
        if term.kind in (Kind.MAP, Kind.GATE):
            power = self._own(position)
            return None if power is None else power * scaling[0]
        return scaling[0] if term.kind.zero is Zero.OPERAND else None

    def _is_fixed(self, gate: int, sources: frozenset[int], first: int, known: dict[int, float | None]) -> bool:
        """Whether what steers a term does not change with the scale of the sources."""
        return self._degree(gate, sources, first, known) == _INDEPENDENT

    def _is_small(self, position: int) -> bool:
        """Whether a term is a number that is small against 1."""
        term = self._terms[position]
        return not self._varies(position) and term.factor is not None and abs(term.factor) <= SMALL

    def _own(self, position: int) -> float | None:
        """The degree of a function in its only operand."""
        term = self._terms[position]
        if term.degree is not None:
            return term.degree
        node = self._nodes[term.node]
        if self._positions.get(term.node) != position or not hasattr(node.target, "_schema"):
            return None
        shape = self._terms[term.operands[0]].shape
        if shape is None or len(node.all_input_nodes) != 1:
            return None
        try:
            return _tried(node.target, _plain(node.args), _plain(tuple(node.kwargs.items())), shape)
        except TypeError:  # an argument that cannot be a key
            return None


def _plain(value: Any) -> Any:
    """The arguments of a call as tuples, with a mark in the place of its tensor."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return _TENSOR if isinstance(value, torch.fx.Node) else value


_TENSOR = object()


@functools.lru_cache(maxsize=256)
def _tried(
    target: Any, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...], shape: tuple[int, ...]
) -> float | None:
    """The degree of an operator of one tensor, from its results for numbers of two sizes; None if it has none."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn([min(size, _WIDEST) for size in shape], generator=generator)
    small.view(-1)[:1] = 1.5  # roots and logarithms have no others
    found = [_run(target, args, kwargs, small * size) for size in (1.0, *_SIZES)]
    results = [result for result in found if result is not None]
    if len(results) < len(found):
        return None
    largest = [float(result.abs().max()) for result in results]
    if not all(largest):
        return None
    degree = round(2 * math.log(largest[-1] / largest[0], _SIZES[-1])) / 2
    for size, result in zip(_SIZES, results[1:], strict=True):
        expected = results[0] * size**degree
        if result.shape != expected.shape or float((result - expected).abs().max()) > _ALIKE * float(
            expected.abs().max()
        ):
            return None
    return degree


def _run(target: Any, args: Any, kwargs: Any, value: torch.Tensor) -> torch.Tensor | None:
    """The finite entries of the first result of a call, others as 0; None if there are none or it does not run."""

    def given(item: Any) -> Any:
        if isinstance(item, tuple):
            return [given(part) for part in item]
        return value.clone() if item is _TENSOR else item

    try:
        with torch.no_grad():
            result = target(*[given(item) for item in args], **{key: given(item) for key, item in kwargs})
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    first = result[0] if isinstance(result, (list, tuple)) and result else result
    if not isinstance(first, torch.Tensor) or not first.is_floating_point() or not first.numel():
        return None
    return first.double().nan_to_num(0.0, 0.0, 0.0)
