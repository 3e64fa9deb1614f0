"""The zero set of each kind of term from those of its operands, and the zero sets of terms without data.

One recursion over what the kinds do with a zero (`idfx.ops.kinds`). What carries data is followed within a region of
the graph (`idfx.analysis.zero_search`), by the same rules.
"""

from __future__ import annotations

import abc
import math
from dataclasses import replace

import networkx as nx

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.terms import DataflowNode
from idfx.analysis.zero_sets import ZeroedParameter, ZeroSet, union
from idfx.ops.kinds import Kind, Zero

_UNDONE = "{} divides a weight by its own norm, which undoes any size"


def gain_behind(term: DataflowNode, gain: float | None) -> float | None:
    """Return by how much a term can amplify a small value that it passes on, None if there is no bound.

    A normalisation divides x − mean(x), at most twice as large as x, by √(variance + eps) ≥ √eps, be the variance the
    data's own or a running one.

    Args:
        term: which passes one operand on.
        gain: before it.
    """
    if gain is None or term.kind in (Kind.MIX, Kind.MAP):
        return None
    if term.kind in (Kind.NORM, Kind.SCALE) and term.eps:
        return gain * 2 / math.sqrt(term.eps)
    if term.tag == "rounded":  # half a step away at most, and what is less than half a step becomes zero
        return gain * 2
    if term.kind is Kind.SCALE:
        return None if term.factor is None else gain * abs(term.factor)
    return gain


def behind(term: DataflowNode, zero_set: ZeroSet) -> ZeroSet:
    """Return a zero set with the gain that it has after a term that passes its operand on."""
    gain = gain_behind(term, zero_set.gain)
    return zero_set if zero_set.obstacle or gain == zero_set.gain else replace(zero_set, gain=gain)


class ZeroRules(abc.ABC):
    """The zero set of a term from those of its operands.

    Args:
        flow: the data flow.
        prefer_scales: take a scale parameter as the end where there is one, rather than a weight before it.
    """

    def __init__(self, flow: Dataflow, prefer_scales: bool) -> None:
        self.flow, self.terms, self.prefer_scales = flow, flow.terms, prefer_scales

    @abc.abstractmethod
    def known(self, position: int) -> ZeroSet:
        """Return the zero set of a term."""

    @abc.abstractmethod
    def passed(self, position: int, term: DataflowNode) -> ZeroSet:
        """Return the zero set of a term that passes its operand on."""

    @abc.abstractmethod
    def added(self, position: int, term: DataflowNode) -> ZeroSet:
        """Return the zero set of a sum or a concatenation."""

    @abc.abstractmethod
    def multiplied(self, position: int, term: DataflowNode) -> ZeroSet:
        """Return the zero set of a product, or of a weight and its input."""

    def by_kind(self, position: int) -> ZeroSet:
        """Return the zero set of a term, according to what its kind does with a zero."""
        term = self.terms[position]
        if term.kind is Kind.PARAMETER:
            return ZeroSet((ZeroedParameter(self.flow.capture.parameters[term.node], position),), weights=False)
        if term.kind.zero is Zero.OPERAND:
            return self.passed(position, term)
        if term.kind.zero is Zero.ALL:
            return self.added(position, term)
        if term.kind.zero is Zero.ANY:
            return self.multiplied(position, term)
        return ZeroSet(obstacle=term.kind.obstacle.format(node=term.node))  # none for what is always zero


class Expressions(ZeroRules):
    """The zero sets of terms without data: parameters, and expressions of parameters. Each is found once."""

    def __init__(self, flow: Dataflow, prefer_scales: bool) -> None:
        super().__init__(flow, prefer_scales)
        self._found: dict[int, ZeroSet] = {}

    def known(self, position: int) -> ZeroSet:
        """Return the zero set of a term that carries no data."""
        stack = [position]
        while stack and position not in self._found:
            missing = [o for o in self.terms[stack[-1]].operands if o not in self._found]
            stack.extend(missing)
            if not missing:
                top = stack.pop()
                self._found[top] = self.by_kind(top)
        return self._found[position]

    def shifted(self, position: int) -> ZeroSet:
        """Return the zero set of a term that carries no data; a parameter plus a number is zero at minus the number."""
        inner, added, summed = position, 0.0, False
        while (plus := self.flow.plus(inner)) is not None or self.terms[inner].kind is Kind.MOVE:
            added, summed = added + (plus or 0.0), summed or plus is not None
            operands = self.terms[inner].operands
            inner = next((o for o in operands if self.terms[o].parametric), operands[0])
        if not summed or (added and self.terms[inner].kind is not Kind.PARAMETER):
            return self.known(position)
        found = self.known(inner)  # what is added and taken away again changes nothing
        return replace(found, ends=tuple(replace(leaf, added=added) for leaf in found.leaves())) if added else found

    def passed(self, position: int, term: DataflowNode) -> ZeroSet:
        """Return the zero set of its operand; a norm without eps undoes any size."""
        found = behind(term, union(self.known(operand) for operand in term.operands))
        if term.kind is not Kind.NORM:
            return found
        return replace(found, normalised=True) if term.eps else ZeroSet(obstacle=_UNDONE.format(term.node))

    def added(self, position: int, term: DataflowNode) -> ZeroSet:
        """Return the zero set of all operands together."""
        return union(self.known(operand) for operand in term.operands)

    def multiplied(self, position: int, term: DataflowNode) -> ZeroSet:
        """Return the zero set of a factor, a clean one first: the largest, or the smallest if scales are preferred."""
        if self._is_undone(position, term):
            return ZeroSet(obstacle=_UNDONE.format(term.node))
        sign = 1 if self.prefer_scales else -1
        order = sorted(term.operands, key=lambda o: (sign * math.prod(self.terms[o].shape or ()), o))
        factors = [self._factor(position, term, operand) for operand in order]
        return min(factors, key=lambda factor: (bool(factor.obstacle), factor.normalised))

    def _factor(self, position: int, term: DataflowNode, operand: int) -> ZeroSet:
        """The zero set of one factor; a parameter that is multiplied by another one can have any size."""
        found, gain = self.known(operand).at(position), None
        if term.tag == "norm scale":  # its input exists only inside the operator
            gain = gain_behind(self.terms[next(o for o in term.operands if o != operand)], found.gain)
        return replace(found, gain=gain)

    def _is_undone(self, position: int, term: DataflowNode) -> bool:
        """Whether a division takes the size of what makes a factor zero out of a product."""
        divisors = [o for o in term.operands if self.terms[o].tag == "reciprocal"]
        factors = (self.known(operand) for operand in term.operands if operand not in divisors)
        leaves = {leaf.parameter for factor in factors for leaf in factor.leaves()} if divisors else ()
        return any(self._degree(position, parameter) == 0 for parameter in leaves)

    def _degree(self, position: int, parameter: str) -> float | None:
        """The degree of a term in a parameter, however often it is used."""
        names = self.flow.capture.parameters
        inside = nx.ancestors(self.flow.term_graph, position)
        own = {o for o in inside if self.terms[o].kind is Kind.PARAMETER and names[self.terms[o].node] == parameter}
        return self.flow.degrees.of(position, frozenset(own))
