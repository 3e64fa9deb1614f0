"""Which outputs of a weight reach the model's outputs only through one join.

Usually all do or none, which post-dominance decides. If slices of one weight's output take different paths (some
channels carry a shortcut, the others do not), rows are followed by running the moves themselves on a tensor of row
numbers, so that the effect of an operator on axes need not be described a second time.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.paths import Paths
from idfx.capture.graph import overwritten
from idfx.ops.kinds import Entries, Kind

Ranges = tuple[tuple[int, int], ...]

_ENTRY_BY_ENTRY = frozenset(kind for kind in Kind if kind.entries is Entries.SAME and kind.can_be_zero)


def ranges(rows: set[int]) -> Ranges:
    """Return a set of numbers as increasing half-open ranges.

    Example:
        >>> ranges({0, 1, 2, 7})
        ((0, 3), (7, 8))
    """
    found: list[list[int]] = []
    for row in sorted(rows):
        if found and found[-1][1] == row:
            found[-1][1] = row + 1
        else:
            found.append([row, row + 1])
    return tuple((start, stop) for start, stop in found)


class Exclusive:
    """Finds, for a weight site and a join, the rows that belong to the join alone."""

    def __init__(self, flow: Dataflow, paths: Paths) -> None:
        self._flow, self._paths = flow, paths

    def rows(self, term: int, join: int, chosen: Mapping[int, int], shortcut: int | None = None) -> Ranges | None:
        """Return () if all rows of a site make the join zero and reach the outputs only through it, ranges if some do.

        None says that there are no such rows. Rows that only gate the branch are not among them: `chosen` has the
        factor that makes each product zero. Nor are rows that reach the join by its shortcut as well, which they would
        make zero with the branch.
        """
        alone = self._paths.only_through(term, join)
        whole = alone and not self._parts(term, join)
        return () if whole else self._some(term, join, chosen, alone, shortcut)

    def _parts(self, term: int, join: int) -> bool:
        """Whether the output of a site takes more than one path before the join."""
        while term != join:
            users = self._flow.users.get(term, ())
            if len(users) != 1:
                return True
            if len(self._flow.sources[users[0]]) != 1:
                return False
            term = users[0]
        return False

    def _some(
        self, term: int, join: int, chosen: Mapping[int, int], alone: bool, shortcut: int | None
    ) -> Ranges | None:
        """Follow the rows in the order of execution: entry by entry through moves, as a set where they are mixed.

        Written by hand: networkx follows nodes, not what each of them holds.
        """
        labels = self._labels(term)
        if labels is None:
            return () if alone else None
        own: set[int] = set()
        others: set[int] = set()
        here: dict[int, Any] = {term: labels}
        heap = [term]
        while heap:
            position = heapq.heappop(heap)
            state = here.pop(position)
            if position in self._flow.outputs:
                others |= _rows(state)
            for user in self._flow.users.get(position, ()):
                if user == join and position == shortcut:
                    others |= _rows(state)
                    continue
                if user == join:
                    own |= _rows(state)
                    continue
                if self._steers(position, user, chosen):
                    continue
                after = None if isinstance(state, set) else self._through(position, user, state)
                if after is None:
                    if not self._paths.only_through(user, join):
                        others |= _rows(state) if self._paths.reaches_output(user) else set()
                        continue
                    after = _rows(state)
                if user in here:
                    here[user] = _rows(here[user]) | _rows(after)
                else:
                    here[user] = after
                    heapq.heappush(heap, user)
        found = {row - 1 for row in own - others if row > 0}
        if len(found) == int(labels.max()):
            return ()
        return ranges(found) or (() if alone else None)

    def arriving(self, term: int, target: int) -> Ranges | None:
        """Return the rows of a site that another term is made of, None where they cannot be followed.

        Where rows are mixed with each other (rotary positions, a normalisation), all of them go on.

        Args:
            term: the weight site.
            target: a later term, with no other weight in between.
        """
        labels = self._labels(term)
        here: dict[int, Any] = {} if labels is None else {term: labels}
        heap, rows = [*here], 0 if labels is None else int(labels.max())
        while heap:
            position = heapq.heappop(heap)
            state = here.pop(position)
            if position == target:
                return ranges({row - 1 for row in _rows(state) if row > 0})
            for user in self._flow.users.get(position, ()):
                after = self._onwards(position, user, state, rows) if user <= target else None
                if after is not None and user in here:
                    here[user] = _rows(after) | _rows(here[user])
                elif after is not None:
                    here[user] = after
                    heapq.heappush(heap, user)
        return None

    def _onwards(self, position: int, user: int, state: Any, count: int) -> Any:
        """The labels after one more term, as a set where it mixes rows; None behind another weight.

        None also where an unknown part is selected, unless it is one of rows that were selected before they were mixed.
        """
        term = self._flow.terms[user]
        after = None if isinstance(state, set) else self._through(position, user, state)
        known = isinstance(state, set) and len(state) < count
        if after is None and term.kind is not Kind.CONTRACT and (term.kind is not Kind.MOVE or known):
            return _rows(state)
        return after

    def _steers(self, position: int, user: int, chosen: Mapping[int, int]) -> bool:
        """Whether a value only gates another value at a term: a gate, or the factor that does not make it zero."""
        term = self._flow.terms[user]
        if position not in term.operands or term.kind == "gate":
            return True
        return term.kind == "product" and chosen.get(user, position) != position

    def _labels(self, term: int) -> torch.Tensor | None:
        """The number of the weight's row, from 1, at each entry of the site's output; 0 is for padding."""
        found = self._flow.terms[term]
        read = found.readings[1] if found.kind == "contract" else None
        if read is None or found.shape is None or read.layout.batch_axes or -min(read.axes) > len(found.shape):
            return None
        number = torch.zeros((), dtype=torch.int64)
        for axis in read.axes:
            size = found.shape[axis]
            number = number * size + torch.arange(size).view(size, *[1] * (-1 - axis))
        return (number + 1).expand(found.shape)

    def _through(self, position: int, user: int, labels: Any) -> Any:
        """The labels after one more term, None where rows are mixed with each other or with other data."""
        term = self._flow.terms[user]
        if self._flow.nodes[term.node].target is overwritten:
            return self._kept(position, user, labels)
        if position not in term.operands:
            return None
        if len(self._flow.sources[user]) != 1:
            entrywise = (term.kind == "product" and term.tag in ("scale", "share")) or term.kind == "norm"
            return _broadcast(labels, term.shape) if entrywise else None
        if term.kind == "move":
            return self.moved(position, user, labels)
        same = isinstance(labels, torch.Tensor) and term.shape == tuple(labels.shape)
        return labels if same and term.kind in _ENTRY_BY_ENTRY else None

    def _kept(self, position: int, user: int, labels: Any) -> Any:
        """The labels of what an in-place write leaves unchanged: those of the whole, nothing where it wrote."""
        flow = self._flow
        whole, write = flow.nodes[flow.terms[user].node].args
        assert isinstance(whole, torch.fx.Node) and isinstance(write, torch.fx.Node)
        if flow.positions.get(whole.name) != position or not isinstance(labels, torch.Tensor) or not write.args:
            return None
        views: list[torch.fx.Node] = []
        target: Any = write.args[0]
        while target is not whole:
            if not isinstance(target, torch.fx.Node) or len(target.all_input_nodes) != 1:
                return None
            views.append(target)
            target = target.all_input_nodes[0]
        kept = labels.clone()
        part: Any = kept
        for node in reversed(views):
            part = _run(node, part)
        if not isinstance(part, torch.Tensor) or part.untyped_storage()._cdata != kept.untyped_storage()._cdata:
            return None
        part.zero_()
        return kept

    def moved(self, position: int, user: int, labels: Any) -> Any:
        """Return the labels after a move, by running its own operator on them; a list if it splits.

        Args:
            position: the term that the labels belong to.
            user: the move.
            labels: a tensor of numbers in the shape of the term's value, or a list of such.
        """
        flow = self._flow
        if flow.terms[user].tag == "rounded":
            return labels
        if flow.terms[user].tag == "first half":
            axes = flow.terms[user].axes or (-1,)
            return labels.chunk(2, axes[0])[0] if isinstance(labels, torch.Tensor) else None
        node, source = flow.nodes[flow.terms[user].node], flow.nodes[flow.terms[position].node]
        if flow.positions.get(node.name) != user or node.all_input_nodes != [source]:
            same = isinstance(labels, torch.Tensor) and flow.terms[user].shape == tuple(labels.shape)
            return labels if same else None
        return _run(node, labels)


def _broadcast(labels: Any, shape: tuple[int, ...] | None) -> Any:
    """The labels of a product entry by entry with something else, None where they do not fit it."""
    if not isinstance(labels, torch.Tensor) or shape is None or labels.dim() > len(shape):
        return None
    try:
        return labels.expand(shape)
    except RuntimeError:
        return None


def _run(node: torch.fx.Node, labels: Any) -> Any:
    """Run an operator of one tensor on labels; a view that labels repeated without memory do not allow, on a copy.

    None if it takes no whole numbers: view_as_complex, say, makes one entry of two.
    """

    def run(labels: Any) -> Any:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda _: labels)
        assert callable(node.target)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    try:
        try:
            result = run(labels)
        except RuntimeError:
            result = run(labels.contiguous())
    except (RuntimeError, AttributeError):  # labels in a list have no copy
        return None
    if (
        isinstance(result, torch.Tensor) and result.dtype != torch.int64
    ):  # another type: the entries stay where they are
        return labels if isinstance(labels, torch.Tensor) and result.shape == labels.shape else None
    return result


def _rows(labels: Any) -> set[int]:
    """The row numbers among labels; axes along which they are repeated are looked at once."""
    if isinstance(labels, set):
        return labels
    parts = labels if isinstance(labels, (list, tuple)) else (labels,)
    once = (part[tuple(slice(None) if step else 0 for step in part.stride())] for part in parts if part.numel())
    return {row for part in once for row in part.unique().tolist()}
