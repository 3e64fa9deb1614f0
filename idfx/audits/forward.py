"""The values of one batch along depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from idfx.audits.branches import is_closed
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import ActivationStats, Finding, Measure, Severity
from idfx.measuring.trend import Trend, trend

GROWTH = 1e6
HUGE = 1e12
MOSTLY, ALL = 0.9, 0.999
SAME = 1 - 1e-6
DIFFERENT = 1e-4
TOLD = 16  # fewer units or directions are too few to judge

_FINITE = "Check the first location listed: the scale of its weight, or a division by a value near zero."
_GROWTH = "Close the branches (idinit, fixup, skipinit, zero-gamma), normalise, or draw with gain / √fan-in."
_AWAKE = "Check the bias and the scale before it: most units should be in the steep part for some input."
_RANK = "Check what precedes it: a large gain, biases that outweigh the signal, or averaging (uniform attention)."
_SAME = "Check the first location where both batches have the same values: the input is lost there."


@metric("forward", batch=True)
def forward(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Values of one batch along depth: non-finite, growing, dead, saturated, or equal for all inputs.

    Definition: at the output of each weight use, activation and residual block: mean, variance, excess kurtosis, share
    of dead units and of saturated entries, cosine between two independent batches, effective rank (`ActivationStats`).
    The trend of the variance is a least-squares fit to its log10 over the ends of the outermost residual blocks, or
    over the weights of the main stem if there are fewer than four blocks.

    Unit: that of each measure. Thresholds: NaN or Inf (error). A variance above 1e12 (error): its square is close to
    the limit of float32. A trend by a factor of more than 1e6 over depth, with a slope more than three standard errors
    from 0 (warning). An activation with 0.9 (warning) or 0.999 (error) of its entries saturated: a derivative below
    0.01, or for a softmax slices with one entry above 0.99; a ReLU with fewer than 16 units may be off by chance
    (warning). An effective rank below 1.5, of 16 or more possible, at the end of a block (warning). Outputs of two
    batches that differ by less than 1e-4 of their size (warning; info if branches are closed, since a class token may
    see its input only through them). Constant batches are not used to judge saturation and rank.

    Source: the measures: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010; Schoenholz et al., "Deep information propagation", ICLR 2017 (correlations); Dong,
    Cordonnier and Loukas, "Attention is not all you need", ICML 2021 (rank). The thresholds are ours.
    """
    seen = subject.observation
    yield from _finite(subject, seen.points, seen.finite)
    line = trend([point.variance for point in stem(seen.points)])
    if line is not None:
        yield Measure("forward", "log10 of variance per block", line.slope)
        yield Measure("forward", "its standard error", line.error)
        yield from _growth(subject, stem(seen.points), line)
    active = [point for point in seen.points if point.saturated is not None]
    if active:
        yield Measure("forward", "most saturated", max(point.saturated or 0.0 for point in active))
        yield Measure("forward", "most dead units", max(point.dead or 0.0 for point in active))
    if subject.trial is not None and subject.trial.uniform:
        yield Measure("forward", "inputs", "constant, so units and ranks are not judged")
    else:
        for point in seen.points:
            yield from _asleep(subject, point)
            yield from _collapsed(subject, point)
    if seen.no_second:
        yield Measure("forward", "correlation", seen.no_second)
    if seen.correlation is not None:
        yield Measure("forward", "correlation of outputs", seen.correlation)
    if seen.difference is not None:
        yield Measure("forward", "difference of outputs / outputs", seen.difference)
        yield from _same(subject, seen.points, seen.difference)


def stem(points: Sequence[ActivationStats]) -> list[ActivationStats]:
    """Return the points that measure depth: ends of outermost blocks, or weights of the main stem."""
    ends = [point for point in points if point.kind == "join" and point.block is None]
    return ends if len(ends) >= 4 else [point for point in points if point.kind == "weight" and point.block is None]


