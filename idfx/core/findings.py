"""The frozen records of an audit: what was run, what was measured and where, and which defects were found.

Structure, weights, batch → Observation, Spectrum → Finding → Audit
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from idfx.core.shown import Shown

Severity = Literal["info", "warning", "error"]
PointKind = Literal["weight", "activation", "join"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One finding of an audit: its severity, its location, the measured value with its threshold, and a remedy.

    `value` and `threshold` are in the unit of the metric. Findings of the same kind share the text of `remedy`. `site`
    is the residual block, operator or module in which the parameter is used.
    """

    severity: Severity
    metric: str
    parameter: str
    site: str
    value: float
    threshold: float
    message: str
    remedy: str


@dataclass(frozen=True)
class Measure:
    """A number that a metric reports in addition to its findings, without a judgement."""

    metric: str
    name: str
    value: float | int | str


@dataclass(frozen=True)
class ActivationStats:
    """A point of the forward pass, and the statistics of one batch there.

    `kind` is "weight" (the output of a weight use), "activation" (the output of a function that is neither a weight nor
    a normalisation), or "join" (the end of a residual block). `parameter` is the weight, or for an activation the
    preceding weight; "" for a join. `block` is the residual block whose branch contains the point; None on the main
    stem. `units` is the number of channels or features.

    `mean`, `variance` and `kurtosis` (excess, 0 for a normal distribution) are over all entries. `dead` is the share of
    units that are constant over the whole batch; `saturated` is the share of entries at which the derivative of the
    activation is below 0.01 (half of them for a ReLU), or for a softmax the share of slices with an entry above 0.99;
    None if there is no activation or all its inputs are zero. `correlation` is the cosine between the values of two
    independent batches; None if there is no second one. `effective_rank` is exp(entropy) of the singular values of the
    values as a matrix (positions, units), normalised to a sum of 1; it is at most `rank_bound`. `gradient` is the norm
    of the gradient with respect to the values if the gradient at the outputs has norm 1; None if none arrives.
    """

    name: str
    kind: PointKind
    operator: str
    parameter: str
    block: str | None
    units: int
    mean: float
    variance: float
    kurtosis: float
    dead: float | None
    saturated: float | None
    correlation: float | None
    effective_rank: float | None
    rank_bound: int
    gradient: float | None


@dataclass(frozen=True)
class WeightFingerprint:
    """What the values of a weight resemble, and their distances from what schemes write.

    `kind` is one of the kinds of the metric `identity`; `scheme` is the scheme that writes such values, "" if unknown.
    `from_identity` is the relative distance (Frobenius) to the nearest matrix with one entry in each row, such as IDI
    and IDIC. `from_zero` is the factor by which the weight scales its input, rms · √fan-in; 0 for IDIZ with eps 0.
    `from_orthogonal` is the distance of the products of the rows, relative to their mean square, from the identity,
    over √rows. `from_normal` is the Kolmogorov-Smirnov distance of up to 2,048 entries from a normal distribution with
    their mean and deviation.
    """

    parameter: str
    kind: str
    scheme: str
    from_identity: float
    from_zero: float
    from_orthogonal: float
    from_normal: float


