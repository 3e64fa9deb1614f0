"""Units whose output no input of usual size can change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from idfx.audits.metric import metric
from idfx.audits.preactivation_range import Range, Reach
from idfx.audits.resting import recurrent_ranges
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding, Severity
from idfx.ops.semantics import operator_name

DEVIATIONS = 5.0
FLAT = 1e-5
_POINTS = 41
_FUNCTIONS = frozenset({
    "sigmoid", "hardsigmoid", "tanh", "hardtanh", "relu", "relu6", "clamp", "clamp_min", "gelu", "silu", "hardswish",
    "elu", "celu", "selu", "mish", "softplus", "erf", "threshold", "softsign", "log_sigmoid",
})  # fmt: skip

_REMEDY = "Start its bias near 0 (a forget gate at 1 to 3), and its weights at gain / √fan-in."


@metric("saturated_units")
def saturated_units(subject: AuditContext) -> Iterator[Finding]:
    """Units whose activation is flat for every input of usual size: dead ReLUs, saturated gates, one-hot routers.

    Definition: for inputs of mean square 1, the value before an activation has a centre (added biases and shifts) and a
    spread (the length of the weight's row; after a normalisation 1, times its scale). A unit is saturated if the
    derivative of the activation is at most 1e-5 within five spreads of the centre. Sums, scales and moves in between
    are followed; other values are unknown and not judged. The gates of torch's recurrent layers are treated in the same
    way, from both weights and both biases; a softmax over outputs of a weight is saturated if one of them stays ahead
    by 11.5 (1e-5).

    Unit: the share of the units. Thresholds: above 0 (warning), from half of them (error): neither the unit nor the
    layers before it can learn. Only 6e-7 of normal values are outside five deviations; a gate closed by a bias of −10
    has a derivative of 4.5e-5 and is not a finding.

    Source: Glorot, Bordes and Bengio, "Deep sparse rectifier neural networks", AISTATS 2011; Gers, Schmidhuber and
    Cummins, "Learning to forget", 2000, for gates.
    """
    reach, flow = Reach(subject), subject.flow
    for term in flow.terms:
        node = flow.nodes[term.node]
        name = operator_name(node.target).removeprefix("aten.").removesuffix("_") if node.op == "call_function" else ""
        if not term.data or not term.operands or not term.kind.is_function or not term.shape:
            continue
        share, found = None, None
        if name in _FUNCTIONS and len(node.all_input_nodes) == 1 and (found := reach.of(term.operands[0])):
            share = flat_share(found, _function(node))
        elif name == "glu" and (found := reach.of(term.operands[0])):
            share = flat_share(_second_half(found, node, flow.terms[term.operands[0]].shape), torch.sigmoid)
        elif name in ("softmax", "_softmax") and (found := reach.of(term.operands[0])):
            share = _decided(found, _axis(node), flow.terms[term.operands[0]].shape)
        if share and found is not None:
            yield _told(subject, found, share, name)
    for where, found, function in recurrent_ranges(subject):
        if share := flat_share(found, function):
            yield _told(subject, found, share, where)


def _told(subject: AuditContext, found: Range, share: float, name: str) -> Finding:
    added = sorted(found.added, key=lambda pair: -pair[1])
    parameter = added[0][0] if added else found.weight
    severity: Severity = "error" if share >= 0.5 else "warning"
    message = f"{share:.0%} of the units of the following {name} are flat for every input of usual size"
    return subject.finding(severity, "saturated_units", parameter, share, 0, message, _REMEDY)


def _second_half(found: Range, node: Any, shape: tuple[int, ...] | None) -> Range:
    dim = node.args[1] if len(node.args) > 1 else -1
    centre, spread = (value.expand(shape).chunk(2, dim)[1] for value in (found.centre, found.spread))
    return Range(centre, spread, found.added, found.weight)


def flat_share(found: Range, function: Callable[[Tensor], Tensor]) -> float:
    """Return the share of the units for which a function is flat over the whole range of their values.

    Args:
        found: the range of the values.
        function: of each entry alone.

    Example:
        >>> flat_share(Range(torch.tensor([-9.0, 0.0]), torch.ones(2)), torch.relu)
        0.5
    """
    if not isinstance(found.centre, Tensor):
        return 0.0
    centre, spread = _together(found.centre.double(), found.spread.double())
    suspect = centre.abs() > DEVIATIONS * spread
    if not bool(suspect.any()):
        return 0.0
    pairs, counts = torch.stack((centre[suspect], spread[suspect])).unique(dim=1, return_counts=True)  # type: ignore[no-untyped-call]
    steps = torch.linspace(-DEVIATIONS, DEVIATIONS, _POINTS, dtype=torch.float64, device=pairs.device)
    points = pairs[0][:, None] + pairs[1][:, None] * steps
    with torch.enable_grad():
        start = points.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(start.clone()).sum(), start)
    flat = slope.abs().amax(1) <= FLAT
    return float(counts[flat].sum()) / centre.numel()


def _together(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return one + torch.zeros_like(other), other + torch.zeros_like(one)


def _function(node: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: node.target(x, *node.args[1:], **node.kwargs)


def _axis(node: Any) -> int:
    return int(node.args[1])


def _decided(found: Range, dim: int, shape: tuple[int, ...] | None) -> float:
    """The share of the softmaxes that one entry wins for every input of usual size."""
    if not isinstance(found.centre, Tensor) or shape is None or shape[dim] < 2 or found.centre.dim() == 0:
        return 0.0
    centre, spread = (value.double().expand(shape).movedim(dim, -1) for value in (found.centre, found.spread))
    top, order = centre.sort(-1, descending=True)
    deviations = spread.gather(-1, order)
    gap = DEVIATIONS * (deviations[..., :1].square() + deviations[..., 1:].square()).sqrt()
    ahead = (top[..., :1] - top[..., 1:] - gap) > -math.log(FLAT)
    return float(ahead.all(-1).double().mean())
