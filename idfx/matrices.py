"""A weight read as matrices (D_out, D_in) by its layout, and writing rows of them to it or to a shard."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idfx.boxes import blocks, runs
from idfx.errors import PlanError
from idfx.noise import normal
from idfx.records import Layout
from idfx.registry import did_you_mean

ORDERS = ("centre", "channel", "tap")
# Entries of dense noise computed at once: memory against the cost of meeting, which busy threads make long.
_BLOCK = {"cpu": 2**19, "cuda": 2**23}


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


@dataclass(frozen=True)
class Target:
    """What a fill writes to: a tensor, the parameter that it is, the seed of its noise and its place."""

    tensor: Tensor
    parameter: str
    seed: int
    shard: Shard

    @property
    def device(self) -> torch.device:
        """Where to compute: on the device of the tensor if that is sure to have float64, else on the CPU."""
        return self.tensor.device if self.tensor.device.type in _BLOCK else torch.device("cpu")

    @property
    def strides(self) -> tuple[int, ...]:
        """The row-major strides of the full tensor; they number its entries for the noise."""
        return self.shard.strides

    def span(self, axis: int, start: int = 0, stop: int | None = None) -> range:
        """Return the indices along an axis of the full tensor that lie in [start, stop) and in this one."""
        return self.shard.span(axis, self.tensor.shape[axis], start, stop)


class Rows(NamedTuple):
    """Rows of matrices, as int64 tensors of shape (n,): output of the weight, row number m, and D_out."""

    output: Tensor
    number: Tensor
    height: Tensor


def check_name(subject: str, name: object, known: Sequence[str]) -> None:
    """Raise PlanError, with the nearest spellings, if the name is not among the known ones."""
    if name not in known:
        hint = did_you_mean(str(name), known) or " Write one of them."
        raise PlanError(f"{subject} {name!r}; expected one of {', '.join(known)}.{hint}")


def as_float(value: float) -> float:
    """Return a number as a float, infinity for a whole number that no float holds.

    Example:
        >>> as_float(10**400)
        inf
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf


@functools.lru_cache(maxsize=256)
def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


def check_number(target: Target, name: str, value: object) -> float:
    """Return a number of which something is left in the dtype of the target."""
    shown = repr(value)
    subject = f"{target.parameter}: {name} {shown if len(shown) < 60 else shown[:50] + '...'}"
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(as_float(value)):
        raise PlanError(f"{subject}; expected a finite number. Write one such as 1.0.")
    dtype = target.tensor.dtype
    rounded = _rounded(float(value), dtype)
    if not math.isfinite(rounded) or (value and not rounded):
        raise PlanError(
            f"{subject} rounds to {rounded} in {dtype}; expected a number that it can hold. "
            f"Choose another {name} or dtype."
        )
    return float(value)


def check_ranges(subject: str, rows: Any, size: int) -> list[tuple[int, int]]:
    """Return ranges of an axis of this size, given as [[start, stop], ...]; raises PlanError if they are none."""
    try:
        pairs = [(operator.index(start), operator.index(stop)) for start, stop in rows]
    except (TypeError, ValueError):
        pairs = [(1, 0)]
    ends = [0, *itertools.chain.from_iterable(pairs), size]
    if ends != sorted(ends):
        raise PlanError(
            f"{subject}: rows {rows!r}; expected increasing ranges [start, stop] within [0, {size}]. Correct them."
        )
    return pairs