def at(
    subject: AuditContext,
    severity: Severity,
    point: ActivationStats,
    value: float,
    threshold: float,
    told: str,
    remedy: str,
) -> Finding:
    """Return a finding of this metric at a point of the forward pass."""
    site = point.block or point.name or subject.structure.model
    return Finding(severity, "forward", point.parameter, site, value, threshold, told, remedy)


def _finite(subject: AuditContext, points: Sequence[ActivationStats], finite: bool) -> Iterator[Finding]:
    broken = [point for point in points if not math.isfinite(point.variance)]
    if broken:
        later = f", as do those at {len(broken) - 1} later points" if len(broken) > 1 else ""
        told = f"the values after {_named(broken[0])} contain NaN or Inf{later}"
        yield at(subject, "error", broken[0], len(broken), 0, told, _FINITE)
    elif not finite:
        told = "the outputs contain NaN or Inf"
        yield Finding("error", "forward", "", subject.structure.model, 1, 0, told, _FINITE)
    else:
        huge = [point for point in points if point.variance > HUGE]
        if huge:
            told = f"the variance after {_named(huge[0])} is {huge[0].variance:.3g}"
            yield at(subject, "error", huge[0], huge[0].variance, HUGE, told, _GROWTH)


def _growth(subject: AuditContext, points: Sequence[ActivationStats], line: Trend) -> Iterator[Finding]:
    if line.sure and not 1 / GROWTH < line.total < GROWTH:
        last = points[-1]
        told = f"the variance changes {line.total:.3g}-fold along {line.steps} blocks or layers, by {line.slope:.3g} ±"
        told += f" {line.error:.2g} in log10 per step"
        bound = GROWTH if line.total > 1 else 1 / GROWTH
        yield at(subject, "warning", last, line.total, bound, told, _GROWTH)


def _asleep(subject: AuditContext, point: ActivationStats) -> Iterator[Finding]:
    share = point.saturated
    if share is None or share < MOSTLY:
        return
    chance = point.units < TOLD and point.mean == point.variance == 0  # likely by chance with few units
    severity: Severity = "error" if share > ALL and not chance else "warning"
    bound = ALL if share > ALL else MOSTLY
    picks = "softmax" in point.operator or "attention" in point.operator
    what = "puts more than 0.99 on one entry for" if picks else "is flat (derivative below 0.01) for"
    of = "slices" if picks else "values"
    told = f"{point.operator.removeprefix('aten.')} {what} {share:.3g} of the {of}"
    yield at(subject, severity, point, share, bound, told, _AWAKE)


def _collapsed(subject: AuditContext, point: ActivationStats) -> Iterator[Finding]:
    rank = point.effective_rank
    if point.kind == "join" and rank is not None and point.rank_bound >= TOLD and rank < 1.5:
        told = f"the effective rank after {point.name} is {rank:.3g}, of at most {point.rank_bound}"
        yield at(subject, "warning", point, rank, 1.5, told, _RANK)


def _same(subject: AuditContext, points: Sequence[ActivationStats], difference: float) -> Iterator[Finding]:
    if not difference < DIFFERENT:
        return
    lost = next((point for point in points if point.correlation is not None and point.correlation >= SAME), None)
    where = f"; the first such point is {_named(lost)}" if lost is not None else ""
    told = f"the outputs of two independent batches differ by only {difference:.2g} of their size{where}"
    closed = any(is_closed(subject, join) for join in subject.structure.joins)
    severity: Severity = "info" if closed else "warning"
    told += "; closed branches may explain this, as with a class token" if closed else ""
    if lost is None:
        yield Finding(severity, "forward", "", subject.structure.model, difference, DIFFERENT, told, _SAME)
    else:
        yield at(subject, severity, lost, difference, DIFFERENT, told, _SAME)


def _named(point: ActivationStats) -> str:
    return point.parameter or point.name or point.operator
