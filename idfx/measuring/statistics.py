"""Tensors → statistics of the values at one point."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

SAMPLE = 65_536  # entries that a kurtosis, a correlation or a share of saturated entries is read from
ROWS = 256  # places, and units, that an effective rank is read from
FLAT = 0.01  # an activation with a smaller derivative is saturated
PLACES = 1024  # more keys than that, and an attention is not looked into
SURE = 0.99  # a softmax with a larger entry is saturated
EQUAL = 1e-5  # of the largest entry of a gradient


def sampled(value: Tensor, entries: int = SAMPLE) -> Tensor:
    """Return at most this many evenly spaced entries of a tensor, as a float32 copy.

    Example:
        >>> sampled(torch.arange(10.0), 5)
        tensor([0., 3., 6., 9.])
    """
    flat = value.detach().reshape(-1)
    stride = -(-flat.numel() // entries) if flat.numel() else 1
    stride += stride > 1 and stride % 2 == 0  # an odd stride visits all columns if their number is even
    return flat[::stride].float().clone()


def moments(value: Tensor) -> tuple[float, float, float]:
    """Return mean, variance and excess kurtosis; the kurtosis is that of a sample of the entries.

    Example:
        >>> moments(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
        (0.0, 1.0, -2.0)
    """
    if not value.numel():
        return math.nan, math.nan, math.nan
    variance, mean = torch.var_mean(value.detach().float(), correction=0)
    centred = sampled(value).double() - float(mean)
    second = float(centred.square().mean())
    fourth = float(centred.square().square().mean())
    return float(mean), float(variance), fourth / second**2 - 3 if second else math.nan


def as_rows(value: Tensor, axis: int) -> Tensor:
    """Return values as (positions, units).

    Args:
        value: any tensor with at least one axis.
        axis: of the units.
    """
    return value.detach().movedim(axis, -1).reshape(-1, value.shape[axis])


def dead_share(value: Tensor, axis: int) -> float:
    """Return the share of units that are constant over all positions.

    Example:
        >>> dead_share(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), -1)
        0.5
    """
    over = [a for a in range(value.dim()) if a != axis % value.dim()]
    if not over or value.shape[axis] in (0, value.numel()):
        return math.nan
    low, high = torch.aminmax(as_rows(value, axis), dim=0)
    return float((low == high).float().mean())


def flat_share(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return the share of entries at which the absolute derivative of a function is below `FLAT`.

    The derivative of a power or a logarithm depends on the scale of its input, and is taken at a root mean square of 1.
    The result is NaN for an exponential, whose relative slope is constant; for a function that is flat even on standard
    normal numbers (sign, round); and for one that has no derivative, combines entries (log_softmax, cumsum), or has
    other arguments that differ from entry to entry.

    Args:
        function: elementwise in its first argument.
        args, kwargs: of its call; the first argument is read before it is overwritten.

    Example:
        >>> flat_share(torch.relu, (torch.tensor([-1.0, 2.0]),), {}), flat_share(torch.sign, (torch.ones(2),), {})
        (0.5, nan)
        >>> flat_share(torch.square, (torch.tensor([-0.001, 0.002]),), {})
        0.0
    """
    others = (*args[1:], *kwargs.values())
    if not isinstance(args[0], Tensor) or any(isinstance(other, Tensor) and other.numel() > 1 for other in others):
        return math.nan

    def slope(point: Tensor) -> Tensor:
        point.requires_grad_()
        with torch.enable_grad():
            value = function(point.clone(), *args[1:], **kwargs)
            (found,) = torch.autograd.grad(value.sum(), point)
        return found.abs()

    def together(point: Tensor) -> bool:
        half = len(point) // 2
        whole, part = (function(given.clone(), *args[1:], **kwargs) for given in (point, point[half:]))
        return not torch.allclose(whole[half:], part, equal_nan=True)

    usual = torch.randn(1024, generator=torch.Generator().manual_seed(0)).to(args[0].device)
    try:
        if together(usual):
            return math.nan
        here = slope(usual.clone())
        if float((here < FLAT).float().mean()) >= SURE or _are_multiples(slope(usual + 1), here):
            return math.nan
        point = sampled(args[0])
        size = float(point.square().mean().sqrt())
        if 0 < size < math.inf and _are_multiples(slope(2 * usual), here):
            point = point / size
        return float((slope(point) < FLAT).float().mean())
    except (RuntimeError, TypeError, IndexError):  # no derivative, or a shape that a flat sample does not have
        return math.nan


