"""The fill of bilinear forms y_m = x1ᵀ · W_m · x2: the identity in each argument if the other is all ones."""

from __future__ import annotations

import torch

from idfx.core.errors import PlanError
from idfx.core.noise import normal
from idfx.fills import fills
from idfx.fills.identity import LOOSENINGS
from idfx.fills.matrices import Target, check_name, check_number, scatter_
from idfx.fills.random import check_spread


@fills.register("bilinear")
def bilinear(target: Target, *, tau: float = 1.0, loosen: str = "diagonal", eps_tau: float = 1e-6) -> None:
    """One product in each output: y_m = tau · x1_m · x2_m, with shorter arguments repeated.

    W[m, i, j] = tau + noise where i ≡ m (mod D_in1) and j ≡ m (mod D_in2), 0 elsewhere.

    Args:
        target: a tensor (out, in1, in2).
        tau, loosen, eps_tau: as in `idi`.

    Raises:
        PlanError: another number of axes, or a malformed argument; nothing has been written.

    Source: ours.

    Example:
        >>> from idfx.fills import fill_
        >>> fill_(torch.empty(2, 2, 1), "bilinear", {"loosen": "none"}, parameter="w", seed=0)
        tensor([[[1.],
                 [0.]],
        <BLANKLINE>
                [[0.],
                 [1.]]])
    """
    tau, shape = check_number(target, "tau", tau), target.shard.shape
    check_name(f"{target.parameter}: loosen", loosen, LOOSENINGS)
    eps_tau = check_spread(target, "eps_tau", eps_tau)
    if len(shape) != 3:
        raise PlanError(f"{target.parameter}: shape {shape}; expected (out, in1, in2). Use idi for a matrix.")
    target.tensor.zero_()
    if not target.tensor.numel():
        return

    def noise(number: torch.Tensor) -> torch.Tensor:
        return normal(target.seed, target.parameter, number).mul_(eps_tau)

    if loosen == "dense":
        scatter_(target, target.tensor, target.shard.offsets, noise)
    span = target.span(0)
    row = torch.arange(span.start, span.stop, device=target.device)
    index = [row, row % shape[1], row % shape[2]]
    local = [at - offset for at, offset in zip(index, target.shard.offsets, strict=True)]
    held = target.tensor.shape
    inside = (local[1] >= 0) & (local[1] < held[1]) & (local[2] >= 0) & (local[2] < held[2])
    number = (index[0] * target.strides[0] + index[1] * target.strides[1] + index[2])[inside]
    values = torch.full_like(number, tau, dtype=torch.float64)
    values = values if loosen == "none" else values + noise(number)
    device = target.tensor.device
    where = tuple(at[inside].to(device) for at in local)
    target.tensor.index_put_(where, values.to(target.tensor.dtype).to(device))
