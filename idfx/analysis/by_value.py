"""Sums and products that are something else by their value than by their operators.

A sum in which all but one term cancel is that term: a straight-through estimator (`idfx.analysis.cancelling`). A value
that is divided by its own size is a normalisation, f(c · x) = f(x) for c > 0, however it is written; one that is then
multiplied by its size again is a function of the value, and no normalisation (`idfx.analysis.degrees`). Where a gate
multiplies each of two values that are added, t · h + c · x with c = 1 − t or a gate of its own, each value passes by a
share: highway and GRU-gated blocks.
"""

from __future__ import annotations

from idfx.analysis.cancelling import Combinations
from idfx.analysis.degrees import Degrees
from idfx.analysis.terms import DataflowNode
from idfx.ops.kinds import Kind

_SIZED = frozenset({Kind.MOVE, Kind.SCALE})
_FUNCTIONS = frozenset({Kind.MOVE, Kind.SCALE, Kind.MAP})


class ByValue:
    """Reads the terms of a data flow while it grows, each once all terms before it are there.

    Args:
        terms: of the data flow; some are replaced.
        degrees: of these terms.
    """

    def __init__(self, terms: list[DataflowNode], degrees: Degrees) -> None:
        self._terms, self._degrees = terms, degrees
        self._combinations = Combinations(terms)
        self.cancelled: set[int] = set()

    def read(self, position: int) -> None:
        """Replace the last term by what it is, if that is something else.

        Args:
            position: of the term.
        """
        term = self._terms[position]
        if term.kind is Kind.SUM:
            self._cancel(position)
            self._share(position)
        elif term.kind is Kind.PRODUCT and term.tag == "scale" and len(set(term.operands)) == 2:
            self._divide(position)

    def _cancel(self, position: int) -> None:
        """Read a sum of which one term is left as that term, or as what that term is the rounded form of."""
        left = self._combinations.cancelled(position)
        if left is None:
            return
        self.cancelled |= left.inside
        value, tag = (left.value, "copy") if left.rounded is None else (left.rounded, "rounded")
        part, term = self._terms[value], self._terms[position]
        self._terms[position] = term._replace(
            kind=Kind.MOVE, operands=(value,), gates=(), tag=tag, data=part.data, parametric=part.parametric
        )

    def _share(self, position: int) -> None:
        """Tag the two products of a sum as shares, value first, if each is a value times a gate."""
        operands = self._terms[position].operands
        shares = [self._shared(operand) for operand in operands] if len(set(operands)) == 2 else []
        if len(shares) == 2 and all(shares):
            for operand, share in zip(operands, shares, strict=True):
                self._terms[operand] = self._terms[operand]._replace(operands=share, tag="share")

    def _shared(self, position: int) -> tuple[int, ...]:
        """The value and the gate of a product of two, () if it is none: one factor is a gate, and the other is not."""
        term = self._terms[position]
        if term.kind is not Kind.PRODUCT or term.tag != "scale" or not all(self._terms[o].data for o in term.operands):
            return ()
        gates = [self._is_gate(operand) for operand in term.operands]
        return () if len(gates) != 2 or gates[0] == gates[1] else term.operands[:: -1 if gates[0] else 1]

    def _is_gate(self, position: int) -> bool:
        """Whether a term is a function of data that is not 0 at 0, or a number beside one: t or 1 − t."""
        term = self._terms[position]
        while term.kind in _SIZED and len(term.operands) == 1:
            term = self._terms[term.operands[0]]
        if term.kind is Kind.SUM:
            data = [o for o in term.operands if self._terms[o].data]
            return len(data) == 1 and len(term.operands) > 1 and self._is_gate(data[0])
        return term.kind is Kind.GATE and term.data and term.tag in ("", "softmax")

    def _divide(self, position: int) -> None:
        """Read a product of a value and one over its size as a norm, and one that undoes this as a function."""
        term = self._terms[position]
        varying = [o for o in term.operands if self._terms[o].data or self._terms[o].parametric]
        divisor = next((o for o in varying if self._behind(o, _SIZED, Kind.GATE, "reciprocal")), None)
        normalised = {value for o in term.operands for value in self._behind(o, _FUNCTIONS, Kind.NORM)}
        if divisor is not None:
            value = term.operands[term.operands[0] == divisor]
            factor, inside = self._factor(value)
            if self._degree((inside, divisor)) == 0:
                self._normalise(position, inside, divisor, factor)
                return
        origin = self._degrees.origin(term.operands) if normalised else None
        if origin in normalised and self._degree(term.operands) == 1:
            self._terms[position] = term._replace(kind=Kind.MAP, operands=(origin,), gates=(), tag="", degree=1.0)

    def _degree(self, factors: tuple[int, ...]) -> float | None:
        """The degree of a product in the term that all of its factors are functions of, None if there is none."""
        origin = self._degrees.origin(factors)
        degrees = [] if origin is None else [self._degrees.of(factor, frozenset((origin,))) for factor in factors]
        found = [degree for degree in degrees if degree is not None]
        return sum(found) if found and len(found) == len(factors) else None

    def _normalise(self, position: int, value: int, divisor: int, factor: int | None) -> None:
        """Make a norm of a product; g · x / |x| is g · (x / |x|)."""
        term = self._terms[position]
        origin = self._degrees.origin((value, divisor))
        least = 0.0 if origin is None else self._degrees.least(divisor, origin)
        eps = least**-2 if least else 0.0
        self._terms[position] = term._replace(kind=Kind.NORM, operands=(value,), gates=(divisor,), tag="", eps=eps)
        if factor is not None:
            self._terms.append(term._replace(operands=(position, factor), gates=()))

    def _factor(self, position: int) -> tuple[int | None, int]:
        """The parameter that multiplies a value elementwise, and the value; None for no parameter."""
        term = self._terms[position]
        data = [operand for operand in term.operands if self._terms[operand].data]
        if term.kind is not Kind.PRODUCT or term.tag != "scale" or len(term.operands) != 2 or len(data) != 1:
            return None, position
        other = term.operands[term.operands[0] == data[0]]
        return (other, data[0]) if self._terms[other].parametric else (None, position)

    def _behind(self, position: int, past: frozenset[Kind], wanted: Kind, tag: str = "") -> tuple[int, ...]:
        """The operands of the wanted term that a term comes from, past those of some kinds; none if it does not."""
        term = self._terms[position]
        while term.kind in past and len(term.operands) == 1:
            term = self._terms[term.operands[0]]
        return term.operands if term.kind is wanted and term.tag == tag else ()
