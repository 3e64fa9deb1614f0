"""A straight line through the logarithms of positive numbers, with the error of its slope."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Trend(NamedTuple):
    """log10 of a quantity along `steps` steps: its slope per step, and the standard error of that.

    `total` is the factor of the line over all steps.
    """

    slope: float
    error: float
    steps: int

    @property
    def total(self) -> float:
        """10^(slope · steps)."""
        power = self.slope * self.steps
        return 10.0**power if abs(power) < 300 else math.inf if power > 0 else 0.0

    @property
    def sure(self) -> bool:
        """Whether the slope is more than three of its errors from 0."""
        return abs(self.slope) > 3 * self.error


def trend(values: Sequence[float]) -> Trend | None:
    """Return the least-squares line through log10 of values, evenly spaced; None for fewer than four positive ones.

    The standard error of the slope is that of ordinary least squares, √(Σ r² / (n − 2) / Σ (x − x̄)²).

    Example:
        >>> found = trend([1.0, 10.0, 100.0, 1000.0])
        >>> round(found.slope, 6), round(found.total)
        (1.0, 1000)
    """
    points = [(x, math.log10(y)) for x, y in enumerate(values) if 0 < y < math.inf]
    if len(points) < 4:
        return None
    count = len(points)
    middle, level = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    width = sum((x - middle) ** 2 for x, _ in points)
    slope = sum((x - middle) * (y - level) for x, y in points) / width
    rest = sum((y - level - slope * (x - middle)) ** 2 for x, y in points)
    return Trend(slope, math.sqrt(rest / (count - 2) / width), len(values) - 1)
