"""The module whose forward is running, kept by global hooks that leave the model untouched."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.fx
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
        self._stack.append(name)
        self._modules.append({**self._modules[-1], name: (name, full_name(type(module)))})

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if len(self._stack) > 1:
            self._stack.pop()
            self._modules.pop()

    def at(self, stack: Mapping[str, tuple[str, Any]] | None) -> None:
        """Take a node of a traced graph for the place that runs: its modules, from the model inwards."""
        if stack and self.entered:
            named = ((path, kind if isinstance(kind, str) else full_name(kind)) for path, kind in stack.values())
            self._modules[-1] = {path: (path, kind) for path, kind in named}
            self._stack[-1] = [*self._modules[-1]][-1]

    @contextlib.contextmanager
    def follow(self, model: nn.Module) -> Iterator[ModulePath]:
        """Keep `current` up to date inside the block; after an exception it still names where it was raised.

        A GraphModule, whose code calls no modules, is run node by node, as its nodes tell where they come from.
        """
        if isinstance(model, torch.fx.GraphModule):
            vars(model)["forward"] = _by_node(model, self)
        enter = nn_module.register_module_forward_pre_hook(self._enter)
        leave = nn_module.register_module_forward_hook(self._leave)
        _followed.append(self)
        try:
            yield self
        finally:
            _followed.remove(self)
            if isinstance(model, torch.fx.GraphModule):
                vars(model).pop("forward", None)
            enter.remove()
            leave.remove()


_followed: list[ModulePath] = []


def full_name(kind: type) -> str:
    """Return the name of a class with that of its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _by_node(model: torch.fx.GraphModule, path: ModulePath) -> Callable[..., Any]:
    """The forward of a GraphModule, run by torch.fx.Interpreter."""
    signature = inspect.signature(model.forward)

    class Followed(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            path.at(n.meta.get("nn_module_stack"))
            return super().run_node(n)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        flat = model.graph.process_inputs(*given.args, *given.kwargs.values())
        interpreter = Followed(model)
        interpreter.extra_traceback = False
        return model.graph.process_outputs(interpreter.run(*flat, enable_io_processing=False))

    return forward


def running_module() -> str | None:
    """Return the path of the module whose forward is running, "" for the model's own; None if none is."""
    return _followed[-1].current if _followed and _followed[-1].entered else None