def read_layout(target: Target, layout: Layout | Mapping[str, Any] | None) -> Layout:
    """Return the layout of a target, checked against its full shape.

    Args:
        target: a tensor that is a shard of shape (...), of which every axis must have its meaning.
        layout: a `Layout`, its fields as JSON, or None for (out, in, *taps).

    Raises:
        PlanError: unknown fields, an axis without meaning or with two, or sizes that do not divide.

    Example:
        >>> w = torch.empty(4, 2, 3)
        >>> read_layout(Target(w, "w", 0, Shard((4, 2, 3), (0, 0, 0))), None).tap_axes
        (2,)
    """
    shape, subject = target.shard.shape, f"{target.parameter}: layout"
    if layout is None:
        if len(shape) < 2:
            raise PlanError(f"{subject}: none, for shape {shape}; expected one below two axes. Give its axes.")
        return Layout(tap_axes=tuple(range(2, len(shape))))
    if isinstance(layout, Mapping):
        for name in layout:
            check_name(f"{subject}: field", name, [field.name for field in fields(Layout)])
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in layout.items()}
        layout = Layout(**given)
    if not isinstance(layout, Layout):
        raise PlanError(f"{subject}: {layout!r}; expected a Layout or its fields. Write {{}} for (out, in).")
    for name in ("tap_axes", "batch_axes", "out_rest", "in_rest"):
        if not isinstance(getattr(layout, name), tuple):
            raise PlanError(f"{subject}: {name} {getattr(layout, name)!r}; expected a list of axes. Write [] for none.")
    axes = (*layout.out_axes, *layout.in_axes, *layout.tap_axes, *layout.batch_axes)
    if not all(isinstance(axis, int) for axis in axes) or sorted(axes) != [*range(len(shape))]:
        raise PlanError(
            f"{subject}: axes {axes} for shape {shape}; expected each axis once. Name them as out, in, tap or batch."
        )
    check_name(f"{subject}: grouped", layout.grouped, ("out", "in"))
    cuts = {"groups": layout.groups, "parts": layout.parts}
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in cuts.values()):
        raise PlanError(f"{subject}: {cuts}; expected counts from 1. Write 1 for none.")
    outer = layout.parts * (layout.groups if layout.grouped == "out" else 1)
    inner = layout.groups if layout.grouped == "in" else 1
    if layout.outputs(shape) % outer or layout.inputs(shape) % inner:
        raise PlanError(
            f"{subject}: {cuts} along {layout.grouped!r} of shape {shape}; expected divisors. Correct the counts."
        )
    return layout


