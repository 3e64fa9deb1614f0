"""Finds the module that the stages work on in a wrapped, compiled or exported model."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from idfx.core.errors import UsageError
from idfx.sharding.bare import bare


def unwrap(model: Any) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel, torch.compile and torch.export.ExportedProgram.

    The module of an exported program shares its parameters with it, so what is written into one is in the other. So
    does that of a model under FSDP2 or tensor parallelism, see `idfx.sharding.bare`.

    Raises:
        UsageError: anything else that is no module, or a model whose parameters a library holds out of sight.
    """
    if is_exported(model):
        return module_of(model)
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"an object of type {type(model).__name__}"
        raise UsageError(f"model: {kind} was given; expected a torch.nn.Module. Pass the model itself.")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    found: nn.Module = model
    while True:
        if isinstance(found, wrappers):
            found = found.module
        elif "_orig_mod" in found._modules and type(found).__name__ == "OptimizedModule":
            found = found.get_submodule("_orig_mod")
        else:
            return bare(found)


def is_exported(model: object) -> bool:
    """Return whether a model is a torch.export.ExportedProgram; loads nothing to find out."""
    exported = sys.modules.get("torch.export.exported_program")
    return exported is not None and isinstance(model, exported.ExportedProgram)


def module_of(program: Any) -> nn.Module:
    """Return the module of an exported program, without checks of shapes where torch can leave them out."""
    try:
        module = program.module(check_guards=False)
    except TypeError:  # before torch 2.9 there is nothing to leave out
        module = program.module()
    assert isinstance(module, nn.Module)
    return module
