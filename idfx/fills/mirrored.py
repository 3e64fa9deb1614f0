"""The fill of looks-linear networks: blocks M and −M, which pairs of ReLUs combine into a linear map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idfx.core.errors import PlanError
from idfx.core.records import Layout
from idfx.fills import fills
from idfx.fills.matrices import Matrices, Target, check_name, check_number, read_layout
from idfx.fills.orthogonal import gaussian, haar


@fills.register("mirrored")
def mirrored(
    target: Target,
    *,
    inputs: bool,
    outputs: bool,
    core: str = "orthogonal",
    gain: float = 1.0,
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """[[M, −M], [−M, M]]: with ReLUs before and after, the layers act as the linear map M.

    ReLU maps a mirrored output (a, −a) to the pair (max(a, 0), max(−a, 0)), and [M, −M] turns this back into M·a.

    Args:
        target: a tensor whose layout defines matrices (D_out, D_in).
        inputs: whether the input consists of pairs; otherwise there is one block column.
        outputs: whether to mirror the output; otherwise there is one block row.
        core: M: "orthogonal", at the central tap of a kernel; or "normal", with entries N(0, 1 / D_in of M).
        gain: a factor.
        layout: a `Layout` or its fields; by default (out, in, *taps).

    Raises:
        PlanError: an odd number of inputs or outputs to be halved, or an invalid name or layout.

    Source: Balduzzi et al., "The shattered gradients problem", ICML 2017 (orthogonal); Burkholz and Dubatovka,
        "Initialization of ReLUs for dynamical isometry", NeurIPS 2019 (Gaussian submatrix).

    Example:
        >>> from idfx.fills import fill_
        >>> w = fill_(torch.empty(4, 1), "mirrored", {"inputs": False, "outputs": True}, parameter="w", seed=0)
        >>> torch.equal(w[:2], -w[2:])
        True
    """
    gain = check_number(target, "gain", gain)
    check_name(f"{target.parameter}: core", core, ("orthogonal", "normal"))
    matrices = Matrices(target, read_layout(target, layout), "centre")
    rows, columns = matrices.size
    taps = matrices.taps
    width = columns // taps
    for halved, size, name in ((outputs, rows, "outputs"), (inputs, width, "inputs")):
        if not isinstance(halved, bool):
            raise PlanError(f"{target.parameter}: {name} {halved!r}; expected true or false. Write one of them.")
        if halved and size % 2:
            raise PlanError(f"{target.parameter}: {size} {name} to be halved; expected an even number. Keep it.")
    height, breadth = rows // (2 if outputs else 1), width // (2 if inputs else 1)

    def make(number: int) -> Tensor:
        small = torch.zeros(height, taps, breadth, dtype=torch.float64)  # the central tap comes first
        if core == "orthogonal":
            small[:, 0] = haar(target.seed, target.parameter, number, height, breadth)
        else:
            drawn = gaussian(target.seed, target.parameter, number, height, taps * breadth)
            small[:] = drawn.view(height, taps, breadth) / (taps * breadth) ** 0.5
        small *= gain
        across = torch.cat([small, -small], 2) if inputs else small
        return (torch.cat([across, -across]) if outputs else across).reshape(rows, columns)

    matrices.put_(make)
