"""Sparse orthogonal matrices, composed of Givens rotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idfx.core.errors import PlanError
from idfx.core.noise import bits, normal
from idfx.core.records import Layout
from idfx.fills import fills
from idfx.fills.matrices import Matrices, Target, check_number, read_layout

_AT_ONCE = 4096  # random numbers drawn together
_PATIENCE = 64  # rejected pairs before all of them are searched


class _Draws:
    """Random pairs of rows with uniform rotation angles, as a function of the seed and the name."""

    def __init__(self, seed: int, stream: str, size: int) -> None:
        self._seed, self._stream, self._size = seed, stream, size

    def pairs(self) -> Iterator[tuple[int, int, float, float]]:
        start = 0
        while True:
            index = torch.arange(start, start + _AT_ONCE)
            first = (bits(self._seed, f"{self._stream}#first", index) >> 1).remainder(self._size)
            other = (bits(self._seed, f"{self._stream}#other", index) >> 1).remainder(self._size - 1)
            other = other + (other >= first)
            x, y = (normal(self._seed, f"{self._stream}#{axis}", index) for axis in ("x", "y"))
            length = (x * x + y * y).sqrt()
            yield from zip(first.tolist(), other.tolist(), (x / length).tolist(), (y / length).tolist(), strict=True)
            start += _AT_ONCE


def sparse_orthogonal(seed: int, stream: str, rows: int, columns: int, density: float) -> NDArray[np.float64]:
    """Return a (rows, columns) matrix with orthonormal columns, or rows if those are fewer, of the given density.

    Rotations of random pairs of rows are applied to the identity. Each fills both rows of its pair with the union of
    their entries; a rotation that would give too many entries is skipped. So the number of entries never exceeds
    density · rows · columns, and is lower only if no pair fits any more.

    Args:
        seed, stream: of the random numbers.
        rows, columns: of the matrix.
        density: the share of non-zero entries; each row or column has at least one.

    Example:
        >>> w = sparse_orthogonal(0, "w", 32, 32, 0.25)
        >>> bool(np.allclose(w @ w.T, np.eye(32))), int(np.count_nonzero(w))
        (True, 256)
    """
    long, short = max(rows, columns), min(rows, columns)
    values = np.eye(long, short)
    left = round(density * rows * columns) - short
    draws = _Draws(seed, stream, long).pairs() if long > 1 else iter(())
    refused = 0
    while left > 0 and long > 1:
        i, j, cosine, sine = next(draws)
        if refused >= _PATIENCE:
            if (pair := _fitting(values != 0, left)) is None:
                break
            i, j = pair
        a, b = values[i].copy(), values[j].copy()
        grown = int(np.count_nonzero((a != 0) != (b != 0)))
        if not 0 < grown <= left:
            refused += 1
            continue
        values[i], values[j] = cosine * a + sine * b, cosine * b - sine * a
        left -= grown
        refused = 0
    return values if rows >= columns else values.T


def _fitting(filled: NDArray[np.bool_], left: int) -> tuple[int, int] | None:
    """Return the pair of rows whose rotation adds the most entries within the limit."""
    counts = filled.astype(np.float64)
    sizes = counts.sum(1)
    grown = sizes[:, None] + sizes[None, :] - 2 * (counts @ counts.T)
    grown[grown > left] = 0
    best = int(grown.argmax())
    return divmod(best, len(filled)) if grown.flat[best] > 0 else None


@fills.register("givens")
def givens(
    target: Target,
    *,
    density: float = 0.1,
    gain: float = 1.0,
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """A sparse, exactly orthogonal matrix composed of Givens rotations; for a kernel, at its centre.

    Args:
        target: a tensor whose layout defines matrices (D_out, D_in).
        density: the share of non-zero entries (of the central tap), above 0 and at most 1.
        gain: a factor.
        layout: a `Layout` or its fields; by default (out, in, *taps).

    Raises:
        PlanError: an invalid density, gain or layout.

    Source: Nowak, Grooten, Mocanu and Tabor, "Sparser, better, deeper, stronger: improving static sparse training with
        exact orthogonal initialization", ICML 2024. Ours: rotations that would exceed the density are skipped, and
        rectangular matrices are rotated along their longer side.

    Example:
        >>> from idfx.fills import fill_
        >>> w = fill_(torch.empty(8, 8), "givens", {"density": 0.5}, parameter="w", seed=0)
        >>> int((w != 0).sum()), torch.allclose(w @ w.T, torch.eye(8), atol=1e-6)
        (32, True)
    """
    gain = check_number(target, "gain", gain)
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise PlanError(
            f"{target.parameter}: density {density!r}; expected a number above 0, at most 1. Write one such as 0.1."
        )
    matrices = Matrices(target, read_layout(target, layout), "centre")
    rows, columns = matrices.size
    width = columns // matrices.taps

    def make(number: int) -> Tensor:
        values = torch.zeros(rows, columns, dtype=torch.float64)
        drawn = sparse_orthogonal(target.seed, f"{target.parameter}#{number}", rows, width, density)
        values[:, :width] = torch.from_numpy(np.ascontiguousarray(drawn)) * gain
        return values

    matrices.put_(make)
