"""Model → the same model without its normalisations, whose scales and shifts stay as they are.

The graph tells where a model normalises. The module there is replaced if it is a normalisation and nothing else: all
its parameters are scales and shifts of a norm, its output does not change if its input is doubled, and what follows in
it are modules without parameters (an activation, a dropout), which stay.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from idfx.analysis.analyze import analyze
from idfx.capture.wrappers import unwrap
from idfx.core.errors import StructureError, UsageError
from idfx.core.records import Structure
from idfx.core.registry import did_you_mean
from idfx.core.roles import Acts
from idfx.ops.kinds import Kind

_BY_RUNNING_STATISTICS = (
    "batch_norm"  # operators that normalise in training mode only, so that no term of them does here
)

if TYPE_CHECKING:
    import networkx as nx


class Affine(nn.Module):
    """A scale and a shift, under the names that they had in a normalisation, and what followed there.

    Args:
        scale, shift: names and parameters; None where there is none.
        axes: of the input along which the parameters lie, from the last one (-1) on.
        added: what the model adds to the scale before it multiplies (1 for a scale of 1 + w).
        rest: the modules that follow, by their names.

    Example:
        >>> found = Affine(("weight", nn.Parameter(torch.tensor([2.0, 3.0]))), None, (-1,))
        >>> found(torch.ones(1, 2)).tolist(), [name for name, _ in found.named_parameters()]
        ([[2.0, 3.0]], ['weight'])
    """

    def __init__(
        self,
        scale: tuple[str, nn.Parameter] | None,
        shift: tuple[str, nn.Parameter] | None,
        axes: tuple[int, ...],
        added: float = 0.0,
        rest: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.axes, self.added = axes, added
        self.scale_name, self.shift_name = (given[0] if given else "" for given in (scale, shift))
        for given in (scale, shift):
            if given is not None:
                self.register_parameter(*given)
        for name, module in (rest or {}).items():
            self.add_module(name, module)
        self.rest = tuple(rest or {})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Scale and shift x, and apply the rest to it."""
        if self.scale_name:
            scale = self._along(x, getattr(self, self.scale_name))
            x = x * (scale + self.added if self.added else scale).to(x.dtype)
        if self.shift_name:
            x = x + self._along(x, getattr(self, self.shift_name)).to(x.dtype)
        for name in self.rest:
            x = getattr(self, name)(x)
        return x

    def _along(self, x: Tensor, parameter: Tensor) -> Tensor:
        sides = [1] * x.dim()
        for axis in self.axes:
            sides[axis] = x.shape[axis]
        return parameter.reshape(sides)

    def extra_repr(self) -> str:
        """Return the names and the axes."""
        return f"{self.scale_name or None}, {self.shift_name or None}, axes={self.axes}"


def without_norms(
    model: nn.Module,
    example_inputs: Sequence[Any] | Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    keep: Sequence[str] = (),
    affine: bool = True,
) -> nn.Module:
    """Return a copy of a model without normalisations, with the same parameters under the same names.

    A scale w and a shift b of a normalisation stay: n(x) · w + b becomes x · w + b. The running statistics of batch
    normalisations are gone. Nothing is initialised: the values that suit a network with norms seldom suit it without,
    so call `init_` on the result (scheme "idfx" makes branches smaller with the depth where nothing normalises).

    Args:
        model, example_inputs, example_kwargs: as in `analyze`, with the same errors; the model does not change.
        keep: patterns of modules whose normalisations stay, such as "*.attn.q_norm".
        affine: whether scales and shifts stay; without them, the copy has fewer parameters.

    Raises:
        StructureError: the model normalises within a module that does more than that.
        UsageError: a pattern that matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
        >>> plain = without_norms(model, torch.ones(1, 4))
        >>> plain[1], torch.equal(plain(torch.ones(1, 4)), model[3](model[2](model[0](torch.ones(1, 4)))))
        (Affine(weight, bias, axes=(-1,)), True)
    """
    made = copy.deepcopy(unwrap(model))
    structure = analyze(made, example_inputs, example_kwargs)
    take_out_(made, structure, keep=keep, affine=affine)
    return made


def take_out_(
    model: nn.Module, structure: Structure, *, keep: Sequence[str] = (), affine: bool = True
) -> tuple[str, ...]:
    """Replace the normalisations of a model in place, and return the names of the modules; see `without_norms`."""
    places = _places(structure.graph)
    kept = {name for pattern in keep for name in _matched(pattern, places)}
    found = {name: _replacement(model, structure, name, affine) for name in places if name not in kept}
    more = [name or "its own forward" for name, made in found.items() if made is None]
    if more:
        shown = ", ".join(more[:5]) + (f" and {len(more) - 5} more" if len(more) > 5 else "")
        raise StructureError(
            f"{structure.model}: it normalises within {shown}, which does more than that; expected normalisations in "
            "modules of their own. Leave these in (--keep-norm NAME, keep=[NAME] in Python)."
        )
    for name, made in found.items():
        assert made is not None
        _replace(model, model.get_submodule(name), made)
    return tuple(found)


