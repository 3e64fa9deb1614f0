"""What a model remembers of its weights and must learn anew when they are written: the vectors of a spectral norm."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

ROUNDS = 15  # of the power iteration, as many as torch makes when a spectral norm is registered


def refresh_(model: nn.Module, written: Collection[str]) -> None:
    """Let spectral norms estimate the size of the weights that have been written, as in training mode.

    Args:
        model: any module.
        written: names of the parameters with new values.

    Example:
        >>> layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4))
        >>> with torch.no_grad():
        ...     _ = layer.parametrizations.weight.original.copy_(3 * torch.eye(4))
        >>> refresh_(layer, {"parametrizations.weight.original"})
        >>> torch.allclose(layer.eval().weight, torch.eye(4), atol=1e-3)
        True
    """
    with torch.no_grad():
        for path, module in model.named_modules():
            _parametrised(f"{path}." if path else "", module, written)
            for hook in module._forward_pre_hooks.values():
                name = getattr(hook, "name", "")
                if type(hook).__name__ == "SpectralNorm" and f"{path}.{name}_orig".lstrip(".") in written:
                    _in_training(module, lambda hook=hook, module=module: hook(module, ()))


def _parametrised(prefix: str, module: nn.Module, written: Collection[str]) -> None:
    if not parametrize.is_parametrized(module):
        return
    parametrizations = module.get_submodule("parametrizations")
    for name, chain in parametrizations.named_children():
        own = {f"{prefix}parametrizations.{name}.{parameter}" for parameter, _ in chain.named_parameters()}
        if not own.isdisjoint(written) and any(True for _ in _estimates(chain)):
            _in_training(chain, lambda name=name: getattr(module, name))


def _estimates(chain: nn.Module) -> Iterator[nn.Module]:
    return (part for part in chain.modules() if type(part).__name__ == "_SpectralNorm")


def _in_training(module: nn.Module, act: object) -> None:
    """Act as often as it takes with the module, and what is in it, in training mode."""
    assert callable(act)
    before = [(part, part.training) for part in module.modules()]
    try:
        module.train()
        for _ in range(ROUNDS):
            act()
    finally:
        for part, training in before:
            part.training = training
