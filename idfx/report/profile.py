"""Statistics along depth → a profile drawn in characters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from idfx.core.findings import ActivationStats

WIDTH = 60
_BARS = "▁▂▃▄▅▆▇█"


def _log(value: float | None) -> float | None:
    return math.log10(value) if value is not None and 0 < value < math.inf else None


_QUANTITIES: tuple[tuple[str, Callable[[ActivationStats], float | None]], ...] = (
    ("log10 variance", lambda point: _log(point.variance)),
    ("log10 gradient", lambda point: _log(point.gradient)),
    ("dead units", lambda point: point.dead),
    ("saturated", lambda point: point.saturated),
    ("correlation", lambda point: point.correlation),
    ("effective rank / most", lambda point: _share(point)),
)


def _share(point: ActivationStats) -> float | None:
    return point.effective_rank / point.rank_bound if point.effective_rank is not None and point.rank_bound else None


def profile(points: Sequence[ActivationStats]) -> list[tuple[str, str, str, str]]:
    """Return rows (quantity, part, bars from the first point to the last, range) of the measured quantities.

    Each bar represents a point, or the mean of several neighbours if there are more than `WIDTH` points.

    Args:
        points: of one batch, in order of execution.
    """
    parts = [("main stem", [p for p in points if p.block is None]), ("branches", [p for p in points if p.block])]
    rows = []
    for name, read in _QUANTITIES:
        for where, part in parts:
            values = [value for point in part if (value := read(point)) is not None and math.isfinite(value)]
            if values:
                rows.append((name, where, bars(values), f"{min(values):.3g} to {max(values):.3g}"))
    return rows


def bars(values: Sequence[float]) -> str:
    """Return numbers as bars, from the lowest for the smallest to the highest for the largest; flat if all are equal.

    Example:
        >>> bars([0.0, 1.0, 2.0, 7.0])
        '▁▂▃█'
    """
    width = min(len(values), WIDTH)
    edges = [round(place * len(values) / width) for place in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if high - low <= 1e-6 * max(abs(high), abs(low)):
        return _BARS[0] * width
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in means)
