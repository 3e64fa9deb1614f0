"""Counts of work, independent of time: entries written, operators and functions called, forward passes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from idfx.core.torch_private import TorchDispatchMode, pytree


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the entries that operators write, without allocations and meta tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func._schema.name.startswith(("aten::empty", "aten::new_empty")):
            return result
        values = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and not leaf.is_meta]
        if values and func._schema.name in ("aten::index_put_", "aten::_index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            rest = values[0].shape[len(args[1]) :]
            self.entries += max(map(Tensor.numel, indices)) * math.prod(rest)
        else:
            self.entries += sum(value.numel() for value in values)
        return result


def entries_written(act: Callable[[], object]) -> int:
    """Return the number of tensor entries that an action writes, including temporary ones.

    Example:
        >>> x = torch.empty(3, 4)
        >>> entries_written(lambda: x.zero_().add_(1))
        24
    """
    with (writes := _Writes()), torch.no_grad():
        act()
    return writes.entries


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators, without views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operators(act: Callable[[], object]) -> int:
    """Return the number of torch operators that an action calls, without views.

    Example:
        >>> x = torch.empty(3, 4)
        >>> operators(lambda: x.zero_().t().add_(1))
        2
    """
    with (counted := _Calls()), torch.no_grad():
        act()
    return counted.count


def calls(act: Callable[[], object], inside: str = "") -> int:
    """Return the number of Python function calls of an action, for files with `inside` in their path.

    Example:
        >>> calls(lambda: [abs(-1), math.prod((2, 3))])
        1
    """
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call" and inside in frame.f_code.co_filename

    previous = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(previous)
    return count


def forwards(model: nn.Module, act: Callable[[], object]) -> int:
    """Return how often an action runs the forward of a model.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> forwards(net, lambda: net(net(torch.ones(2))))
        2
    """
    count = 0

    def note(module: nn.Module, args: object) -> None:
        nonlocal count
        count += 1

    handle = model.register_forward_pre_hook(note)
    try:
        act()
    finally:
        handle.remove()
    return count
