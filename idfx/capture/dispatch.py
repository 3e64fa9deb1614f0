"""Passes every ATen operator call of a forward, and what operators do not show, to a watcher."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from idfx.capture.foreach import single_calls
from idfx.capture.interpreter import OnCall
from idfx.core.torch_private import (
    PreDispatchMode,
    TorchDispatchMode,
    below_transforms,
    dense_kernel,
    is_higher_order,
    operators_unseen,
    transforms_active,
    without_modes,
)


class OperatorCalls(PreDispatchMode):
    """A dispatch mode that passes each operator call to `on_call(operator, args, kwargs) -> result`.

    A call on lists of tensors is handed over entry by entry. A call under a transform of torch.func (vmap, grad) is
    handed over as the plain operators that the transform makes of it.
    """

    def __init__(self, on_call: OnCall) -> None:
        super().__init__()
        self._below = _Below(on_call)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operator is made of need not be seen, and runs faster where Python does not look.
        with operators_unseen():
            if not transforms_active():
                return self._below.pass_on(func, args, kwargs or {})
            with self._below:
                return func(*args, **kwargs or {})


class _Below(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Passes on each call of an operator on plain tensors."""

    def __init__(self, on_call: OnCall) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_call = on_call

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.pass_on(func, args, kwargs or {})

    def pass_on(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.aten.lift_fresh.default:  # the same tensor; some releases call it on no meta tensor
            return func(*args)
        calls = single_calls(func, args, kwargs)
        if calls is None:
            return self._on_call(func, args, kwargs)
        results = [self._on_call(*call) for call in calls]
        return results if func._schema.returns else None


class HigherOrderCalls(TorchFunctionMode):
    """Runs operators that take functions (torch.cond, flex_attention) as the Python code that they stand for.

    The operators inside are seen as if the forward had called them. One without such code, as autograd.Function has
    none under a transform of torch.func, runs as torch does it, and its plain operators go to `on_call`.
    """

    def __init__(self, on_call: OnCall) -> None:
        super().__init__()
        self._below = _Below(on_call)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_higher_order(func):
            return func(*args, **kwargs or {})
        kernel = dense_kernel(func)
        if kernel is not None:
            with self:
                return kernel(*args, **kwargs or {})
        with below_transforms(self._below):
            return func(*args, **kwargs or {})


class Watcher(Protocol):
    """Receives what operators do not show."""

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
            return func(*args, **options)
        if func in _INDEXING and args[0].is_meta:
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