def _places(graph: nx.DiGraph[str]) -> list[str]:
    """The modules in which a graph normalises, in the order of execution."""
    norms = (
        facts.get("module") or ""
        for _, facts in graph.nodes(data=True)
        if facts.get("data") and (facts["kind"] == Kind.NORM or _BY_RUNNING_STATISTICS in (facts.get("operator") or ""))
    )
    return list(dict.fromkeys(norms))


def _matched(pattern: str, places: Sequence[str]) -> list[str]:
    found = [name for name in places if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise UsageError(
            f"keep {pattern}: no normalisation has that name; expected a pattern of their modules, such as "
            f"{', '.join(places[:3]) or 'none, as there is none'}.{did_you_mean(pattern, places)}"
        )
    return found


def _replacement(model: nn.Module, structure: Structure, name: str, affine: bool) -> Affine | None:
    """Return what takes the place of a module that normalises; None if it does more than that."""
    module = model.get_submodule(name)
    roles = {inner: structure.roles[structure.first_names[f"{name}.{inner}"]] for inner, _ in module.named_parameters()}
    scales = [inner for inner, role in roles.items() if role.name.acts is Acts.FACTOR]
    shifts = [inner for inner, role in roles.items() if role.name.acts is Acts.SHIFT]
    shape = _shape(structure.graph, name)
    others = len(roles) - len(scales) - len(shifts)
    if not name or not shape or others or max(len(scales), len(shifts)) > 1 or any("." in inner for inner in roles):
        return None
    trial = _Trial(module, shape)
    if not trial.normalises() or (axes := trial.axes([*scales, *shifts])) is None:
        return None
    scale, shift = (
        (found[0], module.get_parameter(found[0])) if found and affine else None for found in (scales, shifts)
    )
    added = roles[scales[0]].added if scales else 0.0
    return Affine(scale, shift, axes, added, {child: module.get_submodule(child) for child in trial.rest})


def _shape(graph: nx.DiGraph[str], name: str) -> tuple[int, ...] | None:
    """The shape of what enters a module, if that is also the shape of what leaves it."""

    def inside(node: str) -> bool:
        return f"{graph.nodes[node].get('module') or ''}.".startswith(f"{name}.")

    crossing = [(source, user) for source, user in graph.edges if graph.nodes[source].get("data")]
    entering = {source for source, user in crossing if inside(user) and not inside(source)}
    leaving = {source for source, user in crossing if inside(source) and not inside(user)}
    shapes = {graph.nodes[node]["shape"] for node in entering | leaving}
    if len(shapes) != 1:
        return None
    sides: list[int] = json.loads(shapes.pop())
    return tuple(sides)


class _Trial:
    """A copy of a module on random numbers, with a scale of 1 and a shift of 0.

    Args:
        module: that may be a normalisation.
        shape: of its input in the example.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        fresh = {id(value): nn.Parameter(torch.rand(value.shape) + 1) for value in module.parameters()}
        self.module = copy.deepcopy(module, dict(fresh)).float().cpu()
        self.module.train()  # by the statistics of the batch
        for child in self.module.children():
            child.eval()  # no dropout
        generator = torch.Generator().manual_seed(0)
        self.x = 3 * torch.randn(max(shape[0], 2), *shape[1:], generator=generator) + 1
        self.rest: list[str] = []
        self._first: Tensor | None = None
        for name, child in self.module.named_children():
            child.register_forward_pre_hook(functools.partial(self._note, name))

    def _note(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self.rest:
            self._first = inputs[0]
        if name not in self.rest:
            self.rest.append(name)

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the rest is applied to, or the output if there is none."""
        self.rest = []
        with torch.no_grad():
            out: Tensor = self.module(x)
        return out if self._first is None else self._first

    def normalises(self) -> bool:
        """Whether the output does not change if the input is doubled, and the rest makes the output of it alone."""
        try:
            normed, doubled = self(self.x).clone(), self(2 * self.x).clone()
        except (RuntimeError, ValueError, TypeError):  # it takes other inputs than this one
            return False
        if normed.shape != self.x.shape or any(True for child in self.module.children() for _ in child.parameters()):
            return False
        return torch.allclose(normed, doubled, rtol=1e-3, atol=1e-3) and not torch.allclose(normed, self.x, rtol=0.1)

    def axes(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return along which axes of the input the parameters lie, from -1 on; None if they lie otherwise."""
        found = {self._axes(name) for name in names} or {()}
        return found.pop() if len(found) == 1 else None

    def _axes(self, name: str) -> tuple[int, ...] | None:
        parameter = self.module.get_parameter(name)
        before = self(self.x).clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1
            changed = self(self.x) != before
            parameter.view(-1)[0] -= 1
        axes = tuple(
            axis - changed.dim()
            for axis, side in enumerate(changed.shape)
            if side > 1 and bool(changed.select(axis, 0).any()) and not bool(changed.narrow(axis, 1, side - 1).any())
        )
        lies = math.prod(changed.shape[axis] for axis in axes) == parameter.numel()
        return axes if lies else None


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another one, everywhere."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # under all of its names
            if child is old:
                setattr(parent, name, new)
