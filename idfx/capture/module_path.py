"""The module whose forward is running, kept by global hooks that leave the model untouched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules import module as nn_module


class ModulePath:
    """The path of the module whose forward is running, kept by global hooks that leave the model untouched."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack = [""]
        self._modules: list[Mapping[str, tuple[str, str]]] = [{}]

    @property
    def current(self) -> str:
        """Path of the innermost running module; "" for the model itself."""
        return self._stack[-1]

    @property
    def stack(self) -> Mapping[str, tuple[str, str]]:
        """The running modules from the model inwards: path → path and full name of the class."""
        return self._modules[-1]

    @property
    def entered(self) -> bool:
        """Whether a forward is running."""
        return len(self._stack) > 1

    def _enter(self, module: nn.Module, args: Any) -> None:
        name = self._names.get(id(module))
        if name is None:  # made by the forward itself
            self._stack.append(self._stack[-1])
            self._modules.append(self._modules[-1])
            return
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        self._stack.append(name)
        self._modules.append({**self._modules[-1], name: (name, kind)})

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if len(self._stack) > 1:
            self._stack.pop()
            self._modules.pop()

    @contextlib.contextmanager
    def follow(self) -> Iterator[ModulePath]:
        """Keep `current` up to date inside the block; after an exception it still names where it was raised."""
        enter = nn_module.register_module_forward_pre_hook(self._enter)
        leave = nn_module.register_module_forward_hook(self._leave)
        _followed.append(self)
        try:
            yield self
        finally:
            _followed.remove(self)
            enter.remove()
            leave.remove()


_followed: list[ModulePath] = []


def running_module() -> str | None:
    """Return the path of the module whose forward is running, "" for the model's own; None if none is."""
    return _followed[-1].current if _followed and _followed[-1].entered else None
