"""Where the rows and entries of a weight lie that is read as matrices (D_out, D_in) by its layout, whole or a shard."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from idfx.core.records import Layout

ORDERS = ("centre", "channel", "tap")
_KEPT = 2**14  # entries: places of weights with more of them are not remembered


@dataclass(frozen=True)
class Shard:
    """Which part of a full tensor a tensor holds: the shape of the full one, and where in it this begins."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """The row-major strides of the full tensor."""
        return tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    def span(self, axis: int, size: int, start: int = 0, stop: int | None = None) -> range:
        """Return the indices along an axis of the full tensor that lie in [start, stop) and in a part of this size."""
        first = self.offsets[axis]
        last = first + size
        begin = min(max(first, start), last)
        return range(begin, max(begin, last if stop is None else min(last, stop)))


class Rows(NamedTuple):
    """Rows of matrices, as int64 tensors of shape (n,): output of the weight, row number m, and D_out."""

    output: Tensor
    number: Tensor
    height: Tensor


def centre_order(kernel: Sequence[int]) -> Tensor:
    """Return the row-major numbers of the taps from the centre outwards; that of k taps is (k - 1) // 2."""
    taps = itertools.product(*map(range, kernel))
    far = [sum((at - (size - 1) // 2) ** 2 for at, size in zip(tap, kernel, strict=True)) for tap in taps]
    return torch.tensor(sorted(range(len(far)), key=far.__getitem__))


class EntryIndices(NamedTuple):
    """One entry in each of some rows: `where` it is in the tensor (an index for each axis), and what it is called.

    `number` is its row-major place in the full tensor, which numbers its noise; `row` the number of its row.
    """

    where: tuple[Tensor, ...]
    number: Tensor
    row: Tensor


Rule = Callable[[Rows, int], Tensor]  # from rows and D_in to the column of the entry in each row


@dataclass(frozen=True)
class Geometry:
    """How a part of a weight is read as matrices: all that the places of entries depend on, but no values.

    Rows are given by the output that they are; with experts, or groups along the in axis, one output stands for a row
    in each of several matrices, which are alike but for their noise. `sizes` are those of the part, `device` is where
    to compute.
    """

    layout: Layout
    order: str
    shard: Shard
    sizes: tuple[int, ...]
    device: torch.device

    @property
    def outputs(self) -> int:
        """How many outputs the full weight has."""
        return self.layout.outputs(self.shard.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """(D_out, D_in) of one matrix, 1 for 0."""
        height, columns = self.layout.matrix(self.shard.shape)
        return max(height, 1), max(columns, 1)

    @property
    def copies(self) -> int:
        """How many matrices an output of the part has a row in."""
        experts = math.prod(self.sizes[axis] for axis in self.layout.batch_axes)
        return experts * (self.layout.groups if self.layout.grouped == "in" else 1)

    def rows(self, start: int, stop: int, apart: bool) -> Rows:
        """Return the rows of the outputs in [start, stop) that the part has any of.

        A matrix starts anew with each group and part; with `apart`, also at `start`, and it ends at `stop`.
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
        height, _ = self.matrix
        first = output // height * height
        last = first + height
        if apart:
            first, last = first.clamp(min=start), last.clamp(max=stop)
        return Rows(output, output - first, last - first)

    def _index(self, output: Tensor, column: Tensor) -> list[Tensor]:
        """Return where in the full tensor these entries are: a tensor for each axis, to be broadcast.

        Their shape is (rows, *experts, groups along the in axis).
        """
        layout, shape, device = self.layout, self.shard.shape, self.device
        inner = layout.groups if layout.grouped == "in" else 1
        width = max(layout.inputs(shape) // inner, 1)
        kernel = [shape[axis] for axis in layout.tap_axes]
        if self.order == "channel":
            taps = math.prod(kernel)
            channel, tap = column // taps, column % taps
        else:
            channel, tap = column % width, column // width
        if self.order == "centre":
            tap = centre_order(kernel).to(device)[tap]
        depth = 2 + len(layout.batch_axes)

        def along(axis: int, values: Tensor) -> Tensor:
            return values.view([-1 if at == axis else 1 for at in range(depth)])

        groups = along(depth - 1, torch.arange(inner, device=device) * width)
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
        """Return the entries that a rule names in the rows of the outputs in [start, stop), those of the part alone."""
        rows = self.rows(start, stop, apart)
        index = self._index(rows.output, rule(rows, self.matrix[1]))
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
    """Return what `Geometry.places` does; few places are remembered, for blocks repeat the shapes of their weights."""
    few = (stop - start) * geometry.copies <= _KEPT
    return (_remembered if few else Geometry.places)(geometry, start, stop, apart, rule)


def outputs_first(weight: Tensor, layout: Layout) -> Tensor:
    """Return a weight as (outputs, ...): the axes that count its outputs made one, a copy where they lie apart.

    Args:
        weight: a tensor that the layout reads.
        layout: of the weight.

    Example:
        >>> outputs_first(torch.empty(4, 2, 3), Layout(1, 0, out_rest=(2,))).shape
        torch.Size([6, 4])
    """
    axes = layout.out_axes
    return weight.movedim(axes, tuple(range(len(axes)))).flatten(0, len(axes) - 1)


def kernel_columns(weight: Tensor, layout: Layout, order: str) -> Tensor:
    """Return the first matrix of a weight, (outputs, D_in), with the columns in the order that the fills count.

    Args:
        weight: a tensor that the layout reads; the first expert and the first group along the inputs are shown.
        order: of the columns, as in `idic`.

    Example:
        >>> kernel_columns(torch.arange(8.0).view(1, 2, 2, 2), Layout(tap_axes=(2, 3)), "tap").tolist()
        [[0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]]
    """
    for axis in layout.batch_axes:
        weight = weight.narrow(axis, 0, 1)
    shape = tuple(weight.shape)
    kernel = [shape[axis] for axis in layout.tap_axes]
    axes = (*layout.out_axes, *layout.in_axes, *layout.tap_axes, *layout.batch_axes)
    read = weight.permute(axes).reshape(layout.outputs(shape), layout.inputs(shape), math.prod(kernel))
    if layout.grouped == "in":
        read = read[:, : read.shape[1] // layout.groups]
    if order != "channel":
        read = read[:, :, centre_order(kernel)] if order == "centre" else read
        read = read.transpose(1, 2)
    return read.reshape(read.shape[0], -1)