@dataclass(frozen=True)
class ParameterState:
    """The state of one parameter: its root mean square, and the norm of its gradient if a batch was run.

    The gradient belongs to a loss whose gradient at the outputs is random with norm 1. `likeness` is set for the
    weights that the metric `identity` examined.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    site: str
    block: str | None
    rms: float
    gradient: float | None = None
    likeness: WeightFingerprint | None = None

    @property
    def ratio(self) -> float | None:
        """Norm of the gradient over norm of the weight; None if either is missing or the weight is 0."""
        norm = self.rms * math.sqrt(math.prod(self.shape))
        return self.gradient / norm if self.gradient is not None and norm else None


@dataclass(frozen=True)
class Spectrum:
    """The min(rows, columns) singular values of a Jacobian of shape (rows, columns).

    `place` is "" for the whole model, or the name of the residual block. If `exact`, all values were computed and every
    error is 0. Otherwise `largest` is at most `largest_error` below the largest one, and `smallest` at most
    `smallest_error` above the smallest one; each bound fails for at most one seed in a thousand (if many values are
    close to 0, `smallest_error` usually equals `smallest`). `mean_square` (chi, criticality: 1 is critical) and
    `spread`, the standard deviation of the squared singular values over their mean (isometry: 0 if all are equal), have
    standard errors over the random starts. `density` contains (singular value, share) pairs, largest first, whose
    shares sum to 1: one pair for each value, or the nodes of the quadrature of one start. `products` counts the
    matrix-vector products with the Jacobian or its transpose; `complete` is False if time ran out. A number that was
    not measured is NaN; `note` gives the reason, unless time ran out.
    """

    place: str
    rows: int
    columns: int
    exact: bool
    largest: float
    largest_error: float
    smallest: float
    smallest_error: float
    mean_square: float
    mean_square_error: float
    spread: float
    spread_error: float
    density: tuple[tuple[float, float], ...]
    products: int
    complete: bool = True
    note: str = ""


@dataclass(frozen=True)
class Eigenvalue:
    """The ends of the spectrum of a Hessian.

    `largest` is at most `largest_error` below the algebraically largest eigenvalue, and `smallest` at most
    `smallest_error` above the smallest one; each bound fails for at most one seed in a thousand. `products` counts the
    products with the Hessian; `complete` is False if time ran out. A number that was not measured is NaN; `note` gives
    the reason, unless time ran out.
    """

    largest: float
    largest_error: float
    smallest: float
    smallest_error: float
    products: int
    complete: bool = True
    note: str = ""

    @property
    def value(self) -> float:
        """The end with the larger absolute value."""
        return self.smallest if abs(self.smallest) > abs(self.largest) else self.largest

    @property
    def error(self) -> float:
        """The bound on the error of `value`."""
        return self.smallest_error if abs(self.smallest) > abs(self.largest) else self.largest_error


@dataclass(frozen=True)
class Block:
    """One residual block as it is drawn: its join, its kind, the block around it, and the weights of its branch.

    `shortcut` are all parameters that act on its shortcut.
    """

    name: str
    kind: str
    parent: str | None
    closed: bool
    branch: tuple[str, ...]
    shortcut: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """The batch that was run: its source, its number of samples (None if unknown), and the shapes of its tensors."""

    source: str
    samples: int | None
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Observation:
    """The results of one forward and backward pass, and of a forward pass of a second batch.

    `points` are in order of execution. `gradients` are the norms of the gradients of the parameters, 0 if none arrives,
    for a random gradient of norm 1 at the outputs. `finite` means that no output contains NaN or Inf. `correlation` is
    the cosine between the outputs of the two batches, and `difference` the norm of their difference over that of the
    first; None if there is no second batch or the outputs are zero. `no_backward` and `no_second` give the reason why
    there are no gradients or no second batch; "" if there are. `symmetric` are the parameters that consist of equal
    parts along an axis, whose gradients are equal, too.
    """

    batch: Batch
    points: tuple[ActivationStats, ...]
    gradients: Mapping[str, float]
    finite: bool
    correlation: float | None
    difference: float | None = None
    no_backward: str = ""
    no_second: str = ""
    symmetric: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit(Shown):
    """The results of the metrics for a model.

    `findings` are sorted by severity, errors first. `measures` are numbers by metric and name. `metrics` lists those
    that ran; `left_out` gives the reason for each one that did not. `batch` is what was run, or None; `profile` has its
    points in order of execution, and `spectra` the Jacobians, with that of the whole model first. `parameters` and
    `blocks` come from the structure. `seconds` is the time of each metric and of the batch that several of them share;
    these are the only numbers that differ from run to run.
    """

    model: str
    findings: tuple[Finding, ...]
    measures: Mapping[str, Mapping[str, float | int | str]]
    metrics: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[ParameterState, ...] = ()
    blocks: tuple[Block, ...] = ()
    batch: Batch | None = None
    profile: tuple[ActivationStats, ...] = ()
    spectra: tuple[Spectrum, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def verdict(self) -> Severity | Literal["clean"]:
        """The highest severity found, or "clean" if there are no findings."""
        return self.findings[0].severity if self.findings else "clean"

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of at least a severity ("info", "warning" or "error")."""
        least = SEVERITIES.index(severity)
        return tuple(found for found in self.findings if SEVERITIES.index(found.severity) >= least)
