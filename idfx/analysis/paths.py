"""Paths through the data flow: dominators, the most direct path, what carries the signal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from idfx.analysis.dataflow import Dataflow
from idfx.ops.kinds import Length

ROOT = -1
SINK = -2

NONLINEAR, WEIGHT, SCALE, RESAMPLE = Length.NONLINEAR, Length.WEIGHT, Length.SCALE, Length.RESAMPLE


def immediate_dominators(before: Iterable[tuple[int, Sequence[int]]], root: int) -> dict[int, int]:
    """Return the nearest node that every path from the root to a node runs through, for the nodes that it reaches.

    In topological order one pass is enough: the dominator of a node is the nearest common ancestor of its predecessors
    in the tree of dominators.

    Args:
        before: each node with its predecessors, in topological order.
        root: where the paths begin; its own dominator is itself.

    Source: Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm", 2001, figure 3.

    Example:
        >>> immediate_dominators([(0, (-1,)), (1, (0,)), (2, (0,)), (3, (1, 2))], -1)
        {-1: -1, 0: -1, 1: 0, 2: 0, 3: 0}
    """
    dominator, depth = {root: root}, {root: 0}
    for node, predecessors in before:
        common: int | None = None
        for other in predecessors:
            if other not in dominator:
                continue
            if common is None:
                common = other
            while common != other:
                if depth[common] >= depth[other]:
                    common = dominator[common]
                else:
                    other = dominator[other]
        if common is not None:
            dominator[node], depth[node] = common, depth[common] + 1
    return dominator


class Paths:
    """Dominators and best paths of one data flow, all computed in one pass each way.

    `dominator` maps a data term to the nearest term that every path from the inputs to it runs through, `length`
    to the length of its most direct path from the inputs. That path runs through all its dominators, so the
    length between a term and one of its dominators is the difference of the two.
    """

    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.dominator = self._dominators()
        self.length = self._lengths()
        self._post_dominator = self._post_dominators()
        self.zeroable = self._zeroable()
        self.signal = self._signal()

    def _dominators(self) -> dict[int, int]:
        terms = self.flow.terms
        sources = ((p, (ROOT,) if term.kind == "input" else self.flow.sources[p]) for p, term in enumerate(terms))
        return immediate_dominators(sources, ROOT)

    def _post_dominators(self) -> dict[int, int]:
        users, outputs = self.flow.users, {output for output in self.flow.outputs if self.flow.terms[output].data}
        backwards = range(len(self.flow.terms) - 1, -1, -1)
        found = ((p, (*users.get(p, ()), SINK) if p in outputs else users.get(p, ())) for p in backwards)
        return immediate_dominators(found, SINK)

    def _lengths(self) -> dict[int, int]:
        length = {ROOT: 0}
        for position, (term, sources) in enumerate(zip(self.flow.terms, self.flow.sources, strict=True)):
            if term.kind == "input":
                length[position] = 0
            elif term.data:
                length[position] = min([length[source] + self.step(source, position) for source in sources])
        return length

    def step(self, source: int, position: int) -> int:
        """Return the length of the step from a source into a term."""
        term = self.flow.terms[position]
        if source not in term.operands:
            return NONLINEAR
        if term.kind == "product":
            return NONLINEAR if len(self.flow.sources[position]) > 1 else SCALE
        if term.kind == "move":
            before = self.flow.terms[source].shape
            if term.shape == before:
                return 0
            same = term.shape is None or before is None or math.prod(term.shape) == math.prod(before)
            return 0 if same else RESAMPLE
        return term.kind.length

    def only_through(self, position: int, gate: int) -> bool:
        """Return whether a term reaches the outputs through `gate` alone (or through nothing at all)."""
        while position != gate:
            position = self._post_dominator.get(position, SINK)
            if position == SINK or position > gate:
                return False
        return True

    def reaches_output(self, position: int) -> bool:
        """Return whether a term has a path to an output."""
        return position in self._post_dominator

    def _zeroable(self) -> tuple[bool, ...]:
        """Whether some values of the inputs and parameters make a term zero."""
        terms = self.flow.terms
        zeroable: list[bool] = []
        for term in terms:
            if not term.kind.can_be_zero:
                zeroable.append(False)
            elif term.kind.multiplies:
                zeroable.append(any(zeroable[operand] for operand in term.operands))
            else:
                offset = any(terms[operand].kind == "gate" and not terms[operand].data for operand in term.operands)
                carried = all(zeroable[operand] for operand in term.operands if terms[operand].data)
                zeroable.append(carried and not offset)
        return tuple(zeroable)

    def values(self, position: int) -> tuple[int, ...]:
        """Return the data operands whose value a term passes on: of a product, the factors that can be zero.

        A factor that cannot be zero is a gate of one that can.
        """
        term = self.flow.terms[position]
        operands = tuple(operand for operand in term.operands if self.flow.terms[operand].data)
        if term.kind != "product":
            return operands
        return tuple(operand for operand in operands if self.zeroable[operand]) or operands

    def _signal(self) -> frozenset[int]:
        """The terms whose value reaches an output otherwise than as the gate of another value.

        Whole numbers among the outputs (labels, indices) are made of values and are none, if there are others.
        """
        terms = self.flow.terms
        continuous = {output for output in self.flow.outputs if terms[output].tag != "integer"}
        found = set(continuous or self.flow.outputs)
        for position in range(len(terms) - 1, -1, -1):
            if position in found and not (continuous and terms[position].tag == "integer"):
                found.update(self.values(position))
        return frozenset(found)
