"""How a parameter came to its values: whether its author set them on purpose, by their likeness to a draw.

An initialiser draws around 0, from a continuous distribution, so a draw has no repeated values; where it draws nothing,
it writes what changes nothing: 0 into a shift, 1 into a factor. Values unlike that were set on purpose:

    zeros       a weight that is 0 throughout
    constant    one value throughout, other than the neutral one
    pattern     repeated values, or a ramp
    values      a shift far off 0 that varies: an inverse softplus, or a prior that is added to a draw

The values of a trained model are unlike a draw, too, without a purpose. Training moves every norm scale off its
constant; where it did, only what training does not produce counts: zeros, constants and repeated values, and a level: a
shift of one sign before softplus, exp or another function that is not 0 at 0, where 0 would not be neutral.

Source: ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.structure import analysis_of
from idfx.building.deferral import as_drawn, is_deferred
from idfx.building.unwritten import is_unwritten
from idfx.core.records import FACTS, Structure
from idfx.core.roles import Acts, RoleName
from idfx.ops.kinds import Kind
from idfx.planning.written import is_written
from idfx.sharding.layout import is_sharded
from idfx.sharding.together import whole

SAMPLE = 128  # entries that are compared
REPEATED = 0.2  # share of entries that repeat another: a quarter in an LSTM's bias whose forget gate is set
MOSTLY = 0.5  # the same in half precision, where a draw has 256 values, and in a trained model
COARSE = 1e-4  # spacing of numbers near 1, from which on it is half precision
FEW = 8  # entries below which their mean says nothing
FAR = 6.0  # standard errors between the mean of a draw and 0
SLACK = 1.01  # rounding of the bounds of a draw


@dataclass(frozen=True)
class Purpose:
    """What an author set on purpose: "zeros", "constant", "pattern" or "values", and a text that shows the values."""

    kind: str
    shown: str


class Provenance:
    """The values of a model's parameters, and which of them were set on purpose.

    Args:
        structure: of the model, whose parameters are read as they are now.
    """

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        graph = structure.capture.graph_module
        nodes = (node for node in graph.graph.nodes if node.op == "get_attr" and node.meta[FACTS].kind == "parameter")
        self._tensors = {node.meta[FACTS].name: _attribute(graph, str(node.target)) for node in nodes}
        self.trained = self._is_trained()

    def purpose(self, name: str) -> Purpose | None:
        """Return what the author of a parameter set on purpose; None if it was drawn, is neutral, or is unknown."""
        tensor = self._tensors.get(name)
        if tensor is None or not _is_plain(tensor) or is_written(tensor):
            return None
        role = self._structure.roles[name]
        if is_deferred(tensor) and tensor.dim() > 1:
            return None
        values = _values(tensor, name)
        if role.name.is_shift or (role.name is RoleName.RECURRENT and tensor.dim() < 2):
            return self._of_shift(name, values)
        if role.name.acts is Acts.FACTOR:
            return self._of_factor(values)
        return self._of_weight(values)

    def zeros(self) -> frozenset[str]:
        """Return the weights that are 0 throughout."""
        roles = self._structure.roles
        weights = {name: tensor for name, tensor in self._tensors.items() if roles[name].name.is_weight}
        plain = {name: tensor for name, tensor in weights.items() if _is_plain(tensor) and not is_deferred(tensor)}
        return frozenset(name for name, tensor in plain.items() if not _nonzero(whole(tensor, name).detach()))

    def _of_shift(self, name: str, values: Tensor) -> Purpose | None:
        found = _sample(values)
        if not bool(found.isfinite().all()) or (not bool(found.any()) and not bool(values.any())):
            return None
        if found.numel() > 1 and (repeated := _repeated(found)) >= self._least(values):
            return _constant(found) if repeated == 1 else _pattern(found)
        if self._is_draw(name, values) or (self.trained and not self._is_level(name, found)):
            return None
        if found.numel() == 1:
            return _constant(found)
        if found.numel() >= FEW and _is_ramp(found):
            return _pattern(found)
        low, mean, high = float(found.min()), float(found.mean()), float(found.max())
        return Purpose("values", f"its entries are from {low:.4g} to {high:.4g} with a mean of {mean:.4g}, far off 0")

    def _is_level(self, name: str, found: Tensor) -> bool:
        """Whether a shift leads into a function that is not 0 at 0 and has one sign throughout, as log-scales have.

        There 0 is not neutral, and training has only moved what the author set.
        """
        if found.numel() < FEW or float(found.min()) * float(found.max()) <= 0:
            return False
        analysis = analysis_of(self._structure)
        ends = {_next(analysis.flow, use.term) for use in analysis.uses.uses.get(name, ())}
        return bool(ends) and all(kind is Kind.GATE for kind in ends)

    def _of_factor(self, values: Tensor) -> Purpose | None:
        found = _sample(values)
        single = found.numel() == 1
        if not bool(found.isfinite().all()) or bool((values == 1).all()) or (single and self.trained):
            return None
        if not bool(values.any()):
            return Purpose("zeros", "every entry is 0")
        repeated = 1.0 if single else _repeated(found)
        if repeated < self._least(values):
            return None
        return _constant(found) if repeated == 1 else _pattern(found)

    def _of_weight(self, values: Tensor) -> Purpose | None:
        if not _nonzero(values):
            return Purpose("zeros", "every entry is 0")
        found = _sample(_corner(values))
        found = found[found != 0]
        if found.numel() < 2:  # other entries than those in the corner
            found = _sample(values[values != 0])
        if found.numel() < 2 or not bool(found.isfinite().all()) or _repeated(found) < self._least(values):
            return None
        return _constant(found) if values.min() == values.max() else _pattern(_sample(_corner(values)))

    def _least(self, values: Tensor) -> float:
        """The share of entries that repeat another from which on no draw and no training explains it."""
        coarse = torch.finfo(values.dtype).eps > COARSE
        if coarse and values.numel() < FEW:  # two of three meet by chance
            return 1.0
        return MOSTLY if self.trained or coarse else REPEATED

    def _is_draw(self, name: str, values: Tensor) -> bool:
        """Whether the entries are around 0, or within the bounds from which torch's layers draw a bias."""
        values = values.double()
        count, size = values.numel(), float(values.abs().max())
        if count >= FEW and abs(float(values.mean())) <= FAR * float(values.std()) / math.sqrt(count):
            return not _is_ramp(_sample(values))
        return size <= SLACK * self._bound(name)

    def _bound(self, name: str) -> float:
        """The bound from which torch's layers draw a bias, by the weight that is used in the same call."""
        return max((self._bounds.get(step, 0.0) for step in self._steps.get(name, ())), default=0.0)

    @functools.cached_property
    def _bounds(self) -> Mapping[int, float]:
        """By call, the bound that its weight sets for a bias: 1 / √(entries of one output)."""
        names, parameters = self._structure.first_names, self._structure.parameters
        sizes = {site.step: math.prod(parameters[names[site.parameter]].shape[1:]) for site in self._structure.sites}
        return {step: 1 / math.sqrt(size) for step, size in sizes.items() if size}

    @functools.cached_property
    def _steps(self) -> Mapping[str, list[int]]:
        """By parameter, the calls that read it."""
        capture = self._structure.capture
        found: dict[str, list[int]] = {}
        for node in capture.graph.nodes:
            if node.op == "get_attr":
                found.setdefault(node.meta[FACTS].name, []).extend(capture.steps[user.name] for user in node.users)
        return found

    def _is_trained(self) -> bool:
        """Whether most norm scales vary; where there is none, whether most shifts that vary are far off a draw."""
        self.trained = False
        roles = self._structure.roles
        plain = {name: tensor for name, tensor in self._tensors.items() if _is_plain(tensor) and tensor.numel() > 1}
        scales = [whole(own, name) for name, own in plain.items() if roles[name].name is RoleName.NORM_SCALE]
        if scales:
            return 2 * sum(map(_varies, scales)) > len(scales)
        shifts = [name for name in plain if roles[name].name.is_shift and _varies(_values(plain[name], name))]
        moved = [name for name in shifts if not self._is_draw(name, _values(plain[name], name))]
        return 2 * len(moved) > len(shifts)


