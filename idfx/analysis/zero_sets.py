"""What silences a branch: the parameters that, at zero, make a term zero.

One recursion over what each kind of term does with a zero (`idfx.ops.semantics`), from the join back to the parameters
and no further than the fork, so that its cost is at most that of the region.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from idfx.analysis.dataflow import Dataflow, DataflowNode
from idfx.ops.kinds import Kind, Zero

_DEEPEST = 100  # terms that are followed back from a join to their parameters, call by call; as a rule a handful

_LEAST = 1e-8  # what a normalisation must add to what it divides by, so that the almost zero before it stays small
_MOST = 16  # ends of which some may turn out not to be needed; more are left as they are

# Concatenation of lists as a tree of pairs, flattened once at the end: unions along a chain stay linear.
Tree = Any


def _both(one: Tree, other: Tree) -> Tree:
    """The leaves of two trees; an empty one adds nothing to walk through."""
    return (one, other) if one and other else one or other


def flatten(tree: Tree) -> list[Any]:
    """Return the leaves of a tree of tuples, in order, each once."""
    if not tree:
        return []
    leaves: dict[Any, None] = {}
    stack = [tree]
    while stack:
        top = stack.pop()
        if isinstance(top, tuple):
            stack.extend(reversed(top))
        else:
            leaves[top] = None
    return list(leaves)


@dataclass(frozen=True, slots=True)
class ZeroedParameter:
    """A parameter that silences, and the term at which it acts."""

    parameter: str
    term: int


@dataclass(eq=False, slots=True)
class ZeroSet:
    """How a term is zeroed_biases: `ends` are to be zero, and `zeroed_biases` (biases and shifts behind them) too.

    `scales` are the scale parameters passed on the way. `weights`: all ends are weights. `normalised`: a normalisation
    stands behind the ends, so that only an exact zero survives. `gain`: the most that what stands behind the ends, but
    for the scales, multiplies by; None where that has no bound that the graph tells. `obstacle`, if not empty, says
    why there is no such set.
    """

    ends: Tree = ()
    scales: Tree = ()
    zeroed_biases: Tree = ()
    normalised: bool = False
    obstacle: str = ""
    weights: bool = True
    gain: float | None = 1.0

    @property
    def clean(self) -> bool:
        """Whether the ends exist and what is small there stays small."""
        return not self.obstacle and not self.normalised


def everything(cuts: Iterable[ZeroSet]) -> ZeroSet:
    """Return the cut that silences all: the union, or the first obstacle."""
    ends: Tree = ()
    scales: Tree = ()
    silenced: Tree = ()
    normalised, weights = False, True
    gain: float | None = 0.0
    for cut in cuts:
        if cut.obstacle:
            return cut
        gain = None if gain is None or cut.gain is None else max(gain, cut.gain)
        ends, scales, silenced = _both(ends, cut.ends), _both(scales, cut.scales), _both(silenced, cut.zeroed_biases)
        normalised, weights = normalised or cut.normalised, weights and cut.weights
    return ZeroSet(ends, scales, silenced, normalised, weights=weights, gain=gain)


def _times(term: DataflowNode, cut: ZeroSet) -> float | None:
    """How much larger what a cut silences can be behind a term that passes it on.

    A normalisation divides x − mean(x), at most twice as large as x, by √(variance + eps) ≥ √eps, be the variance the
    data's own or a running one.
    """
    if cut.gain is None or term.kind in (Kind.MIX, Kind.MAP):
        return None
    if term.kind in (Kind.NORM, Kind.SCALE) and term.eps:
        return cut.gain * 2 / math.sqrt(term.eps)
    if term.kind is Kind.SCALE:
        return None if term.factor is None else cut.gain * abs(term.factor)
    return cut.gain


class _TooDeepError(Exception):
    """A way from a join back to its ends is longer than calls may nest."""


class ZeroSetFinder:
    """The cuts of the terms of one region, of the parameter expressions that enter it, and of its inner joins.

    Args:
        flow: the data flow.
        length: how direct the way from the inputs to each term is (`idfx.analysis.paths`).
        inner: the cut of the branch of each join found before, and the join's shortcut operand.
        prefer_scales: take a scale parameter as the end where there is one, rather than a weight before it.
    """

    def __init__(
        self,
        flow: Dataflow,
        length: Mapping[int, int],
        inner: Mapping[int, tuple[ZeroSet, int]],
        prefer_scales: bool = False,
    ) -> None:
        self.chosen: dict[int, int] = {}
        self._flow, self._terms, self._length = flow, flow.terms, length
        self._region: Sequence[int] = ()
        self._inside: set[int] = set()
        self._forked: set[int] | None = None
        self._names = flow.capture.parameters
        self._inner = inner
        self._prefer_scales = prefer_scales
        self._known: dict[int, ZeroSet] = {}
        self._own: Callable[[int], bool] = lambda position: False
        self._fork = -1
        self._depth = 0
        self._expressions: dict[int, ZeroSet] = {}

    def of(self, region: Sequence[int], wanted: Sequence[int], fork: int, own: Callable[[int], bool]) -> ZeroSet:
        """Return the cut of all the wanted terms; `region` in order of execution.

        `own` says of a term whether it serves nothing but the branch: of several ends such are taken, and from before
        the region no others.
        """
        self._known, self._own, self._fork = {}, own, fork
        self._region, self._inside, self._forked = region, set(region), None
        try:
            cut = everything([self._get(position) for position in wanted])
        except _TooDeepError:  # from the fork on, then
            for position in region:
                self._known[position] = self._cut(position)
            cut = everything([self._get(position) for position in wanted])
        return self._fewest(region, wanted, cut)

    def _carries_fork(self, position: int) -> bool:
        """Whether a term of the region depends on the fork."""
        if self._forked is None:
            self._forked = {self._fork}
            for term in self._region:
                if not self._forked.isdisjoint(self._flow.sources[term]):
                    self._forked.add(term)
        return position in self._forked

    def _fewest(self, region: Sequence[int], wanted: Sequence[int], cut: ZeroSet) -> ZeroSet:
        """Leave out the ends, the last ones first, that only see what the others have made zero."""
        leaves = [] if cut.obstacle else flatten(cut.ends)
        if not 1 < len(leaves) <= _MOST:
            return cut
        silenced = {leaf.parameter for leaf in flatten(cut.zeroed_biases)}
        for term in sorted({leaf.term for leaf in leaves}, reverse=True):
            rest = [other for other in leaves if other.term != term]
            if rest and self._silent(region, wanted, {other.term for other in rest}, silenced):
                leaves = rest
        return replace(cut, ends=tuple(leaves))

    def _silent(self, region: Sequence[int], wanted: Sequence[int], closed: set[int], silenced: set[str]) -> bool:
        """Whether the wanted terms are zero, given the terms whose parameter is."""
        zero = set(closed)
        for position in region:
            term = self._terms[position]
            values = [operand for operand in term.operands if self._terms[operand].data]
            found = [operand in zero for operand in values]
            if term.kind.vanishes(found):
                added = () if term.kind.zero is not Zero.ALL else set(term.operands) - set(values)
                cuts = [self._look_up(operand) for operand in added]
                if all(not c.obstacle and {leaf.parameter for leaf in flatten(c.ends)} <= silenced for c in cuts):
                    zero.add(position)
        return zero.issuperset(wanted)

    def _get(self, position: int) -> ZeroSet:
        if not self._terms[position].data:
            return self.expression(position)
        if position not in self._known:
            inside = position in self._inside
            if inside and self._depth >= _DEEPEST:
                raise _TooDeepError
            if inside or (self._depth < _DEEPEST and self._serves(position)):
                self._depth += 1
                try:
                    self._known[position] = self._cut(position)
                finally:
                    self._depth -= 1
        return self._known.get(position, ZeroSet(obstacle="the fork reaches the join without crossing a parameter"))

    def expression(self, position: int) -> ZeroSet:
        """Return the cut of a term that carries no data: a parameter, or something made of parameters."""
        stack = [position]
        while stack:
            top = stack[-1]
            missing = [o for o in self._terms[top].operands if o not in self._expressions]
            if missing:
                stack.extend(missing)
            else:
                self._expressions.setdefault(stack.pop(), self._cut(top))
        return self._expressions[position]

    def _serves(self, position: int) -> bool:
        return position != self._fork and self._own(position)

    def _look_up(self, position: int) -> ZeroSet:
        return self._expressions[position] if position in self._expressions else self._get(position)

    def _cut(self, position: int) -> ZeroSet:
        term = self._terms[position]
        if position in self._inner:
            branch, shortcut = self._inner[position]
            return everything((self._look_up(shortcut), branch))
        if term.kind in _OPERATIONS:
            return _OPERATIONS[term.kind](self, position)
        if term.kind is Kind.ZERO:
            return ZeroSet()
        if term.kind is Kind.PARAMETER:
            return ZeroSet(ends=(ZeroedParameter(self._names[term.node], position),), weights=False)
        if term.kind.zero is Zero.OPERAND:
            found = [self._look_up(operand) for operand in term.operands]
            if term.data:
                own = zip(term.operands, found, strict=True)
                found = [cut if self._terms[o].data else self._at(cut, position) for o, cut in own]
            cut = found[0] if len(found) == 1 else everything(found)
            if not cut.obstacle and cut.gain != (gain := _times(term, cut)):
                cut = replace(cut, gain=gain)
            if term.kind is not Kind.NORM:
                return cut
            if term.data and not cut.obstacle and (term.eps or 0.0) < _LEAST:
                return ZeroSet(
                    obstacle=f"{term.node} divides by the size of what it gets and adds next to nothing to it"
                )
            if not term.data and not term.eps:
                return ZeroSet(obstacle=f"{term.node} divides a weight by its own norm, which undoes any size")
            return replace(cut, normalised=True)
        return ZeroSet(obstacle=term.kind.obstacle.format(node=term.node))

    def _sum(self, position: int) -> ZeroSet:
        """All data operands are to be zero by their ends, and what is added to them or put beside them too."""
        terms = self._terms
        data = [operand for operand in terms[position].operands if terms[operand].data]
        if not data:
            return everything(self._look_up(operand) for operand in terms[position].operands)
        cut = everything(self._look_up(operand) for operand in data)
        added = everything(self._look_up(o) for o in terms[position].operands if not terms[o].data)
        if cut.obstacle or added.obstacle:
            return ZeroSet(obstacle=cut.obstacle or f"{added.obstacle}, and it joins the branch")
        silenced = _both(cut.zeroed_biases, added.ends)
        return ZeroSet(cut.ends, cut.scales, silenced, cut.normalised, weights=cut.weights, gain=cut.gain)

    def _contract(self, position: int) -> ZeroSet:
        """The weight, or else what it is multiplied with."""
        data, weight = self._terms[position].operands
        own = self._at(self._look_up(weight), position, True)
        if not self._terms[position].data:
            own = replace(own, gain=None)
        if not own.obstacle:
            return own
        other = self._look_up(data)
        return own if other.obstacle else replace(other, gain=None)

    def _product(self, position: int) -> ZeroSet:
        """One factor: what the fork becomes, if a weight ends it, else a scale parameter, else whatever is left."""
        terms = self._terms
        operands = terms[position].operands
        factors = [self._look_up(operand) for operand in operands]
        if not terms[position].data and self._divides(operands, factors):
            return ZeroSet(obstacle=f"{terms[position].node} divides a weight by its own norm, which undoes any size")
        reciprocal = any(terms[o].kind == "gate" and terms[o].tag == "reciprocal" for o in operands)
        ranked: list[tuple[tuple[int, int, int], int, ZeroSet]] = []
        for operand, cut in zip(operands, factors, strict=True):
            if terms[operand].data:
                passed = [o for o in operands if not terms[o].data and not self._look_up(o).obstacle]
                crossed = tuple(self._look_up(o).ends for o in passed)
                rank = 3 if not self._carries_fork(operand) else 1 if cut.weights else 2
                order = rank, self._length.get(operand, 0), operand
                normalised = cut.normalised or reciprocal
                gain = cut.gain if len(passed) == len(operands) - 1 else None
                scaled = ZeroSet(
                    cut.ends, (cut.scales, crossed), cut.zeroed_biases, normalised, cut.obstacle, cut.weights, gain
                )
                ranked.append((order, operand, scaled))
            else:
                most = -1 if terms[position].data else math.prod(terms[operand].shape or ())
                most = most if self._prefer_scales or terms[position].data else -most
                own = self._at(cut, position)
                if terms[position].tag == "norm scale":  # its input exists only inside the operator
                    other = next(o for o in operands if o != operand)
                    own = replace(own, gain=_times(terms[other], own))
                elif not terms[position].data:  # it multiplies a weight, of any size
                    own = replace(own, gain=None)
                ranked.append(((0 if self._prefer_scales else 2, most, operand), operand, own))
        ranked.sort(key=lambda candidate: candidate[0])

        def alone(cut: ZeroSet) -> bool:
            return cut.clean and all(self._own(leaf.term) for leaf in flatten(cut.ends))

        for accept in (alone, lambda cut: cut.clean, lambda cut: not cut.obstacle):
            for _, operand, cut in ranked:
                if accept(cut):
                    self.chosen[position] = operand
                    return cut
        return ranked[0][2]

    def _divides(self, operands: Sequence[int], factors: Sequence[ZeroSet]) -> bool:
        """Whether one factor is the reciprocal of something made of a parameter that silences another."""
        for divisor in operands:
            if self._terms[divisor].tag == "reciprocal":
                inside = self._parameters(divisor)
                others = (cut for operand, cut in zip(operands, factors, strict=True) if operand != divisor)
                if any(leaf.parameter in inside for cut in others for leaf in flatten(cut.ends)):
                    return True
        return False

    def _parameters(self, position: int) -> set[str]:
        found: set[str] = set()
        stack = [position]
        while stack:
            term = self._terms[stack.pop()]
            if term.kind is Kind.PARAMETER:
                found.add(self._names[term.node])
            stack.extend((*term.operands, *term.gates))
        return found

    @staticmethod
    def _at(cut: ZeroSet, position: int, weights: bool = False) -> ZeroSet:
        """Let the ends of an expression act where it meets the data."""
        leaves = tuple(ZeroedParameter(leaf.parameter, position) for leaf in flatten(cut.ends))
        return ZeroSet(leaves, cut.scales, cut.zeroed_biases, cut.normalised, cut.obstacle, weights, cut.gain)


_OPERATIONS = {
    Kind.PRODUCT: ZeroSetFinder._product,
    Kind.CONTRACT: ZeroSetFinder._contract,
    Kind.SUM: ZeroSetFinder._sum,
    Kind.CONCAT: ZeroSetFinder._sum,
}
