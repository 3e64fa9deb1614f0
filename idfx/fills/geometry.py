"""Positions of rows and entries in a weight, or a shard of one, whose layout defines matrices (D_out, D_in)."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from idfx.core.records import Layout
from idfx.fills.folding import Folding

_KEPT = 2**14  # entries: positions in larger weights are not cached


@dataclass(frozen=True)
class Shard:
    """The part of a full tensor that a tensor holds: the full shape, and the offsets of the part."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """The row-major strides of the full tensor."""
        return tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    def span(self, axis: int, size: int, start: int = 0, stop: int | None = None) -> range:
        """Return the indices along an axis of the full tensor within [start, stop) and within a part of this size."""
        first = self.offsets[axis]
        last = first + size
        begin = min(max(first, start), last)
        return range(begin, max(begin, last if stop is None else min(last, stop)))


class Rows(NamedTuple):
    """Rows of matrices, as int64 tensors of shape (n,): output of the weight, row number m, and D_out."""

    output: Tensor
    number: Tensor
    height: Tensor


class EntryIndices(NamedTuple):
    """One entry in each of some rows: its index in the tensor (`where`, one index for each axis), and its numbers.

    `number` is its row-major index in the full tensor, which selects its noise; `row` is the number of its row.
    """

    where: tuple[Tensor, ...]
    number: Tensor
    row: Tensor


Rule = Callable[[Rows, int], Tensor]  # from rows and D_in to the column of the entry in each row


@dataclass(frozen=True)
class Geometry:
    """The interpretation of a part of a weight as matrices: everything that positions of entries depend on, no values.

    A row is identified by its output. With experts, or with groups along the in axis, one output stands for a row in
    each of several matrices, which differ only in their noise. `sizes` are those of the part; `device` is where to
    compute.
    """

    layout: Layout
    order: str
    shard: Shard
    sizes: tuple[int, ...]
    device: torch.device

    @functools.cached_property
    def folding(self) -> Folding:
        """How the full weight is read as matrices."""
        return Folding(self.layout, self.shard.shape, self.order)

    @property
    def copies(self) -> int:
        """The number of matrices in which an output of the part has a row."""
        return math.prod(self.sizes[axis] for axis in self.layout.batch_axes) * self.folding.inner

    def rows(self, start: int, stop: int, apart: bool) -> Rows:
        """Return the rows of the outputs in [start, stop) that are at least partly in this part.

        A new matrix begins with each group and part; with `apart`, also at `start`, and it ends at `stop`.
        """
        axes, shape = self.layout.out_axes, self.shard.shape
        output = torch.zeros((), dtype=torch.int64, device=self.device)
        for axis in axes:
            bounds = () if len(axes) > 1 else (start, stop)
            span = self.shard.span(axis, self.sizes[axis], *bounds)
            line = torch.arange(span.start, span.stop, device=self.device)
            output = (output.unsqueeze(-1) * shape[axis] + line).flatten()
        if len(axes) > 1:
            output = output[(output >= start) & (output < stop)]
        height, _ = self.folding.size
        first = output // height * height
        last = first + height
        if apart:
            first, last = first.clamp(min=start), last.clamp(max=stop)
        return Rows(output, output - first, last - first)

    def _index(self, output: Tensor, column: Tensor) -> list[Tensor]:
        """Return the indices of these entries in the full tensor: one tensor for each axis, to be broadcast.

        Their shape is (rows, *experts, groups along the in axis).
        """
        layout, shape, device = self.layout, self.shard.shape, self.device
        channel, tap = self.folding.channel_and_tap(column)
        depth = 2 + len(layout.batch_axes)

        def along(axis: int, values: Tensor) -> Tensor:
            return values.view([-1 if at == axis else 1 for at in range(depth)])

        groups = along(depth - 1, torch.arange(self.folding.inner, device=device) * self.folding.width)
        index: dict[int, Tensor] = {}
        for axes, number in (
            (layout.out_axes, along(0, output)),
            (layout.in_axes, along(0, channel) + groups),
            (layout.tap_axes, along(0, tap)),
        ):
            for axis in reversed(axes[1:]):
                index[axis] = number % shape[axis]
                number = number // shape[axis]
            if axes:
                index[axes[0]] = number
        for at, axis in enumerate(layout.batch_axes):
            span = self.shard.span(axis, self.sizes[axis])
            index[axis] = along(1 + at, torch.arange(span.start, span.stop, device=device))
        return [index[axis] for axis in range(len(shape))]

    def places(self, start: int, stop: int, apart: bool, rule: Rule) -> EntryIndices:
        """Return the entries of this part that a rule selects in the rows of the outputs in [start, stop)."""
        rows = self.rows(start, stop, apart)
        index = self._index(rows.output, rule(rows, self.folding.size[1]))
        number = sum(map(operator.mul, index, self.shard.strides), torch.zeros_like(rows.output[:1]))
        row = rows.number.view(-1, *[1] * (number.dim() - 1)).expand(number.shape)
        local = [at.expand(number.shape) - offset for at, offset in zip(index, self.shard.offsets, strict=True)]
        cut = [axis for axis, size in enumerate(self.sizes) if size != self.shard.shape[axis]]
        if cut:
            inside = torch.stack([(local[axis] >= 0) & (local[axis] < self.sizes[axis]) for axis in cut]).all(0)
            *local, number, row = (at[inside] for at in (*local, number, row))
        return EntryIndices(tuple(local), number, row)


@functools.lru_cache(maxsize=64)
def _remembered(geometry: Geometry, start: int, stop: int, apart: bool, rule: Rule) -> EntryIndices:
    return geometry.places(start, stop, apart, rule)


def places_of(geometry: Geometry, start: int, stop: int, apart: bool, rule: Rule) -> EntryIndices:
    """Return `Geometry.places`, cached for small weights because blocks repeat their shapes."""
    few = (stop - start) * geometry.copies <= _KEPT
    return (_remembered if few else Geometry.places)(geometry, start, stop, apart, rule)