def _are_multiples(slopes: Tensor, others: Tensor) -> bool:
    """Whether slopes are a multiple, other than 1, of those at other points, where both are finite."""
    known = slopes.isfinite() & others.isfinite()
    slopes, others = slopes[known], others[known]
    factor = float(slopes.sum() / others.sum()) if bool(others.any()) else 1.0
    return abs(factor - 1) > FLAT and torch.allclose(slopes, factor * others, rtol=1e-3)


def sure_share(value: Tensor, axis: int) -> float:
    """Return the share of slices of a softmax with an entry above `SURE`; NaN for slices of one entry."""
    if value.shape[axis] < 2:
        return math.nan
    return float((value.detach().amax(axis) > SURE).float().mean())


def sure_attention(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return `sure_share` of the weights of a scaled dot product attention, for the first sample of the batch.

    The weights are the operator's own output for the identity as values, so masks and scales are included.

    Args:
        args, kwargs: of the call of aten.scaled_dot_product_attention, with axes (batch, heads, positions, width).

    Example:
        >>> round(sure_attention((torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)), {}), 3)
        0.0
    """
    query, key, value = args[:3]
    places = key.shape[-2]
    if places > PLACES or query.dim() != 4 or key.is_nested:
        return math.nan
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    mask = mask[:1] if mask is not None and mask.dim() == 4 else mask
    rest = {name: option for name, option in kwargs.items() if name not in ("attn_mask", "dropout_p")}
    identity = torch.eye(places, dtype=value.dtype, device=value.device).expand(1, value.shape[1], places, places)
    function = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        weights = function(query[:1], key[:1], identity, mask, 0.0, *args[5:6], **rest)
    return sure_share(weights, -1)


def effective_rank(value: Tensor, axis: int) -> tuple[float, int]:
    """Return the effective rank of values as a matrix (positions, units), and its maximum.

    exp(entropy) of the singular values, normalised to a sum of 1, of at most `ROWS` evenly spaced positions and units.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Example:
        >>> rank, most = effective_rank(torch.eye(4), -1)
        >>> round(rank, 3), most
        (4.0, 4)
    """
    rows = as_rows(value, axis)
    rows = rows[:: max(1, -(-rows.shape[0] // ROWS)), :: max(1, -(-rows.shape[1] // ROWS))].float()
    most = min(rows.shape)
    if not most or not bool(torch.isfinite(rows).all()):
        return math.nan, most
    singular = torch.linalg.svdvals(rows.double())
    if not bool(singular.any()):
        return 0.0, most
    shares = singular / singular.sum()
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum())), most


def cosine(one: Tensor, other: Tensor) -> float | None:
    """Return the cosine between two tensors of the same shape; None if either is zero or not finite."""
    size = float(one.double().norm() * other.double().norm())
    return float(one.double() @ other.double()) / size if 0 < size < math.inf else None


def is_symmetric(value: Tensor, gradient: Tensor) -> bool:
    """Return whether a tensor consists of equal parts along an axis, whose gradients are equal, too, and not zero.

    The parts have several entries. Gradients count as equal within a hundred-thousandth of the largest one.

    Example:
        >>> is_symmetric(torch.zeros(3, 2), torch.tensor([[1.0, 2.0]]).expand(3, 2))
        True
        >>> is_symmetric(torch.zeros(3, 2), torch.arange(6.0).view(3, 2))
        False
    """
    if value.layout != torch.strided or gradient.layout != torch.strided or not value.is_floating_point():
        return False
    for axis, size in enumerate(value.shape):
        if size < 2 or value.numel() == size:
            continue
        first = value.narrow(axis, 0, 1)
        if bool((value.narrow(axis, 1, 1) == first).all()) and bool((value == first).all()):
            apart, largest = (gradient - gradient.narrow(axis, 0, 1)).abs().amax(), float(gradient.abs().amax())
            if largest > 0 and float(apart) <= EQUAL * largest:
                return True
    return False
