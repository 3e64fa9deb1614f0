"""Matrices whose rows or columns are orthonormal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from idfx.core.noise import normal
from idfx.core.records import Layout
from idfx.fills import fills
from idfx.fills.matrices import Matrices, Target, check_name, check_number, read_layout


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run linear algebra on one thread, because the number of threads affects the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gaussian(seed: int, stream: str, number: int, rows: int, columns: int) -> Tensor:
    """Return matrix `number` of a stream of standard normal matrices (rows, columns), float64 on the CPU.

    Example:
        >>> gaussian(0, "w", 1, 2, 2).equal(gaussian(0, "w", 0, 4, 2)[2:])
        True
    """
    size = rows * columns
    return normal(seed, stream, torch.arange(number * size, (number + 1) * size)).view(rows, columns)


def haar(seed: int, stream: str, number: int, rows: int, columns: int) -> Tensor:
    """Return a (rows, columns) matrix with orthonormal columns, or rows if those are fewer, from the Haar measure.

    Q of the QR decomposition of a Gaussian matrix, with the signs of R's diagonal moved into Q.

    Example:
        >>> q = haar(0, "w", 0, 5, 3)
        >>> torch.allclose(q.T @ q, torch.eye(3, dtype=torch.float64))
        True
    """
    tall = rows >= columns
    drawn = gaussian(seed, stream, number, rows, columns)
    with one_thread():
        q, r = torch.linalg.qr(drawn if tall else drawn.T.contiguous())
    q = torch.mul(q, torch.where(r.diagonal() < 0, -1.0, 1.0))
    return q if tall else q.T


@fills.register("orthogonal")
def orthogonal(
    target: Target,
    *,
    gain: float = 1.0,
    taps: str = "all",
    rows: Sequence[Sequence[int]] | None = None,
    std: float = 0.0,
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """A random matrix with orthonormal columns, or rows if those are fewer, times a gain.

    A shard computes the whole matrix, because no entry can be computed without the others.

    Args:
        target: a tensor whose layout defines matrices (D_out, D_in).
        gain: a factor.
        taps: "all", the kernel as one matrix with D_in = taps · c_in; "centre", an orthogonal matrix at the central
            tap and zeros elsewhere, so that the convolution itself preserves norms (delta-orthogonal); the centre of an
            even size k is (k − 1) // 2.
        rows: half-open ranges [[start, stop], ...] of outputs that are drawn from N(0, std²) instead.
        std: their standard deviation.
        layout: a `Layout` or its fields; by default (out, in, *taps).

    Raises:
        PlanError: an invalid gain, number, name or layout, or ranges that leave the outputs.

    Source: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
        networks", ICLR 2014; taps "centre": Xiao et al., "Dynamical isometry and a mean field theory of CNNs", ICML
        2018, algorithm 1. Ours: one matrix for each group, expert and fused part.

    Example:
        >>> from idfx.fills import fill_
        >>> w = fill_(torch.empty(4, 3), "orthogonal", parameter="w", seed=0)
        >>> torch.allclose(w.T @ w, torch.eye(3), atol=1e-6)
        True
    """
    gain = check_number(target, "gain", gain)
    check_name(f"{target.parameter}: taps", taps, ("all", "centre"))
    matrices = Matrices(target, read_layout(target, layout), "centre" if taps == "centre" else "channel")
    std = check_number(target, "std", std)
    drawn = matrices.ranges(rows) if rows is not None else ()
    height, columns = matrices.size
    width = columns // matrices.taps if taps == "centre" else columns

    def make(number: int) -> Tensor:
        values = torch.zeros(height, columns, dtype=torch.float64)
        values[:, :width] = haar(target.seed, target.parameter, number, height, width) * gain
        return values

    matrices.put_(make)
    for start, stop in drawn:
        matrices.clear_(start, stop, noise=std)
