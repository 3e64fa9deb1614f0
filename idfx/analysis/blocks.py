"""Data flow → residual blocks: which sums are joins, with their forks, shortcuts and branches.

A sum of two tensors that carry data is a residual join if one operand, the shortcut, comes from a fork by a linear
path, and the other, the branch, depends on the same fork by a less direct path. docs/structure.md has the full
definitions.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import torch

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.graph import ROOT, reached
from idfx.analysis.paths import Paths
from idfx.analysis.rows import Exclusive, Ranges
from idfx.analysis.zero_search import ZeroSetFinder
from idfx.analysis.zero_sets import ZeroedParameter, ZeroSet
from idfx.ops.kinds import Length


@dataclass(frozen=True)
class Side:
    """One operand of a sum as its shortcut, with the terms between fork and join on the other side.

    `context` is what enters those terms from elsewhere than the fork: a second input, a value made before the fork.
    """

    operand: int
    others: tuple[int, ...]
    fork: int
    length: int
    region: tuple[int, ...]
    context: tuple[int, ...] = ()


@dataclass
class Blocks:
    """The residual joins found so far, by term; inner ones are found before the outer.

    `rows` has the rows of each end that are the join's own, as `Exclusive.rows` gives them.
    """

    sides: dict[int, Side] = field(default_factory=dict)
    cuts: dict[int, ZeroSet] = field(default_factory=dict)
    rows: dict[int, dict[ZeroedParameter, Ranges | None]] = field(default_factory=dict)
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    parent: dict[int, int] = field(default_factory=dict)
    stem: dict[int, int] = field(default_factory=dict)
    shortcut: dict[int, int] = field(default_factory=dict)

    def around(self, term: int) -> Iterator[int]:
        """Yield the joins whose branch contains a term, the innermost first."""
        join = self.stem.get(term)
        while join is not None:
            yield join
            join = self.parent.get(join)


class Finder:
    """Examines every sum in order of execution, so that inner joins are known before outer ones.

    Branches end at weights if possible, or, with `prefer_scale_ends`, at scales if possible.
    """

    def __init__(self, flow: Dataflow, paths: Paths, exclusive: Exclusive, prefer_scale_ends: bool = False) -> None:
        self.flow, self.paths, self.blocks = flow, paths, Blocks()
        self.terms = flow.terms
        self.exclusive = exclusive
        self._inner: dict[int, tuple[ZeroSet, int]] = {}
        self._first = ZeroSetFinder(flow, paths.length, self._inner, prefer_scales=prefer_scale_ends)
        self._second = ZeroSetFinder(flow, paths.length, self._inner, prefer_scales=not prefer_scale_ends)

    def find(self) -> Blocks:
        """Return the residual joins, and the other sums of data with the reason why they are not joins."""
        for position, term in enumerate(self.terms):
            if term.kind == "sum" and len(self.flow.addends(position)) >= 2:
                self._look(position)
        return self.blocks

    def _look(self, position: int) -> None:
        addends = self.flow.addends(position)
        sides = [side for addend in addends if (side := self._side(position, addend)) is not None]
        sides.sort(key=lambda side: side.length)
        refusal = self._refusal(position, sides)
        if refusal is None:
            self._join(position, sides[0])
        else:
            self.blocks.refused[position] = refusal

    def _refusal(self, position: int, sides: list[Side]) -> tuple[str, str] | None:
        """The reason why a sum is not a residual join: its kind, and the evidence."""
        if not sides:
            return "fusion", "no operand comes by a linear path from a fork that the other depends on"
        if len(sides) > 1 and sides[0].length == sides[1].length:
            return "parallel", "its operands come from the fork by equally direct paths"
        if not self.paths.reaches_output(position):
            return "unused", "it reaches no output"
        if position not in self.paths.signal:
            return "gate", "it only gates another value"
        side = sides[0]
        if self._apart(position, side):
            return "fusion", "its operands read different entries of their fork, and some reach nothing but this sum"
        branch = self._continuous(side)
        if side.fork not in branch:
            return "index", "the fork reaches the branch only through integers"
        if side.length and not self._continues(side):
            return "modulation", "the branch carries another value, which the fork only gates"
        if not any(self._mixes(term) for term in side.region if term in branch):
            return "elementwise", "nothing between fork and join mixes entries"
        if side.length >= Length.WEIGHT:
            if len(sides) > 1 and side.length // Length.WEIGHT == sides[1].length // Length.WEIGHT:
                return "parallel", "its operands cross equally many weights and nonlinear operators"
            if any(self._is_stream(other) for other in side.others):
                return "fusion", "next to a projection, the other operand is a stream with its own residual joins"
            if not any(self.terms[term].kind == "contract" for term in self._dependent(side) & branch):
                return "parallel", "next to a projection, the branch has no weight of its own"
            if self._upsampled(side.region) and not self._upsampled(self._between(side.fork, side.operand)):
                return "fusion", "next to a projection, the branch returns from another resolution"
        weighted = any(self._weighted(term) for term in side.region)
        if self._negated(side.operand) or (not weighted and any(map(self._negated, side.others))):
            return "difference", "one operand is subtracted"
        return None

    def _continues(self, side: Side) -> bool:
        """Whether the value of the fork reaches the join through the branch, not only as a gate."""
        values: nx.DiGraph[int] = nx.DiGraph()
        values.add_nodes_from((side.fork, *side.others))
        values.add_edges_from((value, term) for term in side.region for value in self._carried(term))
        return not nx.descendants(values, side.fork).union((side.fork,)).isdisjoint(side.others)

    def _apart(self, position: int, side: Side) -> bool:
        """Whether the branch reads other entries of the fork than the shortcut does, some of which nothing else reads.

        Closing it would lose these: two frames of a film, the steps of a recurrence. The halves of a reversible
        coupling are both read further on. Written by hand, because it follows entries, not nodes.
        """
        way, here = [side.operand], side.operand
        while here != side.fork:
            sources = self.flow.sources[here]
            inner = self.blocks.sides.get(here)
            if inner is None and len(sources) != 1:
                return False
            here = sources[0] if inner is None else inner.operand
            way.append(here)
        way.reverse()
        if not self._narrows(way):
            return False
        shape = self.terms[side.fork].shape or ()
        numbers = torch.arange(math.prod(shape)).view(shape)
        taken: Any = numbers
        for source, user in itertools.pairwise(way):
            after = self._selected(source, user, taken)
            if after is None:
                break
            taken = after
        own = torch.zeros(numbers.numel(), dtype=torch.bool)
        own[_joined(taken)] = True
        alone = False
        inside = {*side.region, *side.others}
        stack: list[tuple[int, Any]] = [(side.fork, numbers)]
        while stack:
            source, labels = stack.pop()
            for user in self.flow.users.get(source, ()):
                if user not in inside and user != position:
                    continue
                after = None if user == position else self._selected(source, user, labels)
                if after is not None:
                    stack.append((user, after))
                    continue
                if bool(own[_joined(labels)].any()):
                    return False
                alone = alone or self.paths.only_through(source, position)
        return alone

    def _narrows(self, way: list[int]) -> bool:
        """Whether the first thing that a shortcut does with its fork is to take a part of it."""
        whole = self.terms[way[0]].shape
        for source, user in itertools.pairwise(way):
            term = self.terms[user]
            if term.kind != "move" or len(self.flow.sources[user]) != 1 or source not in term.operands:
                return False
            if whole is not None and term.shape is not None and math.prod(term.shape) < math.prod(whole):
                return True
        return False

    def _selected(self, position: int, user: int, labels: Any) -> Any:
        """The numbers of the entries after a move that only selects and arranges, else None."""
        term = self.terms[user]
        if term.kind != "move" or len(self.flow.sources[user]) != 1 or position not in term.operands:
            return None
        try:
            return self.exclusive.moved(position, user, labels)
        except (RuntimeError, IndexError, TypeError):
            return None

    def _carried(self, position: int) -> tuple[int, ...]:
        """The operands whose value a term passes on; of fixed numbers times a gate (noise times a deviation) none."""
        term = self.terms[position]
        if term.kind == "product":
            gates = [o for o in term.operands if self.terms[o].data and self.terms[o].kind == "gate"]
            fixed = [o for o in term.operands if not self.terms[o].data and not self.terms[o].parametric]
            if gates and len(gates) + len(fixed) == len(term.operands):
                return ()
        return self.paths.values(position)

    def _continuous(self, side: Side) -> set[int]:
        """The terms of the branch that reach the join otherwise than by indices and counts, the fork included."""
        inside = {side.fork, *(term for term in side.region if self.terms[term].tag != "integer")}
        backwards = self.flow.data_graph.subgraph(inside).reverse(copy=False)
        return set(reached(backwards, inside.intersection(side.others)))

    def _dependent(self, side: Side) -> set[int]:
        """The terms of the branch that depend on the fork."""
        return set(reached(self.flow.data_graph.subgraph((side.fork, *side.region)), (side.fork,)))

    def _upsampled(self, positions: Iterable[int]) -> bool:
        return any(self.terms[position].tag == "upsample" for position in positions)

    def _is_stream(self, position: int) -> bool:
        """Whether a term is the output of a residual join, at most moved and resampled."""
        while self.terms[position].kind.resamples and len(self.flow.sources[position]) == 1:
            position = self.flow.sources[position][0]
        return position in self.blocks.sides

    def _weighted(self, position: int) -> bool:
        """Whether a parameter enters at a term."""
        operands = (self.terms[operand] for operand in self.terms[position].operands)
        return any(operand.parametric and not operand.data for operand in operands)

    def _negated(self, position: int) -> bool:
        return self.terms[position].kind == "scale" and (self.terms[position].factor or 0.0) < 0

    def _mixes(self, position: int) -> bool:
        term = self.terms[position]
        if term.kind == "product":
            return term.tag in ("", "attention") and self.paths.step(term.operands[-1], position) == Length.NONLINEAR
        return term.kind.mixes

    def _side(self, position: int, operand: int) -> Side | None:
        """Take one operand as the shortcut: its fork is the nearest term on its linear path that the rest depends on.

        Going back from the other operands in order of execution, only terms after the fork are visited. Written by
        hand: networkx has no search from both operands at once that ends where they first meet.
        """
        others = tuple(other for other in self.flow.addends(position) if other != operand)
        for skip in (True, False):  # first past the inner branches, which costs nothing, then through them
            region: list[int] = []
            heap, seen, fork, length = [-other for other in others], set(others), operand, 0
            while heap:
                nearest = -heap[0]
                while fork > nearest:
                    fork, further = self._back(fork)
                    length += further
                if fork == ROOT or length >= Length.NONLINEAR:
                    break
                if fork == nearest:
                    return Side(operand, others, fork, length, tuple(reversed(region)))
                heapq.heappop(heap)
                region.append(nearest)
                for source in self._behind(nearest, skip):
                    if source not in seen:
                        seen.add(source)
                        heapq.heappush(heap, -source)
            if fork == ROOT or not any(term in self.blocks.sides for term in region):
                break
        return None

    def _back(self, position: int) -> tuple[int, int]:
        """The nearest term before one on its most direct path, and the length of the step."""
        if position in self.blocks.sides:
            return self.blocks.sides[position].operand, 0
        sources = self.flow.sources[position]
        if len(sources) == 1:
            return sources[0], self.paths.step(sources[0], position)
        dominator = self.paths.dominator.get(position, ROOT)
        return dominator, self.paths.length[position] - self.paths.length[dominator]

    def _behind(self, position: int, skip: bool) -> tuple[int, ...]:
        side = self.blocks.sides.get(position)
        return (side.operand, *side.context) if side is not None and skip else self.flow.sources[position]

    def _context(self, side: Side) -> tuple[int, ...]:
        inside = {side.fork, *side.region}
        behind = (source for term in side.region for source in self._behind(term, True))
        return tuple(dict.fromkeys(source for source in behind if source not in inside))

    def _join(self, position: int, side: Side) -> None:
        blocks = self.blocks

        def own(term: int) -> bool:
            return self.paths.only_through(term, position)

        cut = self._first.of(side.region, side.others, side.fork, own)
        rows = self._rows(cut, self._first, position)
        if cut.obstacle or None in rows.values():
            other = self._second.of(side.region, side.others, side.fork, own)
            theirs = self._rows(other, self._second, position)
            if not other.obstacle and None not in theirs.values():
                cut, rows = other, theirs
        blocks.sides[position], blocks.cuts[position] = replace(side, context=self._context(side)), cut
        blocks.rows[position] = rows
        self._inner[position] = (cut, side.operand)
        for term in side.region:
            blocks.stem.setdefault(term, position)
            if term in blocks.sides and term != position:
                blocks.parent.setdefault(term, position)
        for term in self._between(side.fork, side.operand):
            blocks.shortcut.setdefault(term, position)

    def _rows(self, cut: ZeroSet, cuts: ZeroSetFinder, position: int) -> dict[ZeroedParameter, Ranges | None]:
        """The rows of each end that belong to the join alone, given the factors chosen to make its products zero."""
        return {leaf: self.exclusive.rows(leaf.term, position, cuts.chosen) for leaf in cut.leaves()}

    def _between(self, fork: int, operand: int) -> Iterator[int]:
        """The terms on the path from the fork to the shortcut operand, without inner branches."""

        def passes(user: int, source: int) -> bool:
            inner = self.blocks.sides.get(user)
            return source > fork and (inner is None or inner.operand == source)

        backwards = nx.subgraph_view(self.flow.data_graph.reverse(copy=False), filter_edge=passes)
        return reached(backwards, (operand,) if operand > fork else ())


def _joined(labels: Any) -> torch.Tensor:
    """All the numbers among labels."""
    parts = labels if isinstance(labels, (list, tuple)) else (labels,)
    return torch.cat([part.flatten() for part in parts])