def _centre_order(kernel: Sequence[int]) -> Tensor:
    """Return the row-major numbers of the taps from the centre outwards; that of k taps is (k - 1) // 2."""
    taps = itertools.product(*map(range, kernel))
    far = [sum((at - (size - 1) // 2) ** 2 for at, size in zip(tap, kernel, strict=True)) for tap in taps]
    return torch.tensor(sorted(range(len(far)), key=far.__getitem__))


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


def scatter_(target: Target, part: Tensor, origin: Sequence[int], values: Callable[[Tensor], Tensor]) -> None:
    """Write a function of each entry's number into a part of a target, a block at a time.

    Args:
        target: whose entries are numbered row-major in the full tensor.
        part: of the target's tensor.
        origin: where the part begins in the full tensor.
        values: from an int64 tensor of numbers to float64 values of its shape.
    """
    for box in blocks(part.shape, _BLOCK[target.device.type]):
        index = torch.zeros((), dtype=torch.int64, device=target.device)
        for at, side in enumerate(box):
            line = torch.arange(side.start, side.stop, device=target.device).add_(origin[at])
            index = index.unsqueeze(-1) + line.mul_(target.strides[at])
        part[tuple(slice(side.start, side.stop) for side in box)] = values(index).to(part.dtype)


class Places(NamedTuple):
    """One entry in each of some rows: `where` it is in the tensor (an index for each axis), and what it is called.

    `number` is its row-major place in the full tensor, which numbers its noise; `row` the number of its row.
    """

    where: tuple[Tensor, ...]
    number: Tensor
    row: Tensor


Rule = Callable[[Rows, int], Tensor]  # from rows and D_in to the column of the entry in each row

_KEPT = 2**14  # entries: places of weights with more of them are not remembered


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
            tap = _centre_order(kernel).to(device)[tap]
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

    def places(self, start: int, stop: int, apart: bool, rule: Rule) -> Places:
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
        return Places(tuple(local), number, row)


@functools.lru_cache(maxsize=64)
def _remembered(geometry: Geometry, start: int, stop: int, apart: bool, rule: Rule) -> Places:
    """The places of entries: blocks repeat themselves, and so do the shapes of their weights."""
    return geometry.places(start, stop, apart, rule)


class Matrices:
    """The matrices of a target, and how to write to them: a few entries in each row, never a loop over rows.

    `outputs` is how many the full weight has, `columns` is D_in. `order` says how the columns count channels
    and taps.
    """

    def __init__(self, target: Target, layout: Layout, order: str = "channel") -> None:
        check_name(f"{target.parameter}: order", order, ORDERS)
        self.target = target
        self.layout = layout
        self.order = order
        self.geometry = Geometry(layout, order, target.shard, tuple(target.tensor.shape), target.device)
        self.outputs = self.geometry.outputs
        self._height, self.columns = self.geometry.matrix

    def ranges(self, rows: Any) -> list[tuple[int, int]]:
        """Return ranges of outputs given as [[start, stop], ...]; raises PlanError if they are none."""
        return check_ranges(self.target.parameter, rows, self.outputs)

    def clear_(self, start: int, stop: int, noise: float = 0.0) -> None:
        """Write zeros, or normal noise of this standard deviation, to all of the outputs in [start, stop)."""
        target, axes = self.target, self.layout.out_axes
        for box in runs([target.shard.shape[axis] for axis in axes], start, stop):
            part, origin = target.tensor, [*target.shard.offsets]
            for axis, (first, last) in zip(axes, box, strict=True):
                span = target.span(axis, first, last)
                part = part.narrow(axis, span.start - origin[axis], len(span))
                origin[axis] = span.start
            if noise:
                scatter_(target, part, origin, lambda index: normal(target.seed, target.parameter, index).mul_(noise))
            else:
                part.zero_()

    def write_(
        self,
        start: int,
        stop: int,
        rule: Rule,
        value: float | Callable[[Tensor], Tensor],
        *,
        apart: bool = False,
        noise: float = 0.0,
    ) -> None:
        """Write one entry into each row of the outputs in [start, stop): value, plus noise of this standard deviation.

        The number of an entry's noise is its row-major place in the full tensor, as in `clear_`.

        Args:
            start, stop, apart: which rows, as in `Geometry.rows`.
            rule: from the rows and D_in to the column of each entry; a function of a module, by which it is known.
            value: of the entries, or a function of the numbers of their rows.
            noise: its standard deviation.
        """
        tensor = self.target.tensor
        if not tensor.numel() or start >= stop:
            return
        few = (stop - start) * self.geometry.copies <= _KEPT and type(tensor) in (Tensor, torch.nn.Parameter)
        places = (_remembered if few else Geometry.places)(self.geometry, start, stop, apart, rule)
        if callable(value):
            values = value(places.row).to(torch.float64)
        else:
            values = torch.full_like(places.number, value, dtype=torch.float64)
        if noise:
            values = values + normal(self.target.seed, self.target.parameter, places.number).mul_(noise)
        index = tuple(at.to(tensor.device) for at in places.where)
        tensor.index_put_(index, values.to(tensor.dtype).to(tensor.device))

    @property
    def size(self) -> tuple[int, int]:
        """(D_out, D_in) of one matrix."""
        return self._height, self.columns

    @property
    def taps(self) -> int:
        """How many positions a kernel has."""
        return math.prod(self.target.shard.shape[axis] for axis in self.layout.tap_axes)

    def put_(self, make: Callable[[int], Tensor]) -> None:
        """Write every matrix whole; of a shard, the part of it that lies there.

        Args:
            make: from the number of a matrix to its values, a float64 tensor (D_out, D_in).
        """
        layout, shape = self.layout, self.target.shard.shape
        if not self.target.tensor.numel():
            return
        experts = [shape[axis] for axis in layout.batch_axes]
        kernel = [shape[axis] for axis in layout.tap_axes]
        inner = layout.groups if layout.grouped == "in" else 1
        stacked = self.outputs // self._height
        count = math.prod(experts) * stacked * inner
        values = torch.stack([make(number).cpu() for number in range(count)])
        values = values.view(math.prod(experts), stacked, inner, self._height, self.columns)
        width, taps = self.columns // self.taps, self.taps
        if self.order == "channel":
            values = values.view(*values.shape[:-1], width, taps)
        else:
            values = values.view(*values.shape[:-1], taps, width).transpose(-1, -2)
            if self.order == "centre":
                values = values[..., torch.argsort(_centre_order(kernel))]
        # (experts, stacked, inner, height, width, taps) → the axes of the weight, in the order of their meaning
        sizes = [[shape[axis] for axis in axes] for axes in (layout.batch_axes, layout.out_axes, layout.in_axes)]
        values = values.permute(0, 1, 3, 2, 4, 5).reshape(*sizes[0], *sizes[1], *sizes[2], *kernel)
        axes = (*layout.batch_axes, *layout.out_axes, *layout.in_axes, *layout.tap_axes)
        whole = values.permute([axes.index(axis) for axis in range(len(shape))])
        for axis, (start, size) in enumerate(zip(self.target.shard.offsets, self.target.tensor.shape, strict=True)):
            whole = whole.narrow(axis, start, size)
        self.target.tensor.copy_(whole)


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
        read = read[:, :, _centre_order(kernel)] if order == "centre" else read
        read = read.transpose(1, 2)
    return read.reshape(read.shape[0], -1)