def _next(flow: Dataflow, position: int) -> Kind | None:
    """The kind of the first term behind another that does more than move, scale and add; None at a branching."""
    while len(users := flow.users.get(position, ())) == 1:
        position = users[0]
        kind = flow.terms[position].kind
        if kind not in (Kind.MOVE, Kind.SCALE, Kind.SUM):
            return kind
    return None


def _attribute(graph: nn.Module, path: str) -> Tensor:
    *modules, last = path.split(".")
    found: Tensor = getattr(graph.get_submodule(".".join(modules)), last)
    return found


def _is_plain(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read here."""
    plain = (type(tensor) in (Tensor, nn.Parameter) or is_sharded(tensor)) and tensor.layout is torch.strided
    held = not tensor.is_meta and bool(tensor.numel()) and not is_unwritten(tensor)
    return plain and held and tensor.is_floating_point()


def _values(tensor: Tensor, name: str) -> Tensor:
    """The values that a parameter will have: the whole of a DTensor, or those of a pending draw."""
    return as_drawn(whole(tensor, name), name).detach()


def _varies(tensor: Tensor) -> bool:
    """Whether most entries are unlike any other."""
    return _repeated(_sample(tensor.detach())) < MOSTLY


def _nonzero(values: Tensor) -> bool:
    return bool(_corner(values).any()) or bool(values.any())


def _corner(values: Tensor) -> Tensor:
    """The first entries along every axis, as many as make a sample: repeated values are neighbours on some axis."""
    side = 2
    while math.prod(min(size, side + 1) for size in values.shape) <= SAMPLE and side < max(values.shape, default=0):
        side += 1
    return values[tuple(slice(side) for _ in values.shape)]


def _sample(values: Tensor) -> Tensor:
    """Evenly spaced entries of a tensor, at most as many as a sample has, in double precision on the CPU."""
    flat = values.reshape(-1)
    return flat[:: -(-flat.numel() // SAMPLE) or 1].double().cpu()


def _repeated(found: Tensor) -> float:
    """The share of entries that repeat another one; 1 if all are equal."""
    return (found.numel() - len(set(found.tolist()))) / max(found.numel() - 1, 1)


def _is_ramp(found: Tensor) -> bool:
    steps = found.diff()
    return bool((steps > 0).all()) or bool((steps < 0).all())


def _constant(found: Tensor) -> Purpose:
    return Purpose("constant", f"every entry is {float(found[0]):.4g}")


def _pattern(found: Tensor) -> Purpose:
    shown = ", ".join(f"{value:.4g}" for value in found.flatten()[:6].tolist())
    more = ", ..." if found.numel() > 6 else ""
    return Purpose("pattern", f"its entries ({shown}{more}) are a pattern")
