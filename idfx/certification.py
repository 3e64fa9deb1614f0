"""Weights × structure → certificate: the model is run, and every residual join compared with its shortcut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from idfx.capture import tensors_in
from idfx.errors import CertificateError
from idfx.flow import operator_name
from idfx.records import Certificate, Example, Join, JoinCheck, Structure
from idfx.running import ModulePath, run, unwrap


@dataclass
class _Observer:
    """Watches the calls at which joins stand; `expected` is the operator of each, by step."""

    joins: dict[int, Join]
    expected: dict[int, str]
    deviations: dict[str, float] = field(default_factory=dict)
    calls: int = 0

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        step, self.calls = self.calls, self.calls + 1
        join = self.joins.get(step)
        if join is None:
            return func(*args, **kwargs)
        if operator_name(func) != self.expected[step]:
            raise CertificateError(
                f"join {join.name}: call {step} is {operator_name(func)} in this run and was {self.expected[step]} "
                "when captured; expected the same path. Capture the model with an example on its own device."
            )
        shortcut = args[join.operand]
        if func._schema.is_mutable:
            shortcut = shortcut.clone()
        result = func(*args, **kwargs)
        self.deviations[join.name] = _deviation(result, shortcut)
        return result


def _deviation(result: torch.Tensor, shortcut: torch.Tensor) -> float:
    """max|result − shortcut| / max|shortcut|; 0 if and only if they are equal, inf if either is not finite."""
    if torch.equal(result, shortcut.expand_as(result)):
        return 0.0 if bool(torch.isfinite(result).all()) else math.inf
    difference = (result - shortcut).abs().max().item()
    size = shortcut.abs().max().item()
    ratio = difference / size if size else math.inf
    return ratio if math.isfinite(ratio) else math.inf


def another(example: Example) -> Example:
    """Return an example of the same form with other values.

    Floating tensors are drawn anew at the same scale; integers are mirrored within their range, so that an index stays
    an index and a mask of ones a mask of ones.
    """
    generator = torch.Generator().manual_seed(1)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            spread = tensor.detach().float().std(correction=0).cpu() if tensor.numel() > 1 else torch.tensor(1.0)
            drawn = noise * (spread if spread > 0 else 1.0) + tensor.detach().float().mean().cpu()
            return drawn.to(tensor.device, tensor.dtype)
        if tensor.dtype == torch.bool or tensor.is_complex() or not tensor.numel():
            return tensor.clone()
        return tensor.max() + tensor.min() - tensor

    args, kwargs = pytree.tree_map_only(torch.Tensor, change, (example.args, dict(example.kwargs)))
    return Example(args, kwargs)


def _run(model: nn.Module, example: Example, observer: _Observer) -> list[torch.Tensor]:
    """Run once, on copies of buffers and inputs, and return the floating outputs."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers(remove_duplicate=False)}
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.detach().clone().to(device), (example.args, dict(example.kwargs))
    )
    result = run(model, buffers, args, kwargs, observer.on_call, ModulePath(model))
    return [tensor for tensor in tensors_in(result) if tensor.is_floating_point()]


def _exactly_zero(model: nn.Module, structure: Structure, join: Join) -> bool:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for end in join.ends:
        weight = parameters[end.parameter]
        layout = structure.roles[end.parameter].layout if end.parameter in structure.roles else None
        axis = layout.out_axis if layout is not None else 0
        ranges = end.rows or ((0, weight.shape[axis]),) if weight.dim() else ()
        parts = [weight.narrow(axis, start, stop - start) for start, stop in ranges] or [weight]
        if any(bool(part.detach().any()) for part in parts):
            return False
    return True


def certify(model: nn.Module, structure: Structure, eps: float = 1e-6) -> Certificate:
    """Return what two runs of the model show: is every residual join its shortcut, does the signal get through.

    A join passes if max|output − shortcut| / max|shortcut| is at most √eps, and exactly 0 where the ends are 0: a
    branch that ends with entries of eps, behind a normalisation whose own epsilon is no smaller, is that small.

    Args:
        model: the initialised model, on any device.
        structure: of this model, with the example that it was captured with.
        eps: the size of the entries that the scheme calls zero.

    Raises:
        ForwardError: the model raised.
        CertificateError: the run took another path than the captured one, so that nothing can be compared.
    """
    model = unwrap(model)
    capture = structure.capture
    watched = {join.step: join for join in structure.joins if join.operand >= 0}
    names = {capture.steps[n.name]: operator_name(n.target) for n in capture.graph.nodes if n.op == "call_function"}
    observer = _Observer(watched, names)
    first = _run(model, capture.example, observer)
    if observer.calls != capture.calls:
        raise CertificateError(
            f"{structure.model}: this run made {observer.calls} operator calls and the captured one {capture.calls}; "
            "expected the same path. Capture the model with an example on its own device."
        )
    second = _run(model, another(capture.example), _Observer({}, {}))
    checks = tuple(_check(model, structure, join, observer.deviations.get(join.name), eps) for join in structure.joins)
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in (*first, *second))
    distinct = not first or any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, second, strict=False)
    )
    return Certificate(checks, finite, distinct, tuple(_failures(checks, finite, distinct)))


def _check(model: nn.Module, structure: Structure, join: Join, deviation: float | None, eps: float) -> JoinCheck:
    if deviation is None:
        return JoinCheck(join.name, join.kind, math.nan, math.nan, "unseen")
    if not join.zeroable:
        return JoinCheck(join.name, join.kind, deviation, math.inf, "open")
    tolerance = 0.0 if _exactly_zero(model, structure, join) else math.sqrt(eps)
    status = "identity" if deviation <= tolerance else "deviates"
    return JoinCheck(join.name, join.kind, deviation, tolerance, status)


def _failures(checks: Sequence[JoinCheck], finite: bool, distinct: bool) -> list[str]:
    failures = [
        f"join {check.join} deviates from its shortcut by {check.deviation:.3g} (at most {check.tolerance:.3g})"
        for check in checks
        if check.status == "deviates"
    ]
    if not finite:
        failures.append("the output holds NaN or Inf")
    elif not distinct:
        failures.append("two different inputs give the same output: the signal is lost on the way")
    return failures
