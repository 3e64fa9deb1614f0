"""DTensors as leaves of a backward pass: gathered when an operator needs them, and again for its derivative."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from idfx.core.torch_private import memory
from idfx.sharding.layout import copy_, is_sharded
from idfx.sharding.together import whole


class _Saved(NamedTuple):
    """In place of a tensor on the memory of a gathered weight: the weight, and how the tensor lies in it."""

    shards: Tensor
    name: str
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Gathering:
    """The gathered weights of a run with gradients; an operator that saves one for its derivative saves its name."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[StorageWeakRef, Tensor, str]] = {}

    def whole(self, tensor: Tensor, name: str) -> Tensor:
        """Return the whole of a DTensor, whose gradient is a DTensor as well; others as they are."""
        if not is_sharded(tensor):
            return tensor
        full: Tensor = _Whole.apply(tensor, name)
        self._held[memory(full)] = _weak(full), tensor.detach(), name
        return full

    def saving(self, tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
        """Within this context, operators save no gathered weight, if any of these tensors is a DTensor."""
        return saved_tensors_hooks(self._pack, _unpack) if any(map(is_sharded, tensors)) else nullcontext()

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        held = self._held.get(memory(tensor)) if self._held else None
        if held is None or held[0].expired():  # type: ignore[no-untyped-call]
            return tensor
        return _Saved(held[1], held[2], tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _weak(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _unpack(saved: Tensor | _Saved) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    full = whole(saved.shards, saved.name)
    return full.as_strided(saved.size, saved.stride, full.storage_offset() + saved.offset)


class _Whole(torch.autograd.Function):
    """The whole of a DTensor; each process gets its shard of the gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str) -> Tensor:
        ctx.name, ctx.like = name, tensor.detach()
        full = whole(tensor, name)
        return full.view_as(full)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own = torch.empty_like(ctx.like)
        copy_(own, gradient.to_dense() if gradient.is_sparse else gradient, ctx.name)
        return own, None
