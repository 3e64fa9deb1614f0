"""Processes that share a model act together: they gather a weight at the same time, and if one stops, all stop.

Before each collective, and at the end, every process says whether it goes on. So a process that fails anywhere takes
part in one more exchange, and no process waits for one that has left.
"""

from __future__ import annotations

import contextlib
import pickle
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from idfx.core.errors import PeerError, PlanError, UsageError
from idfx.sharding.layout import is_sharded, parts, within

T = TypeVar("T")


class _Group:
    """The processes of a `mesh`; `first` is whether this is the one at its origin."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        self._axes = [mesh.get_group(axis) for axis in range(mesh.ndim)]
        self._device = mesh.device_type
        self._reported: BaseException | None = None
        self.first = not any(mesh.get_coordinate())

    def highest(self, values: Sequence[int]) -> list[int]:
        """Return the largest of each value over the processes."""
        held = torch.tensor(values, device=self._device)
        for axis in self._axes:
            dist.all_reduce(held, dist.ReduceOp.MAX, group=axis)
        return [int(value) for value in held]

    def any(self, what: str, value: bool = False, error: BaseException | None = None) -> bool:
        """Return whether the value is true on some process, if all of them are about to do the same.

        Raises:
            PeerError: another process has an error, or does something else.
        """
        step = zlib.crc32(what.encode())
        failed, true, most, least = self.highest([error is not None, value, step, -step])
        if not failed and most == -least:
            return bool(true)
        texts = self.all("" if error is None else f"rank {dist.get_rank()}: {error}") if failed else []
        if error is not None:
            return True
        raise PeerError(
            f"another process stopped, and this one with it: {next(filter(None, texts))}"
            if failed
            else f"the processes part at {what}, because their values or arguments differ; expected the same on all. "
            "Check what differs: parameters that are no DTensors, buffers, or inputs of other shapes."
        )

    def all(self, value: Any) -> list[Any]:
        """Return the values of all processes, the first one's first."""
        found = [value]
        for axis in self._axes:
            held: list[Any] = [None] * dist.get_world_size(axis)
            dist.all_gather_object(held, found, group=axis)
            found = [one for values in held for one in values]
        return found

    def of_first(self, packed: bytes) -> bytes:
        """Return the first process's bytes."""
        held = [packed]
        for axis in self._axes:
            dist.broadcast_object_list(held, src=dist.get_global_rank(axis, 0), group=axis)
        return held[0]

    def report(self, what: str, error: BaseException | None = None) -> None:
        """Say what this process does next, or why it does not go on; raise PeerError as `any` does."""
        if error is None or error is not self._reported:
            self._reported = error
            self.any(what, error=error)


_active: list[_Group] = []  # also seen by the threads in which torch runs a backward pass


