"""Runs a model without side effects: its modes, attributes, parameters, gradients and random states are restored."""

from __future__ import annotations

import contextlib
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from idfx.core.torch_private import eager, memory, plain_tensors


@contextlib.contextmanager
def _restored_random_state(model: nn.Module) -> Iterator[None]:
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def _restored_attributes(model: nn.Module) -> Iterator[None]:
    """Restore what a forward stores in its modules: cached biases, masks, counters. Parameters are not copied."""
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    contents = [
        (value, value.copy())
        for _, attributes in before
        for value in attributes.values()
        if type(value) in (dict, list, set, OrderedDict)
    ]
    try:
        yield
    finally:
        for live, kept in before:
            if live.keys() != kept.keys() or any(live[name] is not kept[name] for name in kept):
                live.clear()
                live.update(kept)
        for value, kept_value in contents:
            if isinstance(value, list):
                value[:] = kept_value
            else:
                value.clear()
                value.update(kept_value)


@contextlib.contextmanager
def _restored_gradients(model: nn.Module) -> Iterator[None]:
    """Start without gradients, which a forward that calls `.backward()` would add to, and restore them."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, gradient in before:
        if gradient is not None:
            parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Run in the modes that the model is in; random states, attributes and gradients are as before afterwards."""
    with _restored_random_state(model), _restored_attributes(model), _restored_gradients(model):
        yield


class KeptParameters:
    """Restores parameters that a forward writes to (a momentum encoder); each is copied just before it changes."""

    def __init__(self, model: nn.Module) -> None:
        with plain_tensors():  # only the location of the memory is read, not its content
            self._memory = [(parameter, parameter.untyped_storage()) for parameter in model.parameters()]
            self._form = [(p.storage_offset(), p.size(), p.stride()) for p, _ in self._memory]
            self._own = {memory(parameter): parameter for parameter, _ in self._memory}
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Copy the tensor that an operator is about to write to, if it is a parameter."""
        if func._schema.is_mutable:
            for value in (*args, *kwargs.values()):
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta:
                        own = self._own.pop(memory(tensor), None)
                        if own is not None:
                            self._copies.append((own, own.detach().clone()))

    def put_back(self) -> None:
        """Restore the parameters."""
        for (parameter, storage), form in zip(self._memory, self._form, strict=True):
            with plain_tensors():
                moved = parameter.untyped_storage()._cdata != storage._cdata
            if moved:
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device).set_(storage, *form)
        with torch.no_grad():
            for own, copy in self._copies:
                own.copy_(copy)


@contextlib.contextmanager
def undisturbed(model: nn.Module, grad: bool = False, training: bool = False) -> Iterator[None]:
    """Evaluation mode without gradients (unless asked for either), autocast, fused fast paths or compilation.

    All is as before afterwards, attributes that the forward sets (caches, for instance) and gradients included.

    Training flags are set and restored module by module, because a model may override `train()`.
    """
    other = [module for module in model.modules() if module.training is not training]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_restored_random_state(model))
        stack.enter_context(_restored_attributes(model))
        stack.enter_context(_restored_gradients(model))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(eager())
        for kind in autocast:
            stack.enter_context(torch.autocast(kind, enabled=False))
        for module in other:
            module.training = training
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module in other:
                module.training = not training
