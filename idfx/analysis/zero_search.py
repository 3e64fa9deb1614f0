"""What makes a branch zero: the zero set of its terms at the join, followed back to parameters, at most to the fork.

Each term of a region is visited once, so the cost is at most that of the region. Written by hand: networkx determines
whether a term is reached, not which of its operands must be zero for the term to be zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.graph import reached
from idfx.analysis.terms import DataflowNode
from idfx.analysis.zero_rules import Expressions, ZeroRules, behind, gain_behind
from idfx.analysis.zero_sets import ZeroSet, both, flatten, union
from idfx.ops.kinds import Kind, Zero

_DEEPEST = 100  # terms that are followed back from a join to their parameters, call by call; as a rule a handful
_LEAST = 1e-8  # what a normalisation must add to its divisor, so that values near zero before it stay small
_MOST = 16  # ends of which some may turn out not to be needed; more are left as they are

Rank = tuple[int, int, int]  # of a factor: what it is, how direct the path to it is, its term


class _TooDeepError(Exception):
    """A path from a join back to its ends is longer than calls may nest."""


class ZeroSetFinder:
    """Finds the zero sets of regions, one after the other, the inner ones first.

    Args:
        flow: the data flow.
        length: how direct the path from the inputs to each term is (`idfx.analysis.paths`).
        inner: the zero set of the branch of each join found before, and the join's shortcut operand.
        prefer_scales: take a scale parameter as the end where there is one, rather than a weight before it.
    """

    def __init__(
        self,
        flow: Dataflow,
        length: Mapping[int, int],
        inner: Mapping[int, tuple[ZeroSet, int]],
        prefer_scales: bool = False,
    ) -> None:
        self.chosen: dict[int, int] = {}  # of each product, the factor that silences it
        self.length, self.inner = length, inner
        self.expressions = Expressions(flow, prefer_scales)

    def of(self, region: Sequence[int], wanted: Sequence[int], fork: int, own: Callable[[int], bool]) -> ZeroSet:
        """Return the zero set of all the wanted terms together.

        Args:
            region: the terms between fork and join, in order of execution.
            wanted: what joins the shortcut.
            fork: where the region begins.
            own: says of a term whether it serves nothing but the branch: of several ends such are taken, and from
                before the region no others.
        """
        return _Region(self, region, fork, own).of(wanted)


class _Region(ZeroRules):
    """The search within one region."""

    def __init__(self, finder: ZeroSetFinder, region: Sequence[int], fork: int, own: Callable[[int], bool]) -> None:
        super().__init__(finder.expressions.flow, finder.expressions.prefer_scales)
        self._finder, self._region, self._fork, self._own = finder, region, fork, own
        self._inside = set(region)
        self._found: dict[int, ZeroSet] = {}
        self._depth = 0

    def of(self, wanted: Sequence[int]) -> ZeroSet:
        """Return the zero set of all the wanted terms, without ends that are not needed."""
        try:
            found = union([self.known(position) for position in wanted])
        except _TooDeepError:  # from the fork on, then
            for position in self._region:
                self._found[position] = self.by_kind(position)
            found = union([self.known(position) for position in wanted])
        return self._fewest(wanted, found)

    def known(self, position: int) -> ZeroSet:
        """Return the zero set of a term of the region, or of one that serves it alone or carries no data."""
        if not self.terms[position].data:
            return self._finder.expressions.known(position)
        if position not in self._found:
            inside = position in self._inside
            if inside and self._depth >= _DEEPEST:
                raise _TooDeepError
            if not inside and (self._depth >= _DEEPEST or position == self._fork or not self._own(position)):
                return ZeroSet(obstacle="the fork reaches the join without crossing a parameter")
            self._depth += 1
            try:
                self._found[position] = self.by_kind(position)
            finally:
                self._depth -= 1
        return self._found[position]

    def by_kind(self, position: int) -> ZeroSet:
        """Return the zero set of a term; of a join that is known, that of its shortcut and its branch."""
        if position not in self._finder.inner:
            return super().by_kind(position)
        branch, shortcut = self._finder.inner[position]
        return union((self.known(shortcut), branch))

    def passed(self, position: int, term: DataflowNode) -> ZeroSet:
        """Return the zero set of its operand; a norm makes small values larger."""
        operands = [self.known(o) if self.terms[o].data else self.known(o).at(position) for o in term.operands]
        found = behind(term, operands[0] if len(operands) == 1 else union(operands))
        if term.kind is not Kind.NORM:
            return found
        if not found.obstacle and (term.eps or 0.0) < _LEAST:
            return ZeroSet(obstacle=f"{term.node} divides by the size of its input and adds almost nothing to it")
        return replace(found, normalised=True)

    def added(self, position: int, term: DataflowNode) -> ZeroSet:
        """All data operands must be zero by their ends, and so must values added to or concatenated with them."""
        data = [o for o in term.operands if self.terms[o].data]
        found = union(self.known(o) for o in data or term.operands)
        beside = union(self.known(o) for o in term.operands if data and not self.terms[o].data)
        if found.obstacle or beside.obstacle:
            return ZeroSet(obstacle=found.obstacle or f"{beside.obstacle}, and it joins the branch")
        return replace(found, zeroed_biases=both(found.zeroed_biases, beside.ends))

    def multiplied(self, position: int, term: DataflowNode) -> ZeroSet:
        """Return the zero set of the weight, or otherwise of its input; for a product, of one factor."""
        if term.kind is Kind.PRODUCT:
            return self._product(position, term)
        data, weight = term.operands
        own = self.known(weight).at(position, weights=True)
        if not own.obstacle:
            return own
        other = self.known(data)
        return own if other.obstacle else replace(other, gain=None)

    def _product(self, position: int, term: DataflowNode) -> ZeroSet:
        """One factor: the one with the value of the fork if a weight ends it, else a scale parameter, else any."""
        factors = [
            self._carrier(term, operand) if self.terms[operand].data else self._scale(position, term, operand)
            for operand in term.operands
        ]
        (_, _, operand), found = min(factors, key=lambda factor: (self._quality(factor[1]), factor[0]))
        if not found.obstacle:
            self._finder.chosen[position] = operand
        return found

    def _quality(self, found: ZeroSet) -> int:
        """How well a factor makes a product zero: only by ends of the branch, cleanly, otherwise, not at all."""
        if found.obstacle:
            return 3
        if found.normalised:
            return 2
        return 0 if all(self._own(leaf.term) for leaf in flatten(found.ends)) else 1

    def _carrier(self, term: DataflowNode, operand: int) -> tuple[Rank, ZeroSet]:
        """A factor that carries data, after the parameters that multiply it."""
        found, scales = self.known(operand), [self.known(o) for o in term.operands if not self.terms[o].data]
        crossed = [scale for scale in scales if not scale.obstacle]
        unbounded = any(self.terms[o].kind is Kind.GATE and self.terms[o].tag == "reciprocal" for o in term.operands)
        rank = 3 if operand not in self._forked else 1 if found.weights else 2
        silenced = replace(
            found,
            scales=(found.scales, tuple(scale.ends for scale in crossed)),
            normalised=found.normalised or unbounded,
            gain=found.gain if len(crossed) == len(term.operands) - 1 else None,
        )
        return (rank, self._finder.length.get(operand, 0), operand), silenced

    def _scale(self, position: int, term: DataflowNode, operand: int) -> tuple[Rank, ZeroSet]:
        """A factor that is a parameter, or made of some."""
        found = self._finder.expressions.shifted(operand).at(position)
        if term.tag == "norm scale":  # its input exists only inside the operator
            other = next(o for o in term.operands if o != operand)
            found = replace(found, gain=gain_behind(self.terms[other], found.gain))
        return (0 if self.prefer_scales else 2, -1, operand), found

    @functools.cached_property
    def _forked(self) -> set[int]:
        """The terms of the region that depend on the fork."""
        return set(reached(self.flow.data_graph.subgraph((self._fork, *self._region)), (self._fork,)))

    def _fewest(self, wanted: Sequence[int], found: ZeroSet) -> ZeroSet:
        """Leave out the ends, the last ones first, that only receive values that the others have made zero."""
        leaves = found.leaves()
        if not 1 < len(leaves) <= _MOST:
            return found
        biases = {leaf.parameter for leaf in flatten(found.zeroed_biases)}
        for term in sorted({leaf.term for leaf in leaves}, reverse=True):
            rest = [other for other in leaves if other.term != term]
            if rest and self._are_zero(wanted, {other.term for other in rest}, biases):
                leaves = rest
        return replace(found, ends=tuple(leaves))

    def _are_zero(self, wanted: Sequence[int], closed: set[int], biases: set[str]) -> bool:
        """Whether the wanted terms are zero, given the terms whose parameter is, and what is added to them."""
        zero = set(closed)
        for position in self._region:
            term = self.terms[position]
            values = [operand for operand in term.operands if self.terms[operand].data]
            if term.kind.vanishes([operand in zero for operand in values]):
                beside = () if term.kind.zero is not Zero.ALL else set(term.operands) - set(values)
                if all(self._is_zero_by(operand, biases) for operand in beside):
                    zero.add(position)
        return zero.issuperset(wanted)

    def _is_zero_by(self, operand: int, biases: set[str]) -> bool:
        found = self.known(operand)
        return not found.obstacle and {leaf.parameter for leaf in flatten(found.ends)} <= biases
