"""Shapes, and ranges of their entries, as boxes: one range along each axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence


def blocks(shape: Sequence[int], most: int) -> Iterator[tuple[range, ...]]:
    """Yield boxes that cover a shape, each with a limited number of entries.

    Args:
        shape: of the whole.
        most: maximum number of entries in a box, at least 1.

    Example:
        >>> list(blocks((2, 3), 3))
        [(range(0, 1), range(0, 3)), (range(1, 2), range(0, 3))]
    """
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= most:
        axis -= 1
        inner *= shape[axis]
    whole = [range(size) for size in shape[axis:]]
    if not axis:
        yield tuple(whole)
        return
    step = most // inner
    for lead in itertools.product(*map(range, shape[: axis - 1])):
        for start in range(0, shape[axis - 1], step):
            box = [range(at, at + 1) for at in lead]
            yield (*box, range(start, min(start + step, shape[axis - 1])), *whole)


def runs(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield boxes that together contain the entries from start to stop in row-major order.

    Args:
        sizes: of at least one axis; there are at most two boxes per axis, plus one.
        start, stop: numbers of entries.

    Example:
        >>> list(runs((3, 4), 2, 9))
        [((0, 1), (2, 4)), ((1, 2), (0, 4)), ((2, 3), (0, 1))]
    """
    inner = math.prod(sizes[1:])
    if len(sizes) == 1 or not inner:
        yield ((start, stop), *((0, size) for size in sizes[1:]))
        return
    first, last = -(-start // inner), stop // inner
    if first > last:  # within one index of the first axis
        yield from (((last, first), *box) for box in runs(sizes[1:], start - last * inner, stop - last * inner))
        return
    if start < first * inner:
        yield from (((first - 1, first), *box) for box in runs(sizes[1:], start - (first - 1) * inner, inner))
    if first < last:
        yield ((first, last), *((0, size) for size in sizes[1:]))
    if last * inner < stop:
        yield from (((last, last + 1), *box) for box in runs(sizes[1:], 0, stop - last * inner))
