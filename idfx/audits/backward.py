"""The gradients of one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from idfx.audits.forward import stem
from idfx.audits.gradient_flow import fed
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.errors import AuditError
from idfx.core.findings import ActivationStats, Finding, Measure
from idfx.measuring.trend import trend

GROWTH = 1e4

_FINITE = "Check the values of the forward pass first, then roots, norms and divisions near zero."
_SILENT = "Look for units that are off for all inputs, experts that receive no sample, or a detach."
_TREND = "Close the branches (idinit, fixup, skipinit, zero-gamma), normalise, or draw with gain / √fan-in."


@metric("backward", batch=True)
def backward(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Gradients of one batch: vanishing or exploding over depth, non-finite, or missing; gradient over weight.

    Definition: a random gradient of norm 1 is propagated back from the outputs (normal, over all of them together), so
    norms are amplifications. For each parameter: the norm of its gradient and, if the parameter is not 0, its ratio to
    the norm of the parameter. The trend is a least-squares fit to log10 of the norm of the gradient that arrives at the
    ends of the outermost residual blocks (or at the weights of the main stem, if there are fewer than four blocks),
    from the outputs to the inputs.

    Unit: norms; ratios. Thresholds: NaN or Inf (error). A trend by a factor of more than 1e4 over depth, with a slope
    more than three standard errors from 0 (warning). A weight whose gradient is exactly 0 although no zero weight
    explains it (warning; not for a constant batch, which a normalisation turns into zeros).

    Source: Glorot and Bengio, AISTATS 2010; Hanin, "Which neural net architectures give rise to exploding and
    vanishing gradients?", NeurIPS 2018; the gradient-to-weight ratio: You, Gitman and Ginsburg, "Large batch training
    of convolutional networks" (LARS), 2017. The thresholds are ours.
    """
    seen = subject.observation
    if seen.no_backward:
        raise AuditError(seen.no_backward)
    yield from _not_finite(subject)
    yield from _silent(subject)
    ratios = sorted(_ratios(subject))
    if ratios:
        yield Measure("backward", "median of gradient / weight", ratios[len(ratios) // 2])
        yield Measure("backward", "smallest of gradient / weight", ratios[0])
        yield Measure("backward", "largest of gradient / weight", ratios[-1])
    yield from _trend(subject, stem(seen.points))


def _ratios(subject: AuditContext) -> Iterator[float]:
    for name, norm in subject.observation.gradients.items():
        size = subject.rms(name) * math.sqrt(subject.tensors[name].numel())
        if norm and size and math.isfinite(norm):
            yield norm / size


def _not_finite(subject: AuditContext) -> Iterator[Finding]:
    broken = [name for name, norm in subject.observation.gradients.items() if not math.isfinite(norm)]
    if broken and subject.observation.finite:
        name = broken[-1]  # the last one in the forward pass is the first in the backward pass
        told = f"its gradient contains NaN or Inf, as do those of {len(broken) - 1} other parameters"
        yield subject.finding("error", "backward", name, len(broken), 0, told, _FINITE)


def _silent(subject: AuditContext) -> Iterator[Finding]:
    if subject.trial is not None and subject.trial.uniform:  # a normalisation turns it into zeros
        return
    zeros = [name for name in subject.structure.parameters if subject.is_zero(name)]
    reached = fed(subject.flow, zeros, subject.first_name)
    for name, norm in subject.observation.gradients.items():
        if not norm and name in reached and subject.structure.roles[name].layout is not None:
            told = "it gets no gradient from this batch, although no zero weight explains it"
            yield subject.finding("warning", "backward", name, 0, 0, told, _SILENT)


def _trend(subject: AuditContext, points: Sequence[ActivationStats]) -> Iterator[Finding | Measure]:
    arriving = [point for point in reversed(points) if point.gradient]
    line = trend([point.gradient or 0.0 for point in arriving])
    if line is None:
        return
    yield Measure("backward", "log10 of gradient per block", line.slope)
    yield Measure("backward", "its standard error", line.error)
    if line.sure and not 1 / GROWTH < line.total < GROWTH:
        verb = "explodes" if line.total > 1 else "vanishes"
        told = f"the gradient {verb} {line.total:.3g}-fold on its way back through {line.steps} blocks or layers, by"
        told += f" {line.slope:.3g} ± {line.error:.2g} in log10 per step"
        last, bound = arriving[-1], GROWTH if line.total > 1 else 1 / GROWTH
        site = last.block or last.name
        yield Finding("warning", "backward", last.parameter, site, line.total, bound, told, _TREND)
