"""The fills of IDInit: identities, near-zero matrices and constants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from idfx.core.errors import PlanError
from idfx.core.records import Layout
from idfx.fills import fills
from idfx.fills.geometry import Rows
from idfx.fills.matrices import Matrices, Target, check_name, check_number, read_layout

LOOSENINGS = ("dense", "diagonal", "none")
Ranges = Sequence[Sequence[int]]


def _same(rows: Rows, columns: int) -> Tensor:
    """Column m mod D_in of row m."""
    return rows.number % columns


def _opposite(rows: Rows, columns: int) -> Tensor:
    """The column of the second entry: after the square part if the matrix is wide, otherwise next to the first one."""
    beside = (rows.number + 1) % columns
    behind = rows.height + rows.number % (columns - rows.height).clamp(min=1)
    return torch.where(rows.height < columns, behind, beside)


def _identity_(matrices: Matrices, ranges: Sequence[tuple[int, int]], tau: float, loosen: str, eps_tau: float) -> None:
    """Write the padded identity into ranges of outputs, numbered as rows of the whole matrices."""
    tau = check_number(matrices.target, "tau", tau)
    check_name(f"{matrices.target.parameter}: loosen", loosen, LOOSENINGS)
    if isinstance(eps_tau, bool) or not isinstance(eps_tau, (int, float)) or not 0 <= eps_tau < math.inf:
        raise PlanError(
            f"{matrices.target.parameter}: eps_tau {eps_tau!r}; expected a finite standard deviation. Write 1e-6 or 0."
        )
    for start, stop in ranges:
        matrices.clear_(start, stop, noise=eps_tau if loosen == "dense" else 0.0)
        matrices.write_(start, stop, _same, tau, noise=0.0 if loosen == "none" else eps_tau)


def _zero_preserving_(matrices: Matrices, rows: Ranges | None, eps: float) -> None:
    """Write a separate zero-preserving matrix into each range of outputs."""
    eps = check_number(matrices.target, "eps", eps)
    for start, stop in [(0, matrices.outputs)] if rows is None else matrices.ranges(rows):
        matrices.clear_(start, stop)
        if matrices.columns == 1:
            matrices.write_(start, stop, _same, lambda row: eps * (1.0 - 2.0 * (row % 2)), apart=True)
            continue
        matrices.write_(start, stop, _same, eps, apart=True)
        matrices.write_(start, stop, _opposite, -eps, apart=True)


def _untapped(target: Target, layout: Layout | Mapping[str, Any] | None) -> Matrices:
    """Return the matrices of a weight without taps, for which the column order does not matter."""
    read = read_layout(target, layout)
    if math.prod(target.shard.shape[axis] for axis in read.tap_axes) != 1:
        raise PlanError(
            f"{target.parameter}: taps along axes {read.tap_axes} of {target.shard.shape}; expected none. "
            f"Use the corresponding fill that ends in c, which has an order of taps."
        )
    return Matrices(target, read)


@fills.register("constant", zero="value")
def constant(target: Target, *, value: float) -> None:
    """Every entry is one value: biases and shifts at 0, scales at 1.

    W[...] = value

    Args:
        target: a tensor of any shape.
        value: a number that the dtype can hold.

    Raises:
        PlanError: the value is not such a number.

    Source: common practice.

    Example:
        >>> from idfx.fills import fill_
        >>> fill_(torch.empty(2), "constant", {"value": 1}, parameter="norm.weight", seed=0)
        tensor([1., 1.])
    """
    target.tensor.fill_(check_number(target, "value", value))


@fills.register("idi")
def idi(
    target: Target,
    *,
    tau: float = 1.0,
    loosen: str = "diagonal",
    eps_tau: float = 1e-6,
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """The padded identity: passes its input on, and repeats it if there are more outputs than inputs.

    W[m, j] = tau + noise where m ≡ j (mod D_in), 0 elsewhere: one entry in each row.

    Args:
        target: a tensor whose layout defines matrices (D_out, D_in) without taps.
        tau: the entry.
        loosen: "diagonal", noise N(0, eps_tau²) on these entries; "dense", on every entry; "none". See
            `resolves_loosening`: next to 1, the noise rounds away in bfloat16 and float16.
        eps_tau: its standard deviation.
        layout: a `Layout` or its fields; by default (out, in).

    Raises:
        PlanError: an argument is malformed or does not fit the shape; nothing has been written.

    Source: Pan et al., "IDInit", ICLR 2025, arXiv 2503.04626, eq. 3. Ours: "dense" and "none", and one matrix
        for each group, expert and fused part.

    Example:
        >>> from idfx.fills import fill_
        >>> fill_(torch.empty(3, 2), "idi", {"loosen": "none"}, parameter="w", seed=0)
        tensor([[1., 0.],
                [0., 1.],
                [1., 0.]])
    """
    matrices = _untapped(target, layout)
    _identity_(matrices, [(0, matrices.outputs)], tau, loosen, eps_tau)


@fills.register("idic")
def idic(
    target: Target,
    *,
    tau: float = 1.0,
    loosen: str = "diagonal",
    eps_tau: float = 1e-6,
    order: str = "channel",
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """The padded identity of a convolution: `idi` on the kernel as a matrix.

    W[m, j] = tau + noise where m ≡ j (mod D_in); D_in = c_in / g · taps, one matrix for each group.

    Args:
        target: a kernel, usually (c_out, c_in / g, *taps).
        tau, loosen, eps_tau: as in `idi`.
        order: the order of the columns j. "channel": channels vary slowest, then taps in row-major order, as in
            `weight.reshape(c_out, -1)`. "tap": taps vary slowest, in row-major order, then channels. "centre": like
            "tap", with the taps ordered by distance from the centre, ties in row-major order; the centre of an even
            size k is (k - 1) // 2, the tap that does not shift with padding="same".
        layout: a `Layout` or its fields; by default (out, in, *taps) with one group.

    Raises:
        PlanError: as in `idi`; an unknown order.

    Source: Pan et al., ICLR 2025, arXiv 2503.04626, the patch-maintain convolution. The paper does not specify the
        order; "centre" is ours.

    Example:
        >>> from idfx.fills import fill_
        >>> fill_(torch.empty(2, 1, 3), "idic", {"loosen": "none", "order": "centre"}, parameter="w", seed=0)
        tensor([[[0., 1., 0.]],
        <BLANKLINE>
                [[1., 0., 0.]]])
    """
    matrices = Matrices(target, read_layout(target, layout), order)
    _identity_(matrices, [(0, matrices.outputs)], tau, loosen, eps_tau)


@fills.register("idiz", zero="eps")
def idiz(
    target: Target,
    *,
    eps: float = 1e-6,
    rows: Ranges | None = None,
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """The zero-preserving matrix: small differences of two inputs, near zero but with a gradient.

    W = IDI_eps, and −eps: for D_out < D_in at column D_out + m mod (D_in − D_out), else at (m + 1) mod D_in.
    Each row sums to 0. For D_in = 1 there is no second column, and row m is (−1)^m · eps.

    Args:
        target: as in `idi`.
        eps: the entry.
        rows: half-open ranges along the out axis, [[start, stop], ...]; only these rows are written. Each range is a
            separate matrix with rows from 0, split at the borders of groups and parts.
        layout: as in `idi`.

    Raises:
        PlanError: as in `idi`; an eps that the dtype rounds to 0; ranges that overlap or leave the axis.

    Source: Pan et al., ICLR 2025, arXiv 2503.04626, the zero-preserving layer. Ours: rows, and D_in = 1.

    Example:
        >>> from idfx.fills import fill_
        >>> fill_(torch.empty(2, 2), "idiz", {"eps": 0.5}, parameter="w", seed=0)
        tensor([[ 0.5000, -0.5000],
                [-0.5000,  0.5000]])
    """
    _zero_preserving_(_untapped(target, layout), rows, eps)


@fills.register("idizc", zero="eps")
def idizc(
    target: Target,
    *,
    eps: float = 1e-6,
    rows: Ranges | None = None,
    order: str = "channel",
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """The zero-preserving convolution: `idiz` on the kernel as a matrix.

    Args:
        target, order, layout: as in `idic`.
        eps, rows: as in `idiz`.

    Raises:
        PlanError: as in `idiz` and `idic`.

    Source: Pan et al., ICLR 2025, arXiv 2503.04626; ours as in `idiz` and `idic`.

    Example:
        >>> from idfx.fills import fill_
        >>> fill_(torch.empty(1, 1, 2), "idizc", {"eps": 0.5}, parameter="w", seed=0)
        tensor([[[ 0.5000, -0.5000]]])
    """
    _zero_preserving_(Matrices(target, read_layout(target, layout), order), rows, eps)


@fills.register("idic_idizc", zero="eps")
def idic_idizc(
    target: Target,
    *,
    rows: Ranges,
    eps: float = 1e-6,
    tau: float = 1.0,
    loosen: str = "diagonal",
    eps_tau: float = 1e-6,
    order: str = "channel",
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """Some rows zero-preserving, the others identity: for weights of which only some outputs end a residual branch.

    `rows` are as in `idizc`; every other row is as in `idic` of the whole weight.

    Args:
        target, order, layout, tau, loosen, eps_tau: as in `idic`; order has no effect without taps.
        rows, eps: as in `idiz`.

    Raises:
        PlanError: as in `idiz` and `idic`.

    Source: ours.

    Example:
        >>> from idfx.fills import fill_
        >>> arguments = {"rows": [[2, 4]], "eps": 0.5, "loosen": "none"}
        >>> fill_(torch.empty(4, 2), "idic_idizc", arguments, parameter="w", seed=0)
        tensor([[ 1.0000,  0.0000],
                [ 0.0000,  1.0000],
                [ 0.5000, -0.5000],
                [-0.5000,  0.5000]])
    """
    matrices = Matrices(target, read_layout(target, layout), order)
    borders = [0, *itertools.chain.from_iterable(matrices.ranges(rows)), matrices.outputs]
    eps = check_number(target, "eps", eps)
    _identity_(matrices, list(zip(borders[::2], borders[1::2], strict=True)), tau, loosen, eps_tau)
    _zero_preserving_(matrices, rows, eps)


@fills.register("idic_normal")
def idic_normal(
    target: Target,
    *,
    rows: Ranges,
    std: float,
    tau: float = 1.0,
    loosen: str = "diagonal",
    eps_tau: float = 1e-6,
    order: str = "channel",
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """Some rows from N(0, std²), the others identity: for a fused weight whose queries are normalised behind it.

    `rows` are as in `idizc`; every other row is as in `idic` of the whole weight.

    Args:
        target, order, layout, tau, loosen, eps_tau: as in `idic`; order has no effect without taps.
        rows: half-open ranges [[start, stop], ...] of outputs that are drawn.
        std: their standard deviation.

    Raises:
        PlanError: as in `idic`, std is not a number, or the ranges leave the outputs.

    Source: ours.

    Example:
        >>> from idfx.fills import fill_
        >>> arguments = {"rows": [[2, 4]], "std": 0.5, "loosen": "none"}
        >>> weight = fill_(torch.empty(4, 2), "idic_normal", arguments, parameter="w", seed=0)
        >>> torch.equal(weight[:2], torch.eye(2)), bool((weight[2:] != 0).all())
        (True, True)
    """
    matrices = Matrices(target, read_layout(target, layout), order)
    drawn = matrices.ranges(rows)
    borders = [0, *itertools.chain.from_iterable(drawn), matrices.outputs]
    std = check_number(target, "std", std)
    _identity_(matrices, list(zip(borders[::2], borders[1::2], strict=True)), tau, loosen, eps_tau)
    for start, stop in drawn:
        matrices.clear_(start, stop, noise=std)
