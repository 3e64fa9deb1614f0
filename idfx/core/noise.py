"""Random numbers as a pure function of (seed, name, index): no generator, no state, any device, any order.

Each number is a hash of its index, so a slice of a tensor gets the same numbers whether it is computed alone or as part
of the whole. Everything up to the sum in `normal` is exact integer arithmetic or table look-up, and that sum is one
float64 product and one float64 addition, which IEEE 754 defines exactly; so CPU and GPU agree in every bit.
"""

from __future__ import annotations

import functools
import hashlib
import math

import torch
from torch import Tensor

from idfx.core.errors import UsageError

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

_PARTS = 8  # each halving of the tail probability is cut into 2^8 intervals
_OCTAVES = 53  # tail probabilities from 2^-54 to 1/2
_GRID = 2.0**24  # the table is rounded to this grid, which hides differences in the last bits of libm


def _signed(value: int) -> int:
    """Return the int64 with the low 64 bits of the value."""
    return (value + 2**63) % 2**64 - 2**63


def key(seed: int, name: str) -> int:
    """Return the key of the stream of a name under a seed: blake2b of both, as int64.

    Args:
        seed: any integer.
        name: any text, usually the name of a parameter.

    Raises:
        UsageError: the seed is not an integer.

    Source: ours.

    Example:
        >>> key(0, "fc.weight") == key(0, "fc.weight"), key(0, "fc.weight") == key(1, "fc.weight")
        (True, False)
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UsageError(f"seed: {seed!r}; expected an integer. Give one such as 0.")
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _fold_(z: Tensor, shift: int) -> Tensor:
    """Return z ^ (z >>> shift), in place; torch's shift of int64 copies the sign, which is masked off."""
    return z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def hash_(stream: int, index: Tensor) -> Tensor:
    """Return output number `index` of SplitMix64 started at `stream`, written over `index`.

    z = stream + (index + 1)·γ;  z = (z ^ z >>> 30)·m1;  z = (z ^ z >>> 27)·m2;  z ^ z >>> 31, modulo 2^64.

    Args:
        stream: an int64, as from `key`.
        index: int64 tensor of any shape, overwritten.

    Returns:
        The same tensor; read as unsigned, its values are uniform over 64 bits.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. All
        streams share the increment γ, so two of them are the same sequence at two places 64 random bits
        apart: two tensors of n entries overlap with probability n / 2^63.

    Example:
        >>> hash_(1234567, torch.arange(2)).tolist()
        [6457827717110365317, 3203168211198807973]
    """
    z = index.add_(1).mul_(_signed(_GOLDEN)).add_(stream)
    _fold_(z, 30).mul_(_signed(_MIX_1))
    _fold_(z, 27).mul_(_signed(_MIX_2))
    return _fold_(z, 31)


def bits(seed: int, name: str, index: Tensor) -> Tensor:
    """Return 64 random bits for each index, as int64.

    Args:
        seed: any integer.
        name: the stream; fills that must not share their noise use different names.
        index: int64 tensor of any shape, not modified.

    Raises:
        UsageError: the seed is not an integer.

    Source: `key` and `hash_`.

    Example:
        >>> bits(0, "w", torch.tensor([3, 4]))[1] == bits(0, "w", torch.tensor(4))
        tensor(True)
    """
    return hash_(key(seed, name), index.clone())


def uniform(seed: int, name: str, index: Tensor) -> Tensor:
    """Return a number from the open interval (0, 1) for each index.

    (k + 1/2) / 2^52, k the upper 52 of the 64 bits: exact in float64, symmetric about 1/2.

    Args:
        seed, name, index: as in `bits`.

    Returns:
        float64 tensor of the shape of `index`. The same (seed, name, index) gives `normal` from the same
        bits.

    Raises:
        UsageError: the seed is not an integer.

    Source: ours.

    Example:
        >>> ((uniform(0, "w", torch.arange(1000)) - 0.5).mean().abs() < 0.03).item()
        True
    """
    upper = (bits(seed, name, index) >> 12).bitwise_and_(2**52 - 1)
    return upper.to(torch.float64).add_(0.5).mul_(2.0**-52)


@functools.cache
def _quantiles(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the normal quantile where each interval of the tail probability starts, and its rise within it.

    Interval j starts at the tail probability 2^(j >> 8) · (1 + (j & 255) / 256) / 2^54.
    """
    j = torch.arange((_OCTAVES << _PARTS) + 1)
    mantissa = 1 + (j & (2**_PARTS - 1)).to(torch.float64) / 2**_PARTS
    tail = torch.ldexp(mantissa, (j >> _PARTS) - (_OCTAVES + 1))
    start = -torch.special.ndtri(tail).mul_(_GRID).round_().div_(_GRID)
    return start[:-1].to(device), start.diff().to(device)


def normal(seed: int, name: str, index: Tensor) -> Tensor:
    """Return a number from the standard normal distribution for each index.

    ±Φ⁻¹(1 − p), with the sign from the top bit and the tail probability p = (2k + 1) / 2^54 from the next 52. Φ⁻¹ is
    interpolated in a table whose intervals are the floating-point numbers p with 8 bits after the leading one, so it is
    as fine in the tail as in the middle: the bits of p are the index into the table.

    Args:
        seed, name, index: as in `bits`.

    Returns:
        float64 tensor of the shape of `index`: within 1e-6 of the exact quantile, and never beyond ±8.3 (which a normal
        number exceeds once in 1e16): the tail ends where p runs out of bits.

    Raises:
        UsageError: the seed is not an integer.

    Source: ours; inversion in the manner of Hörmann and Leydold, "Continuous random variate generation by
        fast numerical inversion", TOMACS 2003. No logarithm or cosine runs on the device, because their last bits
        differ between devices.

    Example:
        >>> x = normal(0, "w", torch.arange(10000))
        >>> (x.mean().abs() < 0.03).item(), ((x.std() - 1).abs() < 0.03).item()
        (True, True)
    """
    random = bits(seed, name, index)
    tail = (random >> 11).bitwise_and_(2**52 - 1).mul_(2).add_(1).to(torch.float64).view(torch.int64)
    fine = 52 - _PARTS
    place = (tail >> fine).sub_(1023 << _PARTS)  # 1023 is the exponent that float64 writes for 2^0
    within = tail.bitwise_and_((1 << fine) - 1).to(torch.float64).mul_(2.0**-fine)
    start, rise = _quantiles(random.device)
    size = within.mul_(rise[place]).add_(start[place])
    return torch.where(random < 0, -size, size)


def resolves_loosening(dtype: torch.dtype, tau: float = 1.0, eps_tau: float = 1e-6) -> bool:
    """Return whether noise of standard deviation eps_tau, added to tau, survives rounding to the dtype.

    eps_tau ≥ ulp(tau), where ulp(tau) = finfo(dtype).eps · 2^floor(log2 |tau|) is the spacing at tau. If it
    does not, the diagonal loosening rounds away and stacked identities are exact replicas of each other.

    Args:
        dtype: a floating-point dtype.
        tau, eps_tau: mean and standard deviation of the entries of the fill `idi`.

    Source: ours.

    Example:
        >>> [resolves_loosening(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
        [True, False, False]
    """
    info = torch.finfo(dtype)
    binade = math.ldexp(1.0, math.frexp(tau)[1] - 1) if tau else 0.0
    return eps_tau >= info.eps * max(binade, info.tiny)
