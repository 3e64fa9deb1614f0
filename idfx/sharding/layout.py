"""The one mapping between a shard of a DTensor and the whole tensor.

Along each axis of a tensor, a shard holds some indices of the whole. They are derived axis by axis from the mesh and
the placements: torch's own `compute_local_shape_and_global_offset` gives one offset, which a strided shard does not
have.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idfx.core.errors import PlanError

Order = Callable[[Sequence[int], Sequence[Any], Sequence[int]], list[tuple[int, int]]]


class Part(NamedTuple):
    """A box of a shard: a view of the local tensor, and the offsets of its first entry in the whole."""

    tensor: Tensor
    offsets: tuple[int, ...]


def is_sharded(tensor: object) -> bool:
    """Return whether a tensor is a DTensor; loads nothing to find out.

    Example:
        >>> is_sharded(torch.ones(2))
        False
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: the local tensor of a DTensor, on its own memory; others as is."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        held: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return held.detach()


def parts(tensor: Any, name: str) -> Iterator[Part]:
    """Yield the boxes that the local tensor of a DTensor consists of, none if it is empty.

    Args:
        tensor: a DTensor.
        name: of the parameter, for messages.

    Raises:
        PlanError: as in `indices`.
    """
    held = local(tensor)
    for box in itertools.product(*map(_placed, indices(tensor, name))):
        view = held
        for axis, (at, run) in enumerate(box):
            view = view.narrow(axis, at, len(run))
        yield Part(view, tuple(run.start for _, run in box))


def copy_(tensor: Tensor, values: Tensor, name: str) -> None:
    """Copy values into a tensor; of a DTensor, into what this process holds.

    Args:
        tensor: written to.
        values: of the whole.
        name: of the parameter, for messages.

    Raises:
        PlanError: as in `indices`; nothing is written.
    """
    if not is_sharded(tensor):
        tensor.copy_(values)
        return
    for part in [*parts(tensor, name)]:
        part.tensor.copy_(within(values, part))


def within(values: Tensor, part: Part) -> Tensor:
    """Return the entries of the whole at a part's place, as a view.

    Example:
        >>> within(torch.arange(4), Part(torch.empty(2), (1,)))
        tensor([1, 2])
    """
    for axis, (start, size) in enumerate(zip(part.offsets, part.tensor.shape, strict=True)):
        values = values.narrow(axis, start, size)
    return values


def indices(tensor: Any, name: str) -> list[list[range]]:
    """Return the indices of the whole that the local tensor of a DTensor holds, along each axis, as ranges in order.

    Args:
        tensor: a DTensor.
        name: of the parameter, for messages.

    Raises:
        PlanError: a placement that is no shard and no replica (`Partial`), or a local tensor of another shape than the
            placements say.
    """
    mesh, placements = tensor.device_mesh, tensor.placements
    for placement in placements:
        if not (_is_shard(placement) or placement.is_replicate()):
            raise PlanError(
                f"{name}: its placement is {placement!r}; expected shards or replicas. Redistribute it first: "
                "tensor.redistribute(placements=[Replicate()])."
            )
    held, place = tuple(local(tensor).shape), mesh.get_coordinate()
    if place is None:
        return [[] for _ in tensor.shape]
    sizes = tuple(mesh.size(axis) for axis in range(mesh.ndim))
    for order in (shard_order, _as_written):
        found = [_along(axis, size, placements, sizes, place, order) for axis, size in enumerate(tensor.shape)]
        if tuple(sum(map(len, runs)) for runs in found) == held:
            return found
    raise PlanError(
        f"{name}: this process holds {list(held)} of {list(tensor.shape)} under {tuple(placements)} on a mesh of "
        f"{list(sizes)}; expected the shape that these placements give. Distribute it by torch's own functions."
    )


def _is_shard(placement: Any) -> bool:
    return hasattr(placement, "split_factor") or placement.is_shard()


def _along(
    axis: int, size: int, placements: Sequence[Any], sizes: Sequence[int], place: Sequence[int], order: Order
) -> list[range]:
    """The indices along one axis: the whole, cut by one axis of the mesh after the other."""
    held = [range(size)]
    cutting = [at for at, placement in enumerate(placements) if _is_shard(placement) and placement.dim == axis]
    for at, pieces in order(cutting, placements, sizes):
        held = [run for piece in _chunks(held, pieces) for run in _chunks(piece, sizes[at])[place[at]]]
    return held


def shard_order(cutting: Sequence[int], placements: Sequence[Any], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the axes of the mesh in the order in which they cut an axis of a tensor, each with a factor of 1.

    FSDP cuts what tensor parallelism has cut already, although its mesh axis stands further left: a shard strided by a
    factor comes after axes to its right whose sizes multiply to that factor. Where none do, the placements are read as
    they are written, with their factors.

    Args:
        cutting: the axes of the mesh that cut this axis of the tensor, from the left.
        placements: on every axis of the mesh.
        sizes: of the mesh.

    Example:
        >>> from torch.distributed.tensor import Shard
        >>> shard_order([0, 1], [Shard(0), Shard(0)], [2, 2])
        [(0, 1), (1, 1)]
    """
    order: list[int] = []
    for at in reversed(cutting):
        factor = getattr(placements[at], "split_factor", 1)
        before = [math.prod(sizes[other] for other in order[:count]) for count in range(len(order) + 1)]
        if factor not in before:
            return _as_written(cutting, placements, sizes)
        order.insert(before.index(factor), at)
    return [(at, 1) for at in order]


def _as_written(cutting: Sequence[int], placements: Sequence[Any], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """The axes of the mesh from the left, each with the number of pieces that it cuts separately."""
    return [(at, getattr(placements[at], "split_factor", 1)) for at in cutting]


def _chunks(held: Sequence[range], count: int) -> list[list[range]]:
    """Ranges of indices cut into pieces as torch.chunk cuts them, the last ones empty where there are too few."""
    step = max(-(-sum(map(len, held)) // count), 1)
    return [
        [run[max(first - at, 0) : max(first + step - at, 0)] for at, run in _placed(held) if at < first + step]
        for first in range(0, count * step, step)
    ]


def _placed(held: Sequence[range]) -> list[tuple[int, range]]:
    """The ranges that are not empty, each with its position: the number of indices before it."""
    positions = itertools.accumulate(map(len, held), initial=0)
    return [(at, run) for at, run in zip(positions, held, strict=False) if run]
