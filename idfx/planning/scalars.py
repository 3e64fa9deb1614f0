"""Learned scalars on residual branches: added to a model through torch.nn.utils.parametrize, and folded in again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from idfx.capture.wrappers import unwrap
from idfx.core.errors import PlanError
from idfx.core.records import End, Plan, Scalar


class BranchScalar(nn.Module):
    """Multiplies a parametrised tensor by a scalar, in some rows or in all.

    `names` are the former names of the module's parameters, whose order `fold_` restores. `added` is what the model
    adds to the tensor: the scalar multiplies the sum.
    """

    def __init__(
        self,
        alpha: nn.Parameter,
        rows: tuple[tuple[int, int], ...] | None,
        axis: int,
        size: int,
        names: tuple[str, ...],
        added: float = 0.0,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.rows, self.axis, self.size, self.names, self.added = rows, axis, size, names, added

    def forward(self, tensor: Tensor) -> Tensor:
        """Return the tensor times the scalar."""
        scaled = self.alpha * (tensor + self.added) - self.added if self.added else self.alpha * tensor
        if self.rows is None:
            return scaled
        number = torch.arange(self.size, device=tensor.device)
        inside = torch.stack([(number >= start) & (number < stop) for start, stop in self.rows]).any(0)
        shape = [-1 if axis == self.axis else 1 for axis in range(tensor.dim())]
        return torch.where(inside.view(shape), scaled, tensor)


def _owner(model: nn.Module, end: End) -> tuple[nn.Module, str]:
    """Return the module that owns a parameter, and its name there."""
    path, _, name = end.parameter.rpartition(".")
    return model.get_submodule(path), name


def check_scalars(model: nn.Module, scalars: Sequence[Scalar]) -> None:
    """Check that the scalars of a plan can be added to a model; raise PlanError otherwise.

    Raises:
        PlanError: a parameter that does not exist, is tied, or cannot be parametrised by torch.
    """
    if not scalars:
        return
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    taken: set[str] = set()
    for scalar in scalars:
        for end in scalar.on:
            subject = f"scalar of {scalar.join} on {end.parameter}"
            if end.parameter in taken:
                raise PlanError(f"{subject}: it already has a scalar; expected one per parameter. Leave this one out.")
            taken.add(end.parameter)
            try:
                module, name = _owner(model, end)
            except AttributeError:
                module, name = model, ""
            scripted = isinstance(module, torch.jit.ScriptModule)
            own = None if scripted else module._parameters.get(name)
            if own is None or isinstance(module, parametrize.ParametrizationList):
                raise PlanError(
                    f"{subject}: it is not a plain parameter of a module; expected one that torch can parametrise. "
                    "Leave this scalar out of the plan."
                )
            if len(names[id(own)]) > 1:
                raise PlanError(
                    f"{subject}: it is tied to {', '.join(set(names[id(own)]) - {end.parameter})}; expected a "
                    "parameter that is not tied. Leave this scalar out of the plan, or untie the weights."
                )


def without_scripted(plan: Plan, model: nn.Module) -> Plan:
    """Return the plan without scalars inside of TorchScript modules, which torch cannot parametrise, and with a note.

    Args:
        plan: made for this model.
        model: any module; it is unwrapped.
    """
    modules = dict(unwrap(model).named_modules(remove_duplicate=False))

    def scripted(end: End) -> bool:
        return isinstance(modules.get(end.parameter.rpartition(".")[0]), torch.jit.ScriptModule)

    left = tuple(scalar for scalar in plan.scalars if not any(map(scripted, scalar.on)))
    if len(left) == len(plan.scalars):
        return plan
    names = ", ".join(scalar.join for scalar in plan.scalars if scalar not in left)
    note = f"{names}: no learned scalar, because torch cannot parametrise a TorchScript module; the block stays open"
    return replace(plan, scalars=left, notes=(*plan.notes, note))


def add_scalars_(model: nn.Module, scalars: Sequence[Scalar], axes: Mapping[str, int] | None = None) -> list[str]:
    """Multiply branches by learned scalars, in place, and return the names of the scalars.

    The parameter `fc.weight` becomes `fc.parametrizations.weight.original`; `fc.weight` is computed from it.

    Args:
        model: any module; it is unwrapped.
        scalars: of a plan for this model.
        axes: the axis of the rows, for parameters where it is not 0.

    Raises:
        PlanError: as in `check_scalars`; the model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> add_scalars_(model, [Scalar("join", 0.0, (End("0.weight"), End("0.bias")))])
        ['0.parametrizations.weight.0.alpha']
        >>> model(torch.ones(1, 2)).abs().sum().item()
        0.0
    """
    model = unwrap(model)
    check_scalars(model, scalars)
    added = []
    names = {
        module: tuple(module._parameters)
        for module in (_owner(model, end)[0] for scalar in scalars for end in scalar.on)
    }
    for scalar in scalars:
        alpha: nn.Parameter | None = None
        for number, end in enumerate(scalar.on):
            module, name = _owner(model, end)
            own = module._parameters[name]
            assert own is not None
            if alpha is None:
                alpha = nn.Parameter(torch.tensor(scalar.value, dtype=own.dtype, device=own.device))
            axis = (axes or {}).get(end.parameter, 0)
            size = own.shape[axis] if own.dim() else 1
            factor = BranchScalar(alpha, end.rows, axis, size, names[module], end.added)
            parametrize.register_parametrization(module, name, factor, unsafe=True)
            if not number:
                added.append(_alpha(end.parameter))
    return added


def scalar_values(scalars: Sequence[Scalar]) -> dict[str, float]:
    """Return the initial value of each learned scalar, by its name in the model.

    Example:
        >>> scalar_values([Scalar("join", 0.0, (End("fc.weight"), End("fc.bias")))])
        {'fc.parametrizations.weight.0.alpha': 0.0}
    """
    return {_alpha(scalar.on[0].parameter): scalar.value for scalar in scalars}


def source_of(name: str) -> str:
    """Return the name of a parameter before a scalar was added to it.

    Example:
        >>> source_of("fc.parametrizations.weight.original"), source_of("fc.bias")
        ('fc.weight', 'fc.bias')
    """
    found = re.fullmatch(r"(.*?)parametrizations\.([^.]+)\.original", name)
    return found[1] + found[2] if found else name


def _alpha(parameter: str) -> str:
    path, dot, name = parameter.rpartition(".")
    return f"{path}{dot}parametrizations.{name}.0.alpha"


def fold_(model: nn.Module) -> nn.Module:
    """Multiply the learned branch scalars into the parameters they scale, in place, and return the plain model.

    The outputs do not change, and the state dict has the same keys as before the scalars were added.

    Args:
        model: to which a plan with scalars was applied.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> _ = add_scalars_(model, [Scalar("join", 2.0, (End("0.weight"),))])
        >>> list(fold_(model).state_dict())
        ['0.weight', '0.bias']
    """
    for module in list(unwrap(model).modules()):
        if not parametrize.is_parametrized(module):
            continue
        chains = module.get_submodule("parametrizations")
        for name, chain in list(chains.named_children()):
            factors = [part for part in chain.children() if isinstance(part, BranchScalar)]
            if factors and len(factors) == len(list(chain.children())):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                for other in factors[0].names:
                    if other in module._parameters:
                        module._parameters[other] = module._parameters.pop(other)
    return model
