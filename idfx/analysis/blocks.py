"""Data flow → residual blocks: which sums are joins, with their forks, shortcuts and branches.

A sum of two tensors that carry data is a residual join if one operand, the shortcut, comes from a fork by a linear
path, and the other, the branch, depends on the same fork by a less direct path. docs/structure.md has the full
definitions.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.graph import ROOT
from idfx.analysis.paths import Paths
from idfx.analysis.refusals import Candidate, between, refusal
from idfx.analysis.rows import Exclusive, Ranges
from idfx.analysis.sides import Blocks, Side
from idfx.analysis.zero_search import ZeroSetFinder
from idfx.analysis.zero_sets import ZeroedParameter, ZeroSet
from idfx.ops.kinds import Length


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
            elif term.kind == "recurrent" and self._steps(position):
                self.blocks.refused[position] = "fusion", "a recurrent cell adds to its state inside the operator"
        return self.blocks

    def _steps(self, position: int) -> bool:
        """Whether a recurrent operator updates a state with what was made of the same value, as a block would."""
        sources = self.flow.sources[position]
        return len(sources) > 1 and self.paths.common_dominator(sources) != ROOT

    def _look(self, position: int) -> None:
        addends = self.flow.addends(position)
        sides = [side for addend in addends if (side := self._side(position, addend)) is not None]
        sides.sort(key=lambda side: side.length)
        found = refusal(Candidate(self.flow, self.paths, self.blocks, self.exclusive, position, tuple(sides)))
        if found is None:
            self._join(position, sides[0])
        else:
            self.blocks.refused[position] = found

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
        rows = self._rows(cut, self._first, position, side.operand)
        if cut.obstacle or None in rows.values():
            other = self._second.of(side.region, side.others, side.fork, own)
            theirs = self._rows(other, self._second, position, side.operand)
            if not other.obstacle and None not in theirs.values():
                cut, rows = other, theirs
        blocks.sides[position], blocks.cuts[position] = replace(side, context=self._context(side)), cut
        blocks.rows[position] = rows
        self._inner[position] = (cut, side.operand)
        for term in side.region:
            blocks.stem.setdefault(term, position)
            if term in blocks.sides and term != position:
                blocks.parent.setdefault(term, position)
        for term in between(self.flow, blocks, side.fork, side.operand):
            blocks.shortcut.setdefault(term, position)

    def _rows(
        self, cut: ZeroSet, cuts: ZeroSetFinder, position: int, shortcut: int
    ) -> dict[ZeroedParameter, Ranges | None]:
        """The rows of each end that belong to the join alone, given the factors chosen to make its products zero."""
        return {leaf: self.exclusive.rows(leaf.term, position, cuts.chosen, shortcut) for leaf in cut.leaves()}
