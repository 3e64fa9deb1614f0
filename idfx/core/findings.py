"""The frozen records of an audit: what was run, what was measured where, and what is wrong.

Structure, weights, batch → Observation, Spectrum → Finding → Audit
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["info", "warning", "error"]
PointKind = Literal["weight", "activation", "join"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found: how bad it is, where it is, how far it is from what is asked, and what to do.

    `value` is what was measured and `threshold` what it is held to, in the unit of the metric. `remedy` is the same
    text for findings of the same kind. `site` is the residual block, the operator or the module that the parameter acts
    in.
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
    """A number that a metric tells beside its findings; none is judged."""

    metric: str
    name: str
    value: float | int | str


@dataclass(frozen=True)
class ActivationStats:
    """A place of the forward pass, and what one batch showed there.

    `kind` is "weight" (what a weight site gives), "activation" (what a function that is no weight and no normalisation
    gives), or "join" (the end of a residual block). `parameter` is the weight, for an activation the one that it comes
    from; "" for a join. `block` is the residual block in whose branch it lies; None on the
    main stem. `units` is the number of its channels or features.

    `mean`, `variance` and `kurtosis` (excess, 0 for a normal distribution) are over all entries. `dead` is the share of
    units that are one and the same number for the whole batch, `saturated` the share of entries where an activation's
    derivative is below 0.01 (half of them for a ReLU), of a softmax the share of slices with an entry above 0.99; None
    where there is no activation, or nothing but zeros goes into it. `correlation` is the cosine between the values of
    two independent batches; None where there is no second one. `effective_rank` is exp(entropy) of the singular values
    of the values as a matrix (places, units), normalised to a sum of 1, of at most `rank_bound`. `gradient` is the norm
    of the gradient with respect to it, where that at the outputs has norm 1; None if none arrives.
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
    """What the values of a weight look like, and how far they are from what schemes write.

    `kind` is one of the words of the metric `identity`, `scheme` what writes such values, "" where nothing says so.
    `from_identity` is the relative distance (Frobenius) to the nearest matrix with one entry in each row, as IDI and
    IDIC are; `from_zero` the factor that the weight lets through, rms · √fan-in, 0 for IDIZ at eps 0;
    `from_orthogonal` that of the rows' products, relative to their mean square, from the identity, over √rows;
    `from_normal` the Kolmogorov-Smirnov distance of up to 2,048 entries from a normal distribution of their mean and
    deviation.
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
    """One parameter as it was found: its root mean square, and the norm of its gradient where a batch was run.

    The gradient is that of a loss whose gradient at the outputs is random and of norm 1. `likeness` is there for the
    weights that the metric `identity` looked at.
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
        """Norm of the gradient over norm of the weight; None where either is not there or the weight is 0."""
        norm = self.rms * math.sqrt(math.prod(self.shape))
        return self.gradient / norm if self.gradient is not None and norm else None


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a Jacobian of shape (rows, columns), of which there are min(rows, columns).

    `place` is "" for the whole model, or the residual block. `exact`: all of them were computed, and each error is 0.
    Else `largest` is below the largest one, by `largest_error` at most, and `smallest` above the smallest one, by
    `smallest_error` at most; each bound fails for one seed in a thousand at most (that on the smallest is `smallest`
    itself, as a rule, where they crowd at 0). `mean_square` (chi, criticality: 1 is critical) and `spread`, the
    standard deviation of the squared singular values over their mean (isometry: 0 if all are equal), have standard
    errors, over the random starts. `density` are (singular value, share) pairs, largest first, the shares sum to 1: one
    pair for each value, or the nodes of the quadrature of one start. `products` are the matrix-vector products that
    were made with the Jacobian or its transpose; `complete` is False where the budget of time ended them early. A
    number that was not measured is NaN; `note` says why, if not for want of time.
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

    `largest` is below the algebraically largest eigenvalue, by `largest_error` at most, and `smallest` above the
    smallest one, by `smallest_error` at most; each bound fails for one seed in a thousand at most. `products` are the
    products that were made with the Hessian; `complete` is False where the budget of time ended them early. A number
    that was not measured is NaN; `note` says why, if not for want of time.
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
        """The one of both that is larger in absolute value."""
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
    """What was run: where it comes from, how many samples it has (None: not known), the shapes of its tensors."""

    source: str
    samples: int | None
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Observation:
    """What one forward and backward pass showed, and a forward pass of a second batch.

    `points` are in the order of execution. `gradients` are the norms of the gradients of the parameters, 0 where none
    arrives, for a random gradient of norm 1 at the outputs. `finite`: no output holds NaN or Inf. `correlation` is the
    cosine between the outputs of the two batches, `difference` the norm of their difference over that of the first;
    None if there is no second one, or if the outputs are zero. `no_backward` and `no_second` say why
    there are no gradients and no second batch, "" where there are.
    """

    batch: Batch
    points: tuple[ActivationStats, ...]
    gradients: Mapping[str, float]
    finite: bool
    correlation: float | None
    difference: float | None = None
    no_backward: str = ""
    no_second: str = ""


@dataclass(frozen=True)
class Audit:
    """What the metrics found in a model.

    `findings` are in the order of severity, errors first. `measures` are numbers by metric and name. `metrics` are
    those that ran; `left_out` says of what was not measured why, by metric. `batch` is what was run, None if nothing
    was; `profile` its places in the order of execution, `spectra` the Jacobians, that of the whole model first.
    `parameters` and `blocks` are those of the structure. `seconds` is the time that each metric took, and that of the
    batch which several look at; they are the only numbers here that differ from run to run.
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
        """The worst severity found, "clean" where there are no findings."""
        return self.findings[0].severity if self.findings else "clean"

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of a severity, "info", "warning" or "error", and those above it."""
        least = SEVERITIES.index(severity)
        return tuple(found for found in self.findings if SEVERITIES.index(found.severity) >= least)
