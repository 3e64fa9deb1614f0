"""Distributed model → the same modules without what distributes them, on the same parameters and buffers.

`fully_shard` and `parallelize_module` leave a model's modules in place: they replace parameters by DTensors, add hooks,
and change classes; transformers' tensor parallelism replaces forwards as well. The bare model has none of these, so
that its forward is the author's.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import OrderedDict
from typing import Any

from torch import nn

from idfx.core.errors import UsageError
from idfx.sharding.layout import is_sharded
from idfx.sharding.together import whole

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
          "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")  # fmt: skip
_DISTRIBUTING = ("torch.distributed.", "transformers.distributed.")  # where hooks and forwards that distribute are from
_WRAPPED = "_checkpoint_wrapped_module"  # torch's wrapper for activation checkpointing, which its names leave out


def is_distributed(model: nn.Module) -> bool:
    """Return whether a model is one that `bare` undresses: a module is FSDP2's, or a parameter is a DTensor."""
    kind = _fsdp()
    if kind is not None and any(isinstance(module, kind) for module in model.modules()):
        return True
    return any(map(is_sharded, model.parameters()))


def bare(model: nn.Module) -> nn.Module:
    """Return a model without FSDP2, tensor parallelism and activation checkpointing; others as they are.

    Modules that hold gathered parameters after a forward release them, as before an optimiser's step. Nothing else
    about the model changes. The bare model shares its parameters, its buffers and all that is no module.

    Args:
        model: any module.

    Raises:
        UsageError: a library has replaced the parameters by something else than DTensors.
    """
    refuse_foreign(model)
    if not is_distributed(model):
        return model
    kind = _fsdp()
    for module in model.modules():
        if kind is not None and isinstance(module, kind):
            module.reshard()
    shells = {id(module): _shell(module) for module in model.modules()}
    for module in model.modules():
        while (inner := module._modules.get(_WRAPPED)) is not None:
            shells[id(module)], module = shells[id(inner)], inner
    for module in model.modules():
        if _WRAPPED not in module._modules:
            _fill(shells[id(module)], module, shells)
    return shells[id(model)]


def gathered(model: nn.Module) -> nn.Module:
    """Return a bare model with whole parameters, all of them gathered on every process; others as they are.

    Args:
        model: from `bare`.
    """
    if not any(map(is_sharded, model.parameters())):
        return model
    shells = {id(module): _shell(module) for module in model.modules()}
    for module in model.modules():
        _fill(shells[id(module)], module, shells)
    made: dict[int, nn.Parameter] = {}
    for path, module in shells[id(model)].named_modules():
        for name, own in module._parameters.items():
            if own is not None and is_sharded(own):
                if id(own) not in made:
                    full = whole(own, f"{path}.{name}".lstrip("."))
                    made[id(own)] = nn.Parameter(full, requires_grad=own.requires_grad)
                module._parameters[name] = made[id(own)]
    return shells[id(model)]


def _fsdp() -> Any:
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)


def _shell(module: nn.Module) -> nn.Module:
    """An empty module of the class that the author gave it."""
    own, kind = type(module), _fsdp()
    while kind is not None and len(own.__bases__) == 2 and issubclass(own.__bases__[0], kind):
        own = own.__bases__[1]
    made: nn.Module = object.__new__(own)
    return made


def _fill(shell: nn.Module, module: nn.Module, shells: dict[int, nn.Module]) -> None:
    """Give a shell the attributes of its module, with shells in place of modules."""
    for name, value in vars(module).items():
        if name == "forward" and _distributes(value):
            continue
        if name in _HOOKS:
            value = OrderedDict((key, hook) for key, hook in value.items() if not _distributes(hook))
        vars(shell)[name] = None if name == "_compiled_call_impl" else _mapped(value, shells)


def _distributes(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith(_DISTRIBUTING)


def _mapped(value: Any, shells: dict[int, nn.Module]) -> Any:
    """A value with shells in place of modules, in containers and bound methods as well."""
    if isinstance(value, nn.Module):
        return shells.get(id(value), value)
    if type(value) in (list, tuple, set):
        return type(value)(_mapped(item, shells) for item in value)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _mapped(item, shells)) for key, item in value.items())
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _mapped(value.__self__, shells))
    if isinstance(value, functools.partial):
        return functools.partial(
            _mapped(value.func, shells), *_mapped(value.args, shells), **_mapped(value.keywords, shells)
        )
    return value


def refuse_foreign(model: nn.Module) -> None:
    """Check that no library holds parts of the parameters where torch does not show them.

    Raises:
        UsageError: FSDP1, DeepSpeed's ZeRO-3, or transformers' tensor parallelism on plain tensors.
    """
    old = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if old is not None and any(isinstance(module, old) for module in model.modules()):
        raise UsageError(
            f"{type(model).__name__}: FullyShardedDataParallel (FSDP1) holds its parameters as flat pieces; expected "
            "DTensors. Use fully_shard (FSDP2), or initialise the model before it is wrapped."
        )
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise UsageError(
            f"{type(model).__name__}: DeepSpeed (ZeRO-3) holds its parameters out of sight; expected DTensors or whole "
            "parameters. Initialise the model before deepspeed.initialize, or gather it: GatheredParameters."
        )
