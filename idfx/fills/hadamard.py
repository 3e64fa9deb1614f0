"""The fill of ZerO: a partial identity, or part of a Hadamard matrix if there are more outputs than inputs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idfx.core.records import Layout
from idfx.fills import fills
from idfx.fills.matrices import Matrices, Target, check_number, read_layout


def hadamard(rows: int, columns: int) -> Tensor:
    """Return the upper left part of Sylvester's Hadamard matrix: H[m, j] = (−1)^(number of ones in m AND j).

    Example:
        >>> hadamard(2, 2).tolist()
        [[1.0, 1.0], [1.0, -1.0]]
    """
    both = torch.arange(rows).unsqueeze(1) & torch.arange(columns)
    parity = torch.zeros_like(both)
    while bool(both.any()):
        parity ^= both & 1
        both >>= 1
    return 1.0 - 2.0 * parity.to(torch.float64)


@fills.register("hadamard")
def hadamard_identity(target: Target, *, scale: float = 1.0, layout: Layout | Mapping[str, Any] | None = None) -> None:
    """The partial identity I*, or c · I* H I* if there are more outputs than inputs; for a kernel, at its centre.

    D_out ≤ D_in: W[m, j] = 1 where m = j. D_out > D_in: W = 2^(−m/2) · H[:D_out, :D_in], m = ⌈log₂ D_out⌉, whose
    columns mix all inputs, so zero padding does not limit the rank during training.

    Args:
        target: a tensor whose layout defines matrices (D_out, D_in).
        scale: a factor.
        layout: a `Layout` or its fields; by default (out, in, *taps).

    Raises:
        PlanError: an invalid scale or layout.

    Source: Zhao, Schäfer and Anandkumar, "ZerO initialization", TMLR 2022, arXiv 2110.12661, algorithm 1. Deviation:
        the factor 2^(−m/2), which makes H orthonormal, is from the published implementations.

    Example:
        >>> from idfx.fills import fill_
        >>> fill_(torch.empty(4, 2), "hadamard", parameter="w", seed=0)
        tensor([[ 0.5000,  0.5000],
                [ 0.5000, -0.5000],
                [ 0.5000,  0.5000],
                [ 0.5000, -0.5000]])
    """
    scale = check_number(target, "scale", scale)
    matrices = Matrices(target, read_layout(target, layout), "centre")
    rows, columns = matrices.size
    width = columns // matrices.taps

    @functools.cache
    def values() -> Tensor:
        made = torch.zeros(rows, columns, dtype=torch.float64)
        if rows <= width:
            made[:, :rows] = torch.eye(rows, dtype=torch.float64) * scale
        else:
            made[:, :width] = hadamard(rows, width) * (2.0 ** (-(rows - 1).bit_length() / 2) * scale)
        return made

    matrices.put_(lambda number: values())
