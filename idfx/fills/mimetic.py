"""The fill of mimetic attention: pairs of weights whose product is a noisy multiple of the identity."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from idfx.core.errors import PlanError
from idfx.core.records import Layout
from idfx.fills import fills
from idfx.fills.matrices import Matrices, Target, check_name, check_number, read_layout
from idfx.fills.orthogonal import gaussian, one_thread

PARTS = ("query", "key", "value", "output")


@functools.lru_cache(maxsize=8)
def _decomposed(seed: int, stream: str, number: int, width: int, alpha: float, beta: float) -> tuple[Tensor, ...]:
    """U√Σ and V√Σ of α·Z + β·I = U Σ Vᵀ, Z with entries N(0, 1 / width)."""
    matrix = alpha / width**0.5 * gaussian(seed, stream, number, width, width)
    matrix += beta * torch.eye(width, dtype=torch.float64)
    with one_thread():
        u, sizes, vt = torch.linalg.svd(matrix)
    u, v = u * sizes.sqrt(), vt.T * sizes.sqrt()
    return u, v


@fills.register("mimetic")
def mimetic(
    target: Target,
    *,
    pair: str,
    parts: Sequence[str],
    heads: int,
    alpha: Sequence[float] = (0.7, 0.4),
    beta: Sequence[float] = (0.7, 0.4),
    layout: Layout | Mapping[str, Any] | None = None,
) -> None:
    """Attention weights with W_qᵀ W_k ≈ α₁ Z + β₁ I in each head, and W_out W_v = α₂ Z − β₂ I.

    The right-hand sides are decomposed by singular values, and each factor gets their square roots. Each head keeps its
    largest D_head singular values.

    Args:
        target: a tensor whose layout defines matrices, one for each of `parts`; fused weights are stacked.
        pair: the name of the random numbers, shared by all weights of one attention.
        parts: some of "query", "key", "value", "output".
        heads: the number of heads.
        alpha, beta: of query and key, and of value and output.
        layout: a `Layout` or its fields; by default (out, in).

    Raises:
        PlanError: incompatible parts, heads or shapes.

    Source: Trockman and Kolter, "Mimetic initialization of self-attention layers", ICML 2023, arXiv 2305.09828. From
        published implementations: Z has entries N(0, 1 / D).

    Example:
        >>> from idfx.fills import fill_
        >>> out, value = (
        ...     fill_(torch.empty(4, 4), "mimetic", {"pair": "a", "parts": [p], "heads": 2, "alpha": [0, 0],
        ...           "beta": [1, 1]}, parameter=p, seed=0) for p in ("output", "value"))
        >>> torch.allclose(out @ value, -torch.eye(4), atol=1e-6)
        True
    """
    subject = target.parameter
    if isinstance(parts, str) or not isinstance(parts, Sequence) or not parts:
        raise PlanError(f"{subject}: parts {parts!r}; expected a list. Write some of {', '.join(PARTS)}.")
    for name in parts:
        check_name(f"{subject}: part", name, PARTS)
    both = [(name, value) for name, given in (("alpha", alpha), ("beta", beta)) for value in _two(subject, name, given)]
    a1, a2, b1, b2 = (check_number(target, name, value) if value else 0.0 for name, value in both)
    matrices = Matrices(target, read_layout(target, layout))
    width = _width(subject, matrices, parts, heads)

    def factor(name: str) -> Tensor:
        if name in ("query", "key"):
            side, kept = PARTS.index(name), width // heads
            factors = [_decomposed(target.seed, f"{pair}#scores", head, width, a1, b1) for head in range(heads)]
            return torch.cat([found[side][:, :kept].T for found in factors])
        out, value = _decomposed(target.seed, f"{pair}#values", 0, width, a2, -b2)
        return out if name == "output" else value.T

    @functools.cache
    def whole() -> Tensor:
        return torch.cat([factor(name) for name in parts])

    matrices.put_(lambda number: whole()[number * matrices.size[0] : (number + 1) * matrices.size[0]])


def _width(subject: str, matrices: Matrices, parts: Sequence[str], heads: int) -> int:
    """Return the width of square parts that the heads divide; refuse others."""
    height, width = matrices.outputs // len(parts), matrices.columns
    whole = height * len(parts) == matrices.outputs and height == width and matrices.taps == 1
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or not whole or height % heads:
        raise PlanError(
            f"{subject}: {len(parts)} parts of ({height}, {width}) with {heads!r} heads; expected square parts with a "
            "width divisible by the heads. Keep it."
        )
    return width


def _two(subject: str, name: str, given: object) -> Sequence[Any]:
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise PlanError(f"{subject}: {name} {given!r}; expected two numbers. Write [0.7, 0.4].")
    return given
