"""New memory that no operator has written yet, followed while a model is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from idfx.building.effects import ALLOCATIONS, effect
from idfx.building.tape import View
from idfx.core.torch_private import has_memory, memory, plain_tensors


@dataclass
class _Block:
    """A storage that came unwritten, and the parts of it that were written since."""

    reference: StorageWeakRef
    written: list[View] = field(default_factory=list)


class FreshMemory:
    """The storages that hold memory which nobody wrote, and copies of it.

    A write that the dispatcher does not show (NumPy, `out=`) is not seen, so a `suspect` may hold values. Any other
    tensor was written by operators, entry by entry.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note what one operator, which has run or was deferred, allocated, wrote or copied."""
        if func._schema.name in ALLOCATIONS:
            for tensor in flat_tensors(result):
                self._add(tensor)
        elif self._blocks and (kind := effect(func)) != "view":
            self._passed_on(kind, args, kwargs, result)

    def _passed_on(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        written = kind in ("draw", "overwrite")
        read = any(storage_key(one) in self._blocks for one in flat_tensors((args[written:], kwargs)))
        if read:
            for tensor in flat_tensors(result):
                if storage_key(tensor) not in self._blocks:
                    self._add(tensor)
        elif written:
            self.wrote(args[0])

    def _add(self, tensor: Tensor) -> None:
        plain = tensor.layout is torch.strided and tensor.device.type in ("cpu", "cuda") and tensor.numel()
        if plain and type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and (key := storage_key(tensor)):
            self._blocks[key] = _Block(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]

    def wrote(self, tensor: Tensor) -> None:
        """Note that every entry of a tensor was written."""
        block = self._blocks.get(storage_key(tensor)) if self._blocks else None
        if block is not None and covers(tensor):
            del self._blocks[storage_key(tensor)]
        elif block is not None:
            block.written.append(View.at(tensor))

    def suspect(self, tensor: Tensor) -> bool:
        """Return whether an entry of a tensor may hold memory that nobody wrote."""
        block = self._blocks.get(storage_key(tensor))
        if block is None:
            return False
        size = tensor.element_size()
        known = torch.zeros(tensor.untyped_storage().nbytes() // size, dtype=torch.bool)
        for view in block.written:
            if view.dtype.itemsize == size:
                known.as_strided(view.size, view.stride, view.offset).fill_(True)
        return not bool(known.as_strided(tensor.size(), tensor.stride(), int(tensor.storage_offset())).all())

    def forget_freed(self) -> None:
        """Forget memory that is no longer used."""
        self._blocks = {key: one for key, one in self._blocks.items() if not one.reference.expired()}  # type: ignore[no-untyped-call]


def flat_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flat_tensors(item)
    elif isinstance(value, dict):
        yield from flat_tensors(tuple(value.values()))


def storage_key(tensor: Any) -> int:
    """Return the address of the storage; 0 for a tensor without one."""
    if not isinstance(tensor, Tensor) or not has_memory(tensor):
        return 0
    with plain_tensors():
        return memory(tensor)


def covers(tensor: Tensor) -> bool:
    """Return whether the tensor covers its whole storage, each element once."""
    with plain_tensors():
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return whole and (tensor.is_contiguous() or _channels_last(tensor))


def _channels_last(tensor: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.dim() in formats and tensor.is_contiguous(memory_format=formats[tensor.dim()])
