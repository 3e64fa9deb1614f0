"""What the values of a weight look like, and which scheme writes such values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from idfx.audits.subject import sample

DOMINANT = 0.99
RIGHT = 1e-3
MANY = 1024  # entries from which a standard deviation is known well enough to tell which fan it was made from
GAINS = (1.0, math.sqrt(2.0), 1 / math.sqrt(3.0))  # LeCun, He, and nn.Linear's own
_ROWS = 16  # of a matrix that are looked at
_FEW = 256  # entries below which the shape of a distribution is not told
_KURTOSIS = (("uniform", 1.8, 0.15), ("truncated normal", 2.36, 0.15), ("normal", 3.0, 0.3))
_SCHEMES = {"identity": "idinit", "almost zero": "idinit, an end", "zero": "zero", "orthogonal": "orthogonal"}
_DRAWN = {
    ("fan-in", 0): "lecun", ("fan-in", 1): "kaiming", ("fan-in", 2): "torch.nn's own",
    ("their mean", 0): "xavier", ("fan-out", 1): "kaiming, fan_out",
}  # fmt: skip


def looks_like(matrices: Tensor, closed: bool = False) -> str:
    """Return what a weight looks like.

    Args:
        matrices: (count, rows, columns), not zero throughout.
        closed: it lets next to nothing through.

    Example:
        >>> looks_like(torch.eye(8)[None]), looks_like(torch.ones(1, 8, 8)), looks_like(torch.rand(1, 64, 64) - 0.5)
        ('identity', 'constant', 'uniform')
    """
    entries = sample(matrices)
    if bool((entries == entries[0]).all()) and bool((matrices == matrices[0, 0, 0]).all()):
        return "constant"
    if matrices.shape[2] > 1 and bool((_dominance(_rows(matrices)) >= DOMINANT).all()):
        return "identity"
    if closed:
        return "almost zero"
    gram = _gram(matrices)
    if gram.shape[0] > 1 and bool((gram - torch.eye(gram.shape[0]).to(gram)).abs().max() < RIGHT):
        return "orthogonal"
    if entries.numel() < _FEW:
        return "few entries"
    squared = (entries - entries.mean()).square()
    kurtosis = float(squared.square().mean() / squared.mean().square())
    return next((name for name, value, near in _KURTOSIS if abs(kurtosis - value) <= near), "other")


def distances(matrices: Tensor) -> tuple[float, float, float]:
    """Return how far a weight is from an identity, from an orthogonal matrix and from normal entries, as in `Likeness`.

    Args:
        matrices: (count, rows, columns), not zero throughout; up to 16 rows and 16,384 entries are looked at.

    Example:
        >>> [round(one, 3) for one in distances(torch.eye(64)[None])[:2]]
        [0.0, 0.0]
    """
    rows = _rows(matrices)
    squares = rows.square()
    whole = float(squares.sum())
    spread = max(0.0, 1 - float(squares.amax(1).sum()) / whole) if whole else math.nan
    gram = _gram(matrices)
    there = torch.eye(gram.shape[0]).to(gram)
    turned = float(torch.linalg.matrix_norm(gram - there)) / math.sqrt(gram.shape[0])
    entries = sample(matrices).sort().values
    deviation = float(entries.std(correction=0))
    if not deviation:
        return math.sqrt(spread), turned, 1.0
    expected = torch.special.ndtr((entries - entries.mean()) / deviation)
    steps = torch.arange(entries.numel() + 1).to(entries) / entries.numel()
    apart = torch.maximum((steps[1:] - expected).amax(), (expected - steps[:-1]).amax())
    return math.sqrt(spread), turned, float(apart)


def made_from(rms: float, fan_in: int, fan_out: int, size: int) -> tuple[str, float] | None:
    """Return the fan and the gain that a deviation is made from, to within what a sample of its size tells.

    Fan-in, the mean of both and fan-out are tried in this order. None if none fits, or the sample is small.

    Example:
        >>> made_from(math.sqrt(2 / 64), 64, 256, 64 * 256)
        ('fan-in', 1.4142135623730951)
    """
    if size < MANY or not rms:
        return None
    near = 3 / math.sqrt(2 * size)  # three deviations of a sample's own deviation
    for name, fan in (("fan-in", fan_in), ("their mean", (fan_in + fan_out) / 2), ("fan-out", fan_out)):
        for gain in GAINS:
            if abs(rms * math.sqrt(fan) / gain - 1) < near:
                return name, gain
    return None


def scheme(kind: str, made: tuple[str, float] | None) -> str:
    """Return which scheme writes such a weight, "" where nothing says so.

    Args:
        kind: what it looks like.
        made: what its deviation is made from.

    Example:
        >>> scheme("identity", None), scheme("normal", ("fan-out", GAINS[1])), scheme("other", None)
        ('idinit', 'kaiming, fan_out', '')
    """
    if kind in _SCHEMES or made is None or kind not in [name for name, *_ in _KURTOSIS]:
        return _SCHEMES.get(kind, "")
    return _DRAWN.get((made[0], GAINS.index(made[1])), "")


def _rows(matrices: Tensor) -> Tensor:
    """Some rows of some matrices, evenly spaced, in double precision."""
    flat = matrices.flatten(0, 1)
    return flat[:: -(-flat.shape[0] // _ROWS)].double()


def _dominance(rows: Tensor) -> Tensor:
    """The share of its squared length that the largest entry of each row holds, 1 for a row of zeros."""
    squares = rows.square()
    whole = squares.sum(1)
    return torch.where(whole > 0, squares.amax(1) / whole.clamp(min=torch.finfo(whole.dtype).tiny), 1.0)


def _gram(matrices: Tensor) -> Tensor:
    """The products of some rows (or columns, if they are fewer) of the first matrix, over their mean square length."""
    wide = matrices.shape[1] <= matrices.shape[2]
    rows = (matrices[0, :_ROWS] if wide else matrices[0, :, :_ROWS].T).double()
    gram = rows @ rows.T
    return gram / gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
