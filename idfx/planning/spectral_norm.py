"""Updates the buffers of spectral norms, which store estimates of the weights, after the weights are written."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

ROUNDS = 15  # of the power iteration, as in torch when a spectral norm is registered


def refresh_(model: nn.Module, written: Collection[str]) -> None:
    """Update the estimates that spectral norms have of newly written weights, as in training mode.

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


def spectral(model: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters of which spectral norms have estimates.

    Example:
        >>> [*spectral(torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(2, 2)))]
        ['parametrizations.weight.original']
    """
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, parametrize.ParametrizationList) and any(True for _ in _estimates(module)):
            yield from (prefix + name for name, _ in module.named_parameters(recurse=False))
        for hook in module._forward_pre_hooks.values():
            if type(hook).__name__ == "SpectralNorm":
                yield f"{prefix}{getattr(hook, 'name', '')}_orig"


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
    """Run the iterations with the module and its submodules in training mode."""
    assert callable(act)
    before = [(part, part.training) for part in module.modules()]
    try:
        module.train()
        for _ in range(ROUNDS):
            act()
    finally:
        for part, training in before:
            part.training = training
