"""Detects uninitialised memory of a model by building it while new memory is filled with a known pattern."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from idfx.building.effects import ALLOCATIONS
from idfx.capture.wrappers import unwrap
from idfx.core.torch_private import TorchDispatchMode

if TYPE_CHECKING:
    from idfx.building.build import Built

_unwritten: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameters that hold memory which nobody wrote
_settings: Any = torch.utils.deterministic


@contextmanager
def filled() -> Iterator[None]:
    """Let torch fill all new memory inside the block: floats with NaN, integers with the largest value.

    torch's settings are restored afterwards.

    Example:
        >>> with filled():
        ...     torch.empty(2)
        tensor([nan, nan])
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = _settings.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        _settings.fill_uninitialized_memory = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        _settings.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Zeroed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fills all new memory with zeros, as a second pattern to compare with.

    Example:
        >>> with Zeroed():
        ...     torch.empty(2)
        tensor([0., 0.])
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.zero_() if func._schema.name in ALLOCATIONS else result


def left(built: Built, again: Callable[[], Built]) -> dict[str, int]:
    """Return the number of uninitialised entries of each parameter and buffer of a model that has any.

    `is_unwritten` knows these parameters afterwards.

    Args:
        built: the model; without suspects, nothing is built.
        again: builds the model again.
    """
    names = built.suspects

    def drawn() -> nn.Module:
        other = again()
        other.pending.materialize(unwrap(other.model), names)
        return other.model

    if not names:
        return {}
    with filled():
        first = drawn()
    found = {name: count for name, count in unwritten(first, drawn).items() if name in names}
    own = dict(unwrap(built.model).named_parameters())
    for name in found.keys() & own.keys():
        _unwritten[own[name]] = True
    return found


def is_unwritten(parameter: Tensor) -> bool:
    """Return whether a parameter was found to hold memory that nobody wrote when its model was built."""
    return parameter in _unwritten


def unwritten(model: nn.Module, again: Callable[[], nn.Module]) -> dict[str, int]:
    """Return the number of uninitialised entries of each parameter and buffer that has any.

    Args:
        model: built inside `filled`, with its values drawn.
        again: builds the model again and draws its values; called only if some entry may be uninitialised.
    """
    suspects = {name: found for name, tensor in _tensors(model).items() if (found := _pattern(tensor)).any()}
    if not suspects:
        return {}
    with Zeroed():  # type: ignore[no-untyped-call]
        second = _tensors(again())
    counts = {name: int((found & ~_pattern(second[name])).sum()) for name, found in suspects.items()}
    return {name: count for name, count in counts.items() if count}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    model = unwrap(model)
    return {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}


def _pattern(tensor: Tensor) -> Tensor:
    """Return which entries equal the fill value of new memory."""
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.isnan(tensor)
    if tensor.dtype == torch.bool:
        return tensor
    if tensor.is_quantized:
        return torch.zeros_like(tensor, dtype=torch.bool)
    return tensor == torch.iinfo(tensor.dtype).max
