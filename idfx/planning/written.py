"""Which values idfx itself has written, so that it does not take them for an author's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

from idfx.core.torch_private import memory
from idfx.sharding.layout import is_sharded, local
from idfx.sharding.together import anywhere

_COMPARED = 64
_written: WeakIdKeyDictionary = WeakIdKeyDictionary()
_shards: dict[
    int, tuple[StorageWeakRef, Tensor]
] = {}  # by memory: torch cannot move a DTensor that has a weak reference


def remember(parameter: Tensor) -> None:
    """Remember that a parameter has values from idfx."""
    if not is_sharded(parameter):
        _written[parameter] = _some(parameter)
        return
    held = local(parameter)
    _shards[memory(held)] = StorageWeakRef(held.untyped_storage()), _some(held)  # type: ignore[no-untyped-call]


def forget_freed() -> None:
    """Forget shards whose memory was freed."""
    for place in [place for place, (storage, _) in _shards.items() if storage.expired()]:  # type: ignore[no-untyped-call]
        del _shards[place]


def is_written(parameter: Tensor) -> bool:
    """Return whether a parameter still has the values that idfx has written; a DTensor, on every process.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> remember(weight)
        >>> is_written(weight), is_written(torch.nn.Parameter(torch.eye(2)))
        (True, False)
        >>> _ = weight.data.fill_(3)
        >>> is_written(weight)
        False
    """
    if not is_sharded(parameter):
        before = _written.get(parameter)  # type: ignore[no-untyped-call]
        return before is not None and torch.equal(before, _some(parameter))
    held = local(parameter)
    known = _shards.get(memory(held))
    same = known is not None and not known[0].expired() and torch.equal(known[1], _some(held))  # type: ignore[no-untyped-call]
    return not anywhere(not same, "what idfx has written")


def _some(parameter: Tensor) -> Tensor:
    """Evenly spaced entries, which training changes."""
    flat = parameter.detach().reshape(-1)
    return flat[:: -(-flat.numel() // _COMPARED) or 1].clone()
