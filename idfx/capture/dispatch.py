"""Passes every ATen operator call of a forward, and what operators do not show, to a watcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from idfx.capture.foreach import single_calls
from idfx.core.torch_private import PreDispatchMode, operators_unseen, transforms_active, without_modes


class OperatorCalls(PreDispatchMode):
    """A dispatch mode that passes each operator call to `on_call(operator, args, kwargs) -> result`.

    A call on lists of tensors is handed over entry by entry.
    """

    def __init__(self, on_call: Callable[[Any, Sequence[Any], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._on_call = on_call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operator is made of need not be seen, and runs faster where Python does not look.
        with operators_unseen():
            if func is torch.ops.aten.lift_fresh.default:  # the same tensor; some releases call it on no meta tensor
                return func(*args)
            calls = single_calls(func, args, kwargs or {})
            if calls is None:
                return self._on_call(func, args, kwargs or {})
            results = [self._on_call(*call) for call in calls]
            return results if func._schema.returns else None


class Watcher(Protocol):
    """Receives what operators do not show."""

    def hidden(self, values: Any) -> None:
        """Receive the arguments of a call under a transform of torch.func, whose operators are not seen."""

    def numbers(self, tensor: torch.Tensor) -> list[Any] | None:
        """Return the numbers in a meta tensor as lists, None if they are unknown."""

    def on_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a meta tensor for one with values, because torch would make one that the recorder does not see."""


class FunctionCalls(TorchFunctionMode):
    """Intercepts what operators do not show; `numbers` is the data that a tensor is currently being made from.

    On the meta device torch itself forgets it at once.
    """

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.numbers: Any = None
        self._watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if transforms_active():
            self._watcher.hidden((args, options))
        elif func in _INDEXING and args[0].is_meta:
            args = (args[0], self._known(args[1]), *args[2:])
        elif func is torch.Tensor.tolist and args[0].is_meta:
            found = self._watcher.numbers(args[0].resolve_conj().resolve_neg())  # as with values at hand
            return func(*args) if found is None else found
        elif func in _MAKING:
            given = args[1:] if func is torch.Tensor.new_tensor else args
            before, self.numbers = self.numbers, given[0] if given else options.get("data")
            try:
                return func(*args, **options)
            finally:
                self.numbers = before
        return func(*args, **options)

    def _known(self, index: Any) -> Any:
        """An index whose tensors the watcher knows; torch would make and move one that the watcher does not see."""
        if isinstance(index, tuple):
            return tuple(self._known(item) for item in index)
        if isinstance(index, list) and index and all(isinstance(item, int) for item in index):
            with without_modes():
                index = torch.tensor(index)
        return self._watcher.on_meta(index) if isinstance(index, torch.Tensor) and not index.is_meta else index


_MAKING = frozenset({torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.Tensor.new_tensor})
_INDEXING = frozenset({torch.Tensor.__getitem__, torch.Tensor.__setitem__})
