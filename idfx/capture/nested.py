"""The tensors in what a model takes and returns: containers, dataclasses, and objects with attributes."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from idfx.core.errors import CaptureError, shortened
from idfx.core.records import Example

T = TypeVar("T")


class UncopiedError(CaptureError):
    """An example input cannot be copied, so a forward that writes to it would change the caller's own."""


def tensors_in(value: Any, _seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Yield the tensors in a model's input or output, in order; one that occurs twice is yielded twice."""
    seen = _seen if _seen is not None else set()
    if isinstance(value, torch.Tensor):
        yield value
        return
    if value is None or isinstance(value, (str, bytes, int, float, bool, type)) or id(value) in seen:
        return
    seen.add(id(value))
    children: Any
    if isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        children = value
    else:
        children = _attributes(value)
    for child in children:
        yield from tensors_in(child, seen)


def _attributes(value: Any) -> list[Any]:
    """The attributes of an object, in its `__dict__` and in its slots."""
    slots = (kind.__dict__.get("__slots__", ()) for kind in type(value).__mro__)
    names = {name: None for found in slots for name in ((found,) if isinstance(found, str) else found)}
    held = [getattr(value, name, None) for name in names if name != "__dict__"]
    return [*getattr(value, "__dict__", {}).values(), *held]


def map_tensors(value: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """Return a deep copy of a model's input with other tensors in it; what happens to the copy leaves the input alone.

    Args:
        value: containers, dataclasses and objects, nested to any depth; shared objects are also shared in the copy.
        change: called once for each tensor of `tensors_in`, in their order.

    Raises:
        UncopiedError: an object that cannot be copied.

    Example:
        >>> given = {"state": [torch.ones(2)]}
        >>> map_tensors(given, torch.neg), given["state"][0]
        ({'state': [tensor([-1., -1.])]}, tensor([1., 1.]))
    """
    changed: dict[int, Any] = {}
    for tensor in tensors_in(value):
        if id(tensor) not in changed:
            changed[id(tensor)] = change(tensor)
    try:
        return copy.deepcopy(value, changed)
    except Exception as error:
        raise UncopiedError(
            f"example inputs: they cannot be copied ({shortened(error)}); expected tensors, containers and objects "
            "that copy.deepcopy supports, because a forward may write to them. Leave the object out, or give it a "
            "__deepcopy__."
        ) from error


def map_example(example: Example, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
    """Return a copy of example inputs with other tensors in them, as `map_tensors` does."""
    args, kwargs = map_tensors((example.args, dict(example.kwargs)), change)
    return Example(args, kwargs)


def copies_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return one copy of each tensor, under every name that it has: shared buffers stay shared."""
    copies = {id(tensor): tensor.clone() for tensor in tensors.values()}
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}
