"""What one gradient does on its way back."""

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

_FINITE = "Look at the values of the forward pass first; then at roots, norms and divisions near zero."
_SILENT = "Look for units that are off for all inputs, experts that none is sent to, or a detach on the way."
_TREND = "Close the branches (idinit, fixup, skipinit, zero-gamma), normalise, or draw with gain / √fan-in."


@metric("backward", batch=True)
def backward(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Gradients of one batch: vanishing or exploding over depth, not finite, none at all; gradient over weight.

    Definition: a random gradient of norm 1 goes back from the outputs (normal, over all of them together), so that
    norms are amplifications. For each parameter the norm of its gradient and, where it is not 0, that over the norm of
    the parameter. The trend is a least-squares line through log10 of the norm of the gradient that arrives at the ends
    of the residual blocks that lie in no other (or the weights of the main stem, if there are fewer than four), from
    the outputs to the inputs.

    Unit: norms; ratios. Thresholds: NaN or Inf (error). A trend by a factor beyond 1e4 over depth, more than three
    standard errors from none (warning). A weight whose gradient is exactly 0, although no zero of the weights keeps it
    away (warning; not of a batch that is one number throughout, of which a normalisation makes zeros).

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
        name = broken[-1]  # the last one that the forward meets is the first on the way back
        told = f"its gradient holds NaN or Inf, and those of {len(broken) - 1} other parameters"
        yield subject.finding("error", "backward", name, len(broken), 0, told, _FINITE)


def _silent(subject: AuditContext) -> Iterator[Finding]:
    if subject.trial is not None and subject.trial.uniform:  # a normalisation makes zeros of it
        return
    zeros = [name for name in subject.structure.parameters if subject.is_zero(name)]
    reached = fed(subject.flow, zeros, subject.first_name)
    for name, norm in subject.observation.gradients.items():
        if not norm and name in reached and subject.structure.roles[name].layout is not None:
            told = "this batch sends it no gradient, though no zero among the weights keeps it away"
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
        told += f" {line.slope:.3g} ± {line.error:.2g} in log10 at each"
        last, bound = arriving[-1], GROWTH if line.total > 1 else 1 / GROWTH
        site = last.block or last.name
        yield Finding("warning", "backward", last.parameter, site, line.total, bound, told, _TREND)
