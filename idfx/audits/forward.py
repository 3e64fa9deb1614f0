"""What the values of one batch do along depth."""

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
TOLD = 16  # fewer units or directions than that say little

_FINITE = "Look at the first place that is told: the scale of its weight, or a division by something near zero."
_GROWTH = "Close the branches (idinit, fixup, skipinit, zero-gamma), normalise, or draw with gain / √fan-in."
_AWAKE = "Look at the bias and the scale of what feeds it: most units should be on the steep part for some input."
_RANK = "Look at what goes before: a wide gain, biases that outweigh the signal, or averaging (uniform attention)."
_SAME = "Look at the first place where the two batches give the same: there the input is lost."


@metric("forward", batch=True)
def forward(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Values of one batch along depth: not finite, growing, dead, saturated, the same for all inputs.

    Definition: at the output of each weight site, activation and residual block: mean, variance, excess kurtosis,
    share of dead units and of saturated entries, cosine between two independent batches, effective rank
    (`ActivationStats`).
    The trend of the variance is a least-squares line through its log10 over the ends of the residual blocks that lie
    in no other, or over the weights of the main stem where there are fewer than four.

    Unit: that of each. Thresholds: NaN or Inf (error). A variance above 1e12 (error): its square is not far from the
    end of float32. A trend by a factor beyond 1e6 over depth, more than three standard errors from none (warning). An
    activation of which 0.9 of the entries (warning) or 0.999 (error) are saturated: a derivative below 0.01, or for a
    softmax slices with one entry above 0.99; a ReLU with fewer than 16 units may be off by chance (warning). An
    effective rank below 1.5, of 16 or more possible, at the end of a block (warning). Outputs of two batches that
    differ by less than 1e-4 of their size (warning; info where branches are closed, through which alone a class token
    sees its input). Saturation and rank are not judged by a batch that is one number throughout.

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
        yield Measure("forward", "inputs", "one number throughout, by which no unit and no rank is judged")
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
    """Return the places by which depth is counted: ends of blocks that lie in no other, or weights of the main stem."""
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
    """Return a finding of this metric at a place of the forward pass."""
    site = point.block or point.name or subject.structure.model
    return Finding(severity, "forward", point.parameter, site, value, threshold, told, remedy)


def _finite(subject: AuditContext, points: Sequence[ActivationStats], finite: bool) -> Iterator[Finding]:
    broken = [point for point in points if not math.isfinite(point.variance)]
    if broken:
        told = f"the values behind {_named(broken[0])} hold NaN or Inf, and those at {len(broken) - 1} places behind it"
        yield at(subject, "error", broken[0], len(broken), 0, told, _FINITE)
    elif not finite:
        told = "the outputs hold NaN or Inf"
        yield Finding("error", "forward", "", subject.structure.model, 1, 0, told, _FINITE)
    else:
        huge = [point for point in points if point.variance > HUGE]
        if huge:
            told = f"the variance behind {_named(huge[0])} is {huge[0].variance:.3g}"
            yield at(subject, "error", huge[0], huge[0].variance, HUGE, told, _GROWTH)


def _growth(subject: AuditContext, points: Sequence[ActivationStats], line: Trend) -> Iterator[Finding]:
    if line.sure and not 1 / GROWTH < line.total < GROWTH:
        last = points[-1]
        told = f"the variance changes {line.total:.3g}-fold along {line.steps} blocks or layers, by {line.slope:.3g} ±"
        told += f" {line.error:.2g} in log10 at each"
        bound = GROWTH if line.total > 1 else 1 / GROWTH
        yield at(subject, "warning", last, line.total, bound, told, _GROWTH)


def _asleep(subject: AuditContext, point: ActivationStats) -> Iterator[Finding]:
    share = point.saturated
    if share is None or share < MOSTLY:
        return
    chance = point.units < TOLD and point.mean == point.variance == 0  # as many coins, all tails
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
        told = f"the effective rank behind {point.name} is {rank:.3g}, of at most {point.rank_bound}"
        yield at(subject, "warning", point, rank, 1.5, told, _RANK)


def _same(subject: AuditContext, points: Sequence[ActivationStats], difference: float) -> Iterator[Finding]:
    if not difference < DIFFERENT:
        return
    lost = next((point for point in points if point.correlation is not None and point.correlation >= SAME), None)
    where = f"; the first such place is {_named(lost)}" if lost is not None else ""
    told = f"two independent batches give the same outputs but for {difference:.2g} of their size{where}"
    closed = any(is_closed(subject, join) for join in subject.structure.joins)
    severity: Severity = "info" if closed else "warning"
    told += "; closed branches may be what lies between, as for a class token" if closed else ""
    if lost is None:
        yield Finding(severity, "forward", "", subject.structure.model, difference, DIFFERENT, told, _SAME)
    else:
        yield at(subject, severity, lost, difference, DIFFERENT, told, _SAME)


def _named(point: ActivationStats) -> str:
    return point.parameter or point.name or point.operator
