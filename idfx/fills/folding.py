"""The one mapping between a weight and its matrices (D_out, D_in).

All code that reads a weight as matrices, writes matrices into it, or numbers their rows and columns uses it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from idfx.core.records import Layout
from idfx.fills.tiling import runs

ORDERS = ("centre", "channel", "tap")


def centre_order(kernel: Sequence[int]) -> Tensor:
    """Return the row-major indices of the taps from the centre outwards; the centre of k taps is (k - 1) // 2.

    Example:
        >>> centre_order((3,)).tolist()
        [1, 0, 2]
    """
    taps = itertools.product(*map(range, kernel))
    far = [sum((at - (size - 1) // 2) ** 2 for at, size in zip(tap, kernel, strict=True)) for tap in taps]
    return torch.tensor(sorted(range(len(far)), key=far.__getitem__))


class Piece(NamedTuple):
    """A box of a weight that lies in one of its matrices: a range along each axis, and its rows and channels there."""

    box: tuple[range, ...]
    rows: range
    channels: range


def _ends(span: range) -> tuple[int, int]:
    return span.start, span.stop


@dataclass(frozen=True)
class Folding:
    """How a weight of a given shape is read as matrices, and how matrices are put together to a weight.

    The matrices are numbered by expert, then by part or group along the outputs, then by group along the inputs. A
    column stands for a channel and a tap. In the order "channel" the taps of a channel are adjacent, in the order "tap"
    the channels of a tap are; "centre" is "tap" with the taps from the centre outwards.

    Example:
        >>> folding = Folding(Layout(tap_axes=(2, 3), groups=4), (8, 2, 3, 3))
        >>> folding.matrices(torch.zeros(8, 2, 3, 3)).shape
        torch.Size([4, 2, 18])
        >>> folding.weight(torch.zeros(4, 2, 18)).shape
        torch.Size([8, 2, 3, 3])
    """

    layout: Layout
    shape: tuple[int, ...]
    order: str = "channel"

    @functools.cached_property
    def kernel(self) -> tuple[int, ...]:
        """The number of taps along each axis of the kernel."""
        return tuple(self.shape[axis] for axis in self.layout.tap_axes)

    @functools.cached_property
    def taps(self) -> int:
        """The number of taps of the kernel."""
        return math.prod(self.kernel)

    @functools.cached_property
    def outputs(self) -> int:
        """The number of outputs of the weight."""
        return self.layout.outputs(self.shape)

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """(D_out, D_in) of one matrix, with 1 in place of 0."""
        height, columns = self.layout.matrix(self.shape)
        return max(height, 1), max(columns, 1)

    @functools.cached_property
    def experts(self) -> int:
        """The number of experts: independent matrices along the batch axes."""
        return math.prod(self.shape[axis] for axis in self.layout.batch_axes)

    @property
    def inner(self) -> int:
        """The number of groups along the inputs."""
        return self.layout.groups if self.layout.grouped == "in" else 1

    @property
    def stacked(self) -> int:
        """The number of matrices stacked along the outputs: groups times parts."""
        return self.outputs // self.size[0]

    @property
    def width(self) -> int:
        """The number of channels of a row of one matrix."""
        return max(self.layout.inputs(self.shape) // self.inner, 1)

    @property
    def count(self) -> int:
        """The number of matrices."""
        return self.experts * self.stacked * self.inner

    @property
    def _axes(self) -> tuple[int, ...]:
        """The axes of the weight in the order of their meaning: experts, outputs, inputs, taps."""
        layout = self.layout
        return (*layout.batch_axes, *layout.out_axes, *layout.in_axes, *layout.tap_axes)

    def matrices(self, weight: Tensor) -> Tensor:
        """Return a weight as its matrices, (count, D_out, D_in); it may be a view of the weight.

        Args:
            weight: of this shape.
        """
        height, columns = self.size
        read = weight.permute(self._axes)
        read = read.reshape(self.experts, self.stacked, height, self.inner, self.width, self.taps)
        return self._columns(read.transpose(2, 3)).reshape(self.count, height, columns)

    def weight(self, matrices: Tensor) -> Tensor:
        """Return the weight that has these matrices, (count, D_out, D_in).

        Args:
            matrices: in the order in which `matrices` returns them.
        """
        read = self._channels(matrices.reshape(self.experts, self.stacked, self.inner, *self.size))
        read = read.transpose(2, 3).reshape([self.shape[axis] for axis in self._axes])
        return read.permute([self._axes.index(axis) for axis in range(len(self.shape))])

    def pieces(self, number: int) -> Iterator[Piece]:
        """Yield the boxes of the weight that one matrix consists of.

        Args:
            number: of the matrix, in the order in which `matrices` returns them.

        Example:
            >>> folding = Folding(Layout(batch_axes=(0,), out_axis=1, in_axis=2), (2, 3, 4))
            >>> [piece.box for piece in folding.pieces(1)]
            [(range(1, 2), range(0, 3), range(0, 4))]
        """
        layout, (height, _) = self.layout, self.size
        expert, rest = divmod(number, self.stacked * self.inner)
        part, group = divmod(rest, self.inner)
        index: list[range] = []
        for axis in reversed(layout.batch_axes):
            expert, at = divmod(expert, self.shape[axis])
            index.insert(0, range(at, at + 1))
        whole = [range(size) for size in self.kernel]
        for rows, outputs in self._runs(layout.out_axes, part * height, height):
            for channels, inputs in self._runs(layout.in_axes, group * self.width, self.width):
                box = dict(zip(self._axes, (*index, *outputs, *inputs, *whole), strict=True))
                yield Piece(tuple(box[axis] for axis in range(len(self.shape))), rows, channels)

    def _runs(self, axes: Sequence[int], start: int, count: int) -> Iterator[tuple[range, list[range]]]:
        """Boxes over some axes that hold consecutive indices, and where each begins and ends among those."""
        if not axes:
            yield range(1), []
            return
        at = 0
        for box in runs([self.shape[axis] for axis in axes], start, start + count):
            size = math.prod(stop - first for first, stop in box)
            yield range(at, at + size), [range(first, stop) for first, stop in box]
            at += size

    def piece(self, matrix: Tensor, piece: Piece) -> Tensor:
        """Return what a matrix (D_out, D_in) writes into one of its boxes, with the axes of the weight.

        Args:
            matrix: its values.
            piece: one of `pieces`.
        """
        read = self._channels(matrix)[slice(*_ends(piece.rows)), slice(*_ends(piece.channels))]
        read = read.reshape([len(piece.box[axis]) for axis in self._axes])
        return read.permute([self._axes.index(axis) for axis in range(len(self.shape))])

    def _columns(self, read: Tensor) -> Tensor:
        """Channels and taps, the last two axes, made columns."""
        if self.order == "channel":
            return read.flatten(-2)
        read = read[..., centre_order(self.kernel).to(read.device)] if self.order == "centre" else read
        return read.transpose(-1, -2).flatten(-2)

    def _channels(self, read: Tensor) -> Tensor:
        """Columns, the last axis, made channels and taps."""
        if self.order == "channel":
            return read.reshape(*read.shape[:-1], self.width, self.taps)
        read = read.reshape(*read.shape[:-1], self.taps, self.width).transpose(-1, -2)
        return read[..., torch.argsort(centre_order(self.kernel)).to(read.device)] if self.order == "centre" else read

    def channel_and_tap(self, column: Tensor) -> tuple[Tensor, Tensor]:
        """Return the channel and the tap, in the weight, of columns of a matrix.

        Args:
            column: their numbers.
        """
        if self.order == "channel":
            return column // self.taps, column % self.taps
        channel, tap = column % self.width, column // self.width
        return channel, centre_order(self.kernel).to(column.device)[tap] if self.order == "centre" else tap

    def outputs_first(self, weight: Tensor) -> Tensor:
        """Return a weight as (outputs, ...), with its output axes merged; a copy if they are not adjacent.

        Args:
            weight: of this shape.

        Example:
            >>> Folding(Layout(1, 0, out_rest=(2,)), (4, 2, 3)).outputs_first(torch.empty(4, 2, 3)).shape
            torch.Size([6, 4])
        """
        axes = self.layout.out_axes
        return weight.movedim(axes, tuple(range(len(axes)))).flatten(0, len(axes) - 1)

    def rows(self, weight: Tensor) -> Tensor:
        """Return a row for each output, (outputs, D_in), of the first expert and the first group along the inputs.

        Args:
            weight: of this shape.

        Example:
            >>> folding = Folding(Layout(tap_axes=(2, 3)), (1, 2, 2, 2), "tap")
            >>> folding.rows(torch.arange(8.0).view(1, 2, 2, 2)).tolist()
            [[0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]]
        """
        read = weight.permute(self._axes).reshape(self.experts, self.outputs, self.inner, self.width, self.taps)
        return self._columns(read[0, :, 0])


def matrices_of(weight: Tensor, layout: Layout) -> Tensor:
    """Return a weight as its matrices, (count, D_out, D_in), with the taps of a channel adjacent.

    Args:
        weight: a tensor with this layout; the result is detached.
        layout: of the weight.
    """
    return Folding(layout, tuple(weight.shape)).matrices(weight.detach())
