"""What a model is wrapped in: the module that a user means."""

from __future__ import annotations

from torch import nn

from idfx.core.errors import UsageError


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"an object of type {type(model).__name__}"
        raise UsageError(f"model: {kind} was given; expected a torch.nn.Module. Pass the model itself.")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif "_orig_mod" in model._modules and type(model).__name__ == "OptimizedModule":
            model = model.get_submodule("_orig_mod")
        else:
            return model
