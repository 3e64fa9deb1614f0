"""Independent random entries, each a function of its index alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from idfx.core.errors import PlanError
from idfx.core.noise import normal as standard_normal
from idfx.core.noise import uniform as standard_uniform
from idfx.fills import fills
from idfx.fills.matrices import Target, check_ranges, scatter_


def check_spread(target: Target, name: str, value: object) -> float:
    """Return a finite number of at least 0; raise PlanError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise PlanError(
            f"{target.parameter}: {name} {value!r}; expected a finite number, at least 0. Write one such as 0.02."
        )
    return float(value)


@fills.register("normal")
def normal(
    target: Target,
    *,
    std: float = 1.0,
    mean: float = 0.0,
    rows: Sequence[Sequence[int]] = (),
    factor: float = 1.0,
    axis: int = 0,
) -> None:
    """Entries from N(mean, std²).

    Args:
        target: a tensor of any shape.
        std: standard deviation.
        mean: of the entries.
        rows, factor, axis: half-open ranges [[start, stop], ...] along an axis, whose entries get a factor.

    Raises:
        PlanError: std is not a number of at least 0, mean or factor is not a number, or the ranges leave the axis.

    Source: common practice; the numbers are those of `idfx.core.noise.normal`.

    Example:
        >>> import torch
        >>> from idfx.fills import fill_
        >>> w = fill_(torch.empty(100, 100), "normal", {"std": 0.02}, parameter="w", seed=0)
        >>> abs(float(w.std()) - 0.02) < 1e-3
        True
    """
    std, mean = check_spread(target, "std", std), _finite(target, "mean", mean)
    scaled = _scaled(target, rows, factor, axis)
    _write_(
        target, lambda index: scaled(standard_normal(target.seed, target.parameter, index).mul_(std).add_(mean), index)
    )


@fills.register("uniform")
def uniform(
    target: Target,
    *,
    bound: float = 1.0,
    rows: Sequence[Sequence[int]] = (),
    factor: float = 1.0,
    axis: int = 0,
) -> None:
    """Entries from the uniform distribution over (−bound, bound), of standard deviation bound / √3.

    Args:
        target: a tensor of any shape.
        bound: the largest absolute value.
        rows, factor, axis: as in `normal`.

    Raises:
        PlanError: bound is not a number of at least 0, or as in `normal`.

    Source: common practice; the numbers are those of `idfx.core.noise.uniform`.

    Example:
        >>> import torch
        >>> from idfx.fills import fill_
        >>> w = fill_(torch.empty(100, 100), "uniform", {"bound": 0.5}, parameter="w", seed=0)
        >>> 0.49 < float(w.abs().max()) < 0.5
        True
    """
    bound = check_spread(target, "bound", bound)
    scaled = _scaled(target, rows, factor, axis)
    _write_(
        target,
        lambda index: scaled(standard_uniform(target.seed, target.parameter, index).mul_(2).sub_(1).mul_(bound), index),
    )


def _write_(target: Target, values: Callable[[Tensor], Tensor]) -> None:
    scatter_(target, target.tensor, target.shard.offsets, values)


def _scaled(
    target: Target, rows: Sequence[Sequence[int]], factor: float, axis: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of values and their numbers that multiplies those in the given rows."""
    factor, shape = _finite(target, "factor", factor), target.shard.shape
    if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < max(len(shape), 1):
        raise PlanError(f"{target.parameter}: axis {axis!r} for shape {shape}; expected one of its axes. Write 0.")
    spans = check_ranges(target.parameter, rows, shape[axis] if shape else 1)

    def scale(values: Tensor, index: Tensor) -> Tensor:
        for start, stop in spans:
            row = index // target.strides[axis] % shape[axis]
            values = values.where((row < start) | (row >= stop), values * factor)
        return values

    return scale


def _finite(target: Target, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PlanError(f"{target.parameter}: {name} {value!r}; expected a finite number. Write one such as 0.")
    return float(value)
