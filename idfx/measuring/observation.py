"""Model × batch → observation: one forward and backward pass, and the forward pass of a second batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from idfx.analysis.queries import StructureQueries
from idfx.capture.tracing import another
from idfx.core.errors import AuditError
from idfx.core.findings import ActivationStats, Batch, Observation
from idfx.core.records import Structure
from idfx.measuring.derivatives import gradients
from idfx.measuring.probe_points import ATTENTION, SOFTMAX, Place, places
from idfx.measuring.replay import OutOfTimeError, Replay
from idfx.measuring.statistics import (
    cosine,
    dead_share,
    effective_rank,
    flat_share,
    is_symmetric,
    moments,
    sampled,
    sure_attention,
    sure_share,
)


class _Watch:
    """Observes the values of some nodes, and the gradients with respect to them."""

    def __init__(self, wanted: dict[str, Place]) -> None:
        self._wanted = wanted
        self.points: dict[str, ActivationStats] = {}
        self.gradients: dict[str, float] = {}
        self._samples: dict[str, Tensor] = {}
        self._slopes: dict[str, float] = {}

    def before(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Observe the input of an activation, which may overwrite it."""
        place = self._wanted.get(node.name)
        if place is None or place.kind != "activation" or place.operator in SOFTMAX:
            return
        if place.operator == ATTENTION:
            self._slopes[node.name] = sure_attention(args, kwargs)
        elif bool(args[0].any()):  # a zero tensor comes from a zero before it, and is not informative
            assert callable(node.target)
            self._slopes[node.name] = flat_share(node.target, args, kwargs)

    def first(self, node: torch.fx.Node, result: Any) -> Any:
        """Observe a value of the first batch."""
        place, value = self._wanted.get(node.name), _tensor(result)
        if place is not None and value is not None:
            self.points[node.name] = self._point(node, place, value)
            self._samples[node.name] = sampled(value)
            if value.grad_fn is not None:
                self._listen(node.name, value)
        return result

    def second(self, node: torch.fx.Node, result: Any) -> Any:
        """Compare a value of the second batch with that of the first."""
        value = _tensor(result)
        if node.name in self._samples and value is not None:
            found = cosine(self._samples[node.name], sampled(value))
            self.points[node.name] = replace(self.points[node.name], correlation=found)
        return result

    def _point(self, node: torch.fx.Node, place: Place, value: Tensor) -> ActivationStats:
        mean, variance, kurtosis = moments(value)
        rank, most = effective_rank(value, place.axis)
        dead = saturated = None
        if place.operator in SOFTMAX:
            saturated = sure_share(value, _softmax_axis(node))
        elif place.kind == "activation":
            saturated = self._slopes.get(node.name)
            judged = saturated is not None and place.operator != ATTENTION
            dead = dead_share(value, place.axis) if judged else None
        return ActivationStats(
            name=place.name, kind=place.kind, operator=place.operator, parameter=place.parameter, block=place.block,
            units=value.shape[place.axis], mean=mean, variance=variance, kurtosis=kurtosis, dead=_told(dead),
            saturated=_told(saturated), correlation=None, effective_rank=_told(rank), rank_bound=most, gradient=None,
        )  # fmt: skip

    def _listen(self, name: str, value: Tensor) -> None:
        """Record the norm of the gradient with respect to this value, even if the value is overwritten later."""
        edge = torch.autograd.graph.get_gradient_edge(value)

        def arrived(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[edge.output_nr]
            if gradient is not None:
                self.gradients[name] = _size(gradient)

        edge.node.register_prehook(arrived)


def observe(
    model: nn.Module,
    structure: Structure,
    batch: Batch,
    seed: int = 0,
    out_of_time: Callable[[], bool] = lambda: False,
) -> tuple[Observation, dict[str, Tensor]]:
    """Return the results of one batch, and the statistics of its batch normalisations; the model does not change.

    The batch is the example of the structure's capture. Batch normalisations use its statistics; dropout is off. The
    gradient at the outputs is normal, with norm 1 over all of them together. If a backward pass or a second batch
    cannot be run, it is missing, and the observation gives the reason.

    Args:
        model: with its values.
        structure: of this model, on a capture of the batch.
        batch: the description of the example.
        seed: of the gradient at the outputs and of the random numbers of the forward.
        out_of_time: ends the work when it returns True.

    Raises:
        AuditError: the graph cannot be run, or the budget ran out.
    """
    run = Replay(model, structure.capture, seed, out_of_time)
    watch = _Watch(places(structure, StructureQueries(structure)))
    outputs = run.run(structure.capture.example, watch.first, before=watch.before, wanted="parameters")
    norms: dict[str, float] = {}
    symmetric: tuple[str, ...] = ()
    no_backward = no_second = ""
    try:
        norms, symmetric = _backward(structure.model, outputs, run.parameters, seed)
    except AuditError as error:
        no_backward = str(error)
        watch.gradients.clear()
    alone, correlation, difference = dict(watch.points), None, None
    other = another(structure.capture.example)
    if other is not None:
        try:
            again = Replay(model, structure.capture, seed, out_of_time).run(other, watch.second)
            correlation, difference = _compared(outputs, again)
        except OutOfTimeError:
            raise
        except AuditError:  # the graph belongs to one batch, and another may be routed differently
            no_second = "a second batch does not fit the graph of the first one"
            watch.points = alone
    points = tuple(replace(point, gradient=watch.gradients.get(name)) for name, point in watch.points.items())
    finite = all(bool(torch.isfinite(output).all()) for output in outputs)
    told = no_backward, no_second, symmetric
    return Observation(batch, points, norms, finite, correlation, difference, *told), run.statistics


def _backward(
    model: str, outputs: list[Tensor], parameters: dict[str, Tensor], seed: int
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Send a random gradient of norm 1 back from the outputs; return the norm of each parameter's, and `symmetric`.

    Raises:
        AuditError: there is no floating-point output, or an operator raised.
    """
    ends = [output for output in outputs if output.requires_grad]
    leaves = {name: leaf for name, leaf in parameters.items() if leaf.requires_grad}
    if leaves and not sum(output.numel() for output in outputs):
        raise AuditError(f"{model}: no output is floating-point; expected at least one. No gradient can start there.")
    if not ends or not leaves:
        return dict.fromkeys(leaves, 0.0), ()
    found = gradients(model, "backward", ends, list(leaves.values()), unit_gradients(ends, seed))
    pairs = dict(zip(leaves, found, strict=True))
    symmetric = (name for name, one in pairs.items() if one is not None and is_symmetric(leaves[name].detach(), one))
    return {name: 0.0 if one is None else _size(one) for name, one in pairs.items()}, tuple(symmetric)


def _size(gradient: Tensor) -> float:
    """The norm of a gradient, in at least float32; complex numbers count by absolute value."""
    gradient = gradient.to_dense() if gradient.layout != torch.strided else gradient
    return float(torch.linalg.vector_norm(gradient.abs().float() if gradient.is_complex() else gradient.float()))


def unit_gradients(outputs: list[Tensor], seed: int) -> list[Tensor]:
    """Return normal tensors of the shapes of the outputs, with total norm 1, equal on every device.

    Example:
        >>> [round(float(g.norm()), 3) for g in unit_gradients([torch.zeros(2, 3)], 0)]
        [1.0]
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(output.shape, generator=generator) for output in outputs]
    size = math.sqrt(sum(float(tensor.square().sum()) for tensor in drawn)) or 1.0
    return [(t / size).to(output.device, output.dtype) for t, output in zip(drawn, outputs, strict=True)]


def _compared(outputs: list[Tensor], again: list[Tensor]) -> tuple[float | None, float | None]:
    """The cosine between the outputs of two runs, and the norm of their difference over that of the first."""
    one = torch.cat([sampled(output) for output in outputs]) if outputs else torch.zeros(0)
    other = torch.cat([sampled(output) for output in again]) if again else torch.zeros(0)
    if one.shape != other.shape:
        return None, None
    size = float(one.double().norm())
    return cosine(one, other), float((one.double() - other.double()).norm()) / size if size else None


def _tensor(value: Any) -> Tensor | None:
    """The first tensor of a result, if its values can be read."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
    return value if plain and value.dim() and value.numel() and value.is_floating_point() else None


def _softmax_axis(node: torch.fx.Node) -> int:
    return int(node.args[1] if len(node.args) > 1 else node.kwargs["dim"])  # type: ignore[arg-type]


def _told(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
