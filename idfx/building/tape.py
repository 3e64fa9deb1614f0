"""Tapes of deferred calls on the memory of a tensor, and their replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class View(NamedTuple):
    """The position of a tensor in its storage; `of` restores the tensor."""

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def at(cls, tensor: Tensor) -> View:
        """Return the view of a tensor on its storage."""
        return cls(tensor.dtype, tuple(tensor.size()), tensor.stride(), int(tensor.storage_offset()))

    def of(self, storage: torch.UntypedStorage) -> Tensor:
        """Return the tensor of this view on a storage."""
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.size, self.stride)


class Step(NamedTuple):
    """One call on the tape: an in-place function of the tensor at `view`."""

    function: Callable[..., Any]
    view: View
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    draws: bool


@dataclass
class Tape:
    """The deferred calls on one storage.

    `order` counts the tapes of one build. `fresh` means that the first step overwrites everything, so the current
    contents do not matter. `moved` is set if the storage replaced one of a different dtype or device: the steps apply
    to a storage of `nbytes` with the dtype `moved[0]`, and the result is converted to the dtype `moved[1]` of this
    storage.
    """

    reference: StorageWeakRef
    order: int
    nbytes: int
    fresh: bool
    steps: list[Step] = field(default_factory=list)
    moved: tuple[View, View] | None = None

    def play(self, storage: torch.UntypedStorage, generator: torch.Generator) -> None:
        """Replay the deferred calls on the storage, drawing on the CPU whatever the storage's device."""
        in_place = self.moved is None and storage.device.type == "cpu"
        base = storage if in_place else torch.UntypedStorage(self.nbytes, device="cpu")  # type: ignore[no-untyped-call]
        if not in_place and not self.fresh:
            as_bytes(base).copy_(as_bytes(storage))
        with torch.no_grad():
            for step in self.steps:
                drawing = {"generator": generator} if step.draws else {}
                step.function(step.view.of(base), *step.args, **step.kwargs, **drawing)
            if self.moved is not None:
                self.moved[1].of(storage).copy_(self.moved[0].of(base))
            elif not in_place:
                as_bytes(storage).copy_(as_bytes(base))


def as_bytes(storage: torch.UntypedStorage) -> Tensor:
    return View(torch.uint8, (storage.nbytes(),), (1,), 0).of(storage)
