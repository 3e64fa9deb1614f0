"""Writing to a weight, or a shard of it, as matrices (D_out, D_in); checks of the arguments of a fill."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from idfx.core.errors import PlanError
from idfx.core.literals import as_float
from idfx.core.noise import normal
from idfx.core.records import Layout
from idfx.core.registry import did_you_mean
from idfx.fills.folding import ORDERS
from idfx.fills.geometry import Geometry, Rule, Shard, places_of
from idfx.fills.tiling import blocks, runs

# Entries of dense noise computed at once: a trade-off between memory and the synchronisation of busy threads.
_BLOCK = {"cpu": 2**19, "cuda": 2**23}


@dataclass(frozen=True)
class Target:
    """The target of a fill: a tensor, the name of its parameter, the seed of its noise, and its shard."""

    tensor: Tensor
    parameter: str
    seed: int
    shard: Shard

    @property
    def device(self) -> torch.device:
        """The device to compute on: that of the tensor if it supports float64, otherwise the CPU."""
        return self.tensor.device if self.tensor.device.type in _BLOCK else torch.device("cpu")

    @property
    def strides(self) -> tuple[int, ...]:
        """The row-major strides of the full tensor; they number its entries for the noise."""
        return self.shard.strides

    def span(self, axis: int, start: int = 0, stop: int | None = None) -> range:
        """Return the indices along an axis of the full tensor within [start, stop) and within this tensor."""
        return self.shard.span(axis, self.tensor.shape[axis], start, stop)


def check_name(subject: str, name: object, known: Sequence[str]) -> None:
    """Check that a name is known; raise PlanError with the most similar names otherwise."""
    if name not in known:
        hint = did_you_mean(str(name), known) or " Write one of them."
        raise PlanError(f"{subject} {name!r}; expected one of {', '.join(known)}.{hint}")


@functools.lru_cache(maxsize=256)
def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


def check_number(target: Target, name: str, value: object) -> float:
    """Return a number that does not round to 0 or to infinity in the dtype of the target; raise PlanError otherwise."""
    shown = repr(value)
    subject = f"{target.parameter}: {name} {shown if len(shown) < 60 else shown[:50] + '...'}"
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(as_float(value)):
        raise PlanError(f"{subject}; expected a finite number. Write one such as 1.0.")
    dtype = target.tensor.dtype
    rounded = _rounded(float(value), dtype)
    if not math.isfinite(rounded) or (value and not rounded):
        raise PlanError(
            f"{subject} rounds to {rounded} in {dtype}; expected a number that the dtype can represent. "
            f"Choose another {name} or dtype."
        )
    return float(value)


def check_ranges(subject: str, rows: Any, size: int) -> list[tuple[int, int]]:
    """Return ranges of an axis of this size, given as [[start, stop], ...]; raise PlanError if they are invalid."""
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
        target: a tensor, each axis of which must have exactly one meaning.
        layout: a `Layout`, its fields as JSON, or None for (out, in, *taps).

    Raises:
        PlanError: unknown fields, an axis with no meaning or with two, or sizes that are not divisible.

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


def scatter_(target: Target, part: Tensor, origin: Sequence[int], values: Callable[[Tensor], Tensor]) -> None:
    """Write a function of each entry's number into part of a target, block by block.

    Args:
        target: whose entries are numbered row-major in the full tensor.
        part: of the target's tensor.
        origin: the offset of the part in the full tensor.
        values: from an int64 tensor of numbers to float64 values of its shape.
    """
    for box in blocks(part.shape, _BLOCK[target.device.type]):
        index = torch.zeros((), dtype=torch.int64, device=target.device)
        for at, side in enumerate(box):
            line = torch.arange(side.start, side.stop, device=target.device).add_(origin[at])
            index = index.unsqueeze(-1) + line.mul_(target.strides[at])
        part[tuple(slice(side.start, side.stop) for side in box)] = values(index).to(part.dtype)


class Matrices:
    """The matrices of a target, and methods that write a few entries in each row without a loop over rows.

    `outputs` is the number of outputs of the full weight, `size` is (D_out, D_in) of one matrix, `columns` is D_in, and
    `taps` is the number of positions of a kernel. `order` is the order of channels and taps in the columns.
    """

    def __init__(self, target: Target, layout: Layout, order: str = "channel") -> None:
        check_name(f"{target.parameter}: order", order, ORDERS)
        self.target = target
        self.layout = layout
        self.order = order
        self.geometry = Geometry(layout, order, target.shard, tuple(target.tensor.shape), target.device)
        self.folding = self.geometry.folding
        self.outputs = self.folding.outputs
        self.size = self.folding.size
        self.columns, self.taps = self.size[1], self.folding.taps

    def ranges(self, rows: Any) -> list[tuple[int, int]]:
        """Return ranges of outputs given as [[start, stop], ...]; raise PlanError if they are invalid."""
        return check_ranges(self.target.parameter, rows, self.outputs)

    def clear_(self, start: int, stop: int, noise: float = 0.0) -> None:
        """Write zeros, or normal noise of this standard deviation, to all outputs in [start, stop)."""
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

        The row-major index of an entry in the full tensor selects its noise, as in `clear_`.

        Args:
            start, stop, apart: which rows, as in `Geometry.rows`.
            rule: from the rows and D_in to the column of each entry; a module-level function, so that it can be cached.
            value: of the entries, or a function of the numbers of their rows.
            noise: its standard deviation.
        """
        tensor = self.target.tensor
        if not tensor.numel() or start >= stop:
            return
        plain = type(tensor) in (Tensor, torch.nn.Parameter)
        places = (places_of if plain else Geometry.places)(self.geometry, start, stop, apart, rule)
        if callable(value):
            values = value(places.row).to(torch.float64)
        else:
            values = torch.full_like(places.number, value, dtype=torch.float64)
        if noise:
            values = values + normal(self.target.seed, self.target.parameter, places.number).mul_(noise)
        index = tuple(at.to(tensor.device) for at in places.where)
        tensor.index_put_(index, values.to(tensor.dtype).to(tensor.device))

    def put_(self, make: Callable[[int], Tensor]) -> None:
        """Write every matrix, one at a time; what lies in none of the shard is not made.

        Args:
            make: from the number of a matrix to its values, a float64 tensor (D_out, D_in).
        """
        if not self.target.tensor.numel():
            return
        for number in range(self.folding.count):
            pieces = [(piece, held) for piece in self.folding.pieces(number) if all(held := self._held(piece.box))]
            if not pieces:
                continue
            values = make(number).cpu()
            for piece, held in pieces:
                there, here = self.folding.piece(values, piece), self.target.tensor
                for axis, span in enumerate(held):
                    there = there.narrow(axis, span.start - piece.box[axis].start, len(span))
                    here = here.narrow(axis, span.start - self.target.shard.offsets[axis], len(span))
                here.copy_(there)

    def _held(self, box: Sequence[range]) -> list[range]:
        """The part of a box that lies in the shard, as a range along each axis; some are empty if none does."""
        return [self.target.span(axis, side.start, side.stop) for axis, side in enumerate(box)]
