"""Which outputs of a weight reach the model's outputs through one join alone.

As a rule all do or none, and post-dominance tells. Where slices of one weight's output go different ways (part of
the channels carries a shortcut, the rest goes on alone), rows are followed by running the moves themselves on a
tensor of row numbers, so that no operator's way with axes has to be told a second time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx

from idfx.capture import overwritten
from idfx.flow import Flow
from idfx.paths import Paths

Ranges = tuple[tuple[int, int], ...]


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
    """Answers, for a weight site and a join, which rows are the join's own; each answer is computed once."""

    def __init__(self, flow: Flow, paths: Paths) -> None:
        self._flow, self._paths = flow, paths
        self._known: dict[tuple[int, int], Ranges | None] = {}

    def rows(self, term: int, join: int) -> Ranges | None:
        """Return () if all rows of the site reach the outputs through the join alone, ranges if some do, else None."""
        if self._paths.only_through(term, join):
            return ()
        if (term, join) not in self._known:
            self._known[term, join] = self._some(term, join)
        return self._known[term, join]

    def _some(self, term: int, join: int) -> Ranges | None:
        labels = self._labels(term)
        if labels is None:
            return None
        own: set[int] = set()
        others: set[int] = set()
        stack: list[tuple[int, Any]] = [(term, labels)]
        while stack:
            position, here = stack.pop()
            if position in self._flow.outputs:
                others |= _rows(here)
            for user in self._flow.users.get(position, ()):
                after = None if user == join else self._through(position, user, here)
                if user == join or (after is not None and self._paths.only_through(user, join)):
                    own |= _rows(here if after is None else after)
                elif after is not None:
                    stack.append((user, after))
                elif self._paths.reaches_output(user):
                    others |= _rows(here)
        return ranges({row - 1 for row in own - others if row > 0}) or None

    def _labels(self, term: int) -> torch.Tensor | None:
        """The number of the weight's row, from 1, at each entry of the site's output; 0 is for padding."""
        found = self._flow.terms[term]
        layout = found.layouts[1] if found.kind == "contract" else None
        if layout is None or found.shape is None or layout.batch_axes:
            return None
        axis = len(found.shape) - 1 - len(layout.tap_axes)
        if axis < 0:
            return None
        shape = [1] * len(found.shape)
        shape[axis] = found.shape[axis]
        return torch.arange(1, found.shape[axis] + 1).view(shape).expand(found.shape)

    def _through(self, position: int, user: int, labels: Any) -> Any:
        """The labels behind one more term, None where rows are mixed or meet other data."""
        term = self._flow.terms[user]
        if self._flow.nodes[term.node].target is overwritten:
            return self._kept(position, user, labels)
        if position not in term.operands or len(self._flow.sources(user)) != 1:
            return None
        if term.kind == "move":
            return self._moved(position, user, labels)
        same = isinstance(labels, torch.Tensor) and term.shape == tuple(labels.shape)
        return labels if same and term.kind in ("scale", "map", "product", "sum") else None

    def _kept(self, position: int, user: int, labels: Any) -> Any:
        """The labels of what a write in place leaves as it was: those of the whole, nothing where it wrote."""
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

    def _moved(self, position: int, user: int, labels: Any) -> Any:
        """Run the operator behind a move on the labels, which are a list where it splits."""
        flow = self._flow
        node, source = flow.nodes[flow.terms[user].node], flow.nodes[flow.terms[position].node]
        if flow.positions.get(node.name) != user or node.all_input_nodes != [source]:
            same = isinstance(labels, torch.Tensor) and flow.terms[user].shape == tuple(labels.shape)
            return labels if same else None
        return _run(node, labels)


def _run(node: torch.fx.Node, labels: Any) -> Any:
    """Run an operator of one tensor on labels."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda _: labels)
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)


def _rows(labels: Any) -> set[int]:
    parts = labels if isinstance(labels, (list, tuple)) else (labels,)
    return {row for part in parts for row in part.unique().tolist()}