@contextlib.contextmanager
def together(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Act together with the processes that hold the other shards of these tensors; alone if none is a DTensor.

    An error inside of the block ends it on every process, so all of them can go on from there.

    Raises:
        PeerError: another process raised inside of its block.
        UsageError: the meshes of the tensors do not lie within one of them.
    """
    if _active:
        group: _Group | None = _active[-1]
    else:
        mesh = _mesh(tensors)
        group = None if mesh is None else _Group(mesh)
    if group is None:
        yield
        return
    _active.append(group)
    try:
        yield
        group.report("the end of a stage")
    except PeerError:
        raise
    except Exception as error:
        group.report("an error", error)
        raise
    finally:
        _active.pop()


def _mesh(tensors: Iterable[Tensor]) -> Any:
    """The mesh that the tensors are sharded on, the largest if there are several; None if there is none."""
    meshes = list({id(own.device_mesh): own.device_mesh for own in tensors if is_sharded(own)}.values())  # type: ignore[attr-defined]
    if not meshes:
        return None
    ranks = [set(mesh.mesh.flatten().tolist()) for mesh in meshes]
    largest = max(range(len(meshes)), key=lambda at: len(ranks[at]))
    if not all(own <= ranks[largest] for own in ranks):
        raise UsageError(
            "model: its parameters lie on meshes that do not contain each other; expected one mesh with all processes. "
            "Initialise the parts one by one."
        )
    return meshes[largest] if meshes[largest].get_coordinate() is not None else None


def anywhere(value: bool, what: str = "a decision") -> bool:
    """Return whether a value is true on any process that acts together with this one.

    Example:
        >>> anywhere(True), anywhere(False)
        (True, False)
    """
    return _active[-1].any(what, value) if _active else value


def agree(value: str, what: str) -> None:
    """Check that a value is the same on every process that acts together with this one.

    Raises:
        PlanError: on all of them, if it is not.
    """
    if len(set(all_of(value, what))) > 1:
        raise PlanError(
            f"{what} differs between processes; expected the same on all. Give the same arguments, and inputs of the "
            "same shapes, on each."
        )


def all_of(value: T, what: str = "an exchange") -> list[T]:
    """Return the values of all processes that act together, the first one's first.

    Example:
        >>> all_of(1)
        [1]
    """
    if not _active:
        return [value]
    _active[-1].report(what)
    return _active[-1].all(value)


def is_alone() -> bool:
    """Return whether this process acts alone.

    Example:
        >>> is_alone()
        True
    """
    return not _active


def is_first() -> bool:
    """Return whether this process is the first of those that act together, or acts alone."""
    return not _active or _active[-1].first


def of_first(value: T) -> T:
    """Return the value of the first of the processes that act together.

    Args:
        value: that pickle supports.
    """
    if not _active:
        return value
    packed = pickle.dumps(value) if is_first() else b""  # fails before the others wait for it
    _active[-1].report("the inputs")
    found: T = pickle.loads(_active[-1].of_first(packed))
    return found


def whole(tensor: Tensor, name: str = "a parameter") -> Tensor:
    """Return the whole of a DTensor as a plain tensor, on every process; other tensors as they are.

    Args:
        tensor: whose other shards are gathered at the same time.
        name: of the tensor, for messages.

    Raises:
        PeerError: another process has stopped.
        PlanError: the placements are not supported, or torch gathers something else than this process holds.

    Example:
        >>> whole(torch.ones(2))
        tensor([1., 1.])
    """
    if not is_sharded(tensor):
        return tensor
    if _active:
        _active[-1].report(name)
    with torch.no_grad():
        full: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
        for part in parts(tensor, name):
            there = within(full, part)
            if not torch.equal(there, part.tensor) and not bool(
                ((there == part.tensor) | (there.isnan() & part.tensor.isnan())).all()
            ):
                raise PlanError(
                    f"{name}: gathered from {tensor.placements}, it is not what this process holds; expected "  # type: ignore[attr-defined]
                    "the same values. Update torch, or distribute it by torch's own functions."
                )
    _check_replicas(tensor, full, name)
    return full


def _check_replicas(tensor: Any, full: Tensor, name: str) -> None:
    """Check that the processes that hold the same shard hold the same values."""
    if not _active or (not any(map(_repeats, tensor.placements)) and tensor.device_mesh == _active[-1].mesh):
        return
    bits = full.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[full.element_size()])
    sums = [int(own.sum(dtype=torch.int64)) for own in (bits, bits.flatten()[::2])]
    highest = _active[-1].highest([*sums, *(-own for own in sums)])
    if highest[:2] != [-own for own in highest[2:]]:
        raise PlanError(
            f"{name}: its replicas hold different values; expected the same on every process. Broadcast it, or build "
            "the model from the same seed on each."
        )


def _repeats(placement: Any) -> bool:
    return bool(placement.is_replicate())


def all_whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by name with the whole of each DTensor; tied names still share one tensor."""
    made: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in made:
            made[id(tensor)] = whole(tensor, name)
    return {name: made[id(tensor)] for name, tensor in tensors.items()}
