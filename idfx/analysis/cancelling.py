"""Sums in which what is added is taken away again: the straight-through estimator, x + (q(x) − x).detach().

A sum is written as a combination of terms that are no sums; where all but one of them cancel, its value is that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from idfx.analysis.terms import DataflowNode
from idfx.ops.kinds import Kind

Combination = Mapping[int, float]  # the coefficient of each term

_MOST = 8  # terms of a combination; a longer sum is one of its own
_EXACT = 12  # decimal digits of a coefficient, so that 1 − 0.1 + 0.1 is 1
_NEAREST = 256  # terms between a value and its rounded form; as a rule it is a handful


class Cancelled(NamedTuple):
    """What is left of a sum: `value` is equal to it, `rounded` what `value` stands for, if it is made of that.

    `inside` are the terms that only wrote the sum.
    """

    value: int
    rounded: int | None
    inside: frozenset[int]


class Combinations:
    """The combinations of the terms of a data flow, each found once, in the order of execution.

    Args:
        terms: of the data flow; it may still grow.
    """

    def __init__(self, terms: Sequence[DataflowNode]) -> None:
        self._terms = terms
        self._found: dict[int, tuple[dict[int, float], frozenset[int]]] = {}

    def cancelled(self, position: int) -> Cancelled | None:
        """Return what is left of a sum where all but one of its terms cancel, else None.

        Args:
            position: of the sum.
        """
        combination, inside = self._of(position)
        left = [term for term, factor in combination.items() if round(factor, _EXACT)]
        if len(left) != 1 or round(combination[left[0]], _EXACT) != 1.0 or left[0] == position:
            return None
        if not any(self._terms[term].tag == "detached" for term in inside):
            return None  # a value that is its own gradient's: x + (pool(x) − x) is a block, and no estimator
        (value,) = left
        gone = [term for term, factor in combination.items() if not round(factor, _EXACT)]
        if self._terms[value].shape != self._terms[position].shape:
            return None
        rounded = next((term for term in gone if self._is_zero_with(value, term)), None)
        return Cancelled(value, rounded, inside - {position})

    def _of(self, position: int) -> tuple[dict[int, float], frozenset[int]]:
        """The combination that a term is, and the sums and factors that were taken apart for it."""
        if position not in self._found:
            self._found[position] = self._read(position)
        return self._found[position]

    def _read(self, position: int) -> tuple[dict[int, float], frozenset[int]]:
        term = self._terms[position]
        found: dict[int, float] = {}
        inside = {position}
        times = term.factor if term.kind is Kind.SCALE and term.factor is not None else 1.0
        for operand in term.operands if _is_linear(term) else ():
            parts, within = self._of(operand)
            inside |= within
            for part, factor in parts.items():
                found[part] = found.get(part, 0.0) + factor * times
        return (found, frozenset(inside)) if 0 < len(found) <= _MOST else ({position: 1.0}, frozenset())

    def _is_zero_with(self, value: int, cause: int) -> bool:
        """Whether a term is zero where another one before it is."""
        if not cause < value < cause + _NEAREST:
            return False
        zero = {cause}
        for position in range(cause + 1, value + 1):
            term = self._terms[position]
            if term.kind.vanishes([operand in zero for operand in term.operands]):
                zero.add(position)
        return value in zero


def _is_linear(term: DataflowNode) -> bool:
    """Whether each entry of a term is a combination, with known factors, of the same entries of its operands."""
    if term.kind is Kind.SUM:
        return True
    return (term.kind is Kind.SCALE and term.factor is not None) or (
        term.kind is Kind.MOVE and term.tag in ("copy", "detached")
    )
