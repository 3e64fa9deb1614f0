"""What the values of a weight resemble, and which scheme writes such values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from idfx.audits.subject import sample

DOMINANT = 0.99
RIGHT = 1e-3
MANY = 1024  # entries that determine a standard deviation well enough to identify the fan
GAINS = (1.0, math.sqrt(2.0), 1 / math.sqrt(3.0))  # LeCun, He, and nn.Linear's own
NORMAL = 2048  # entries that are compared with a normal distribution: normal entries differ by about 0.02
_ROWS = 16  # of a matrix that are examined
_FEW = 256  # entries; below this number the distribution is not identified
_KURTOSIS = (("uniform", 1.8, 0.15), ("truncated normal", 2.36, 0.15), ("normal", 3.0, 0.3))
_SCHEMES = {"identity": "idinit", "almost zero": "idinit, an end", "zero": "zero", "orthogonal": "orthogonal"}
_DRAWN = {
    ("fan-in", 0): "lecun", ("fan-in", 1): "kaiming", ("fan-in", 2): "torch.nn's own",
    ("their mean", 0): "xavier", ("fan-out", 1): "kaiming, fan_out",
}  # fmt: skip


@dataclass(frozen=True)
class Closeness:
    """A sample of a weight in double precision: up to 16,384 `entries`, up to 16 `rows`, and products.

    `gram` holds the products of up to 16 rows of the first matrix (columns, if they are fewer) over their mean square
    length.
    """

    matrices: Tensor
    entries: Tensor
    rows: Tensor
    gram: Tensor

    @classmethod
    def at(cls, matrices: Tensor) -> Closeness:
        """Return the sample of matrices (count, rows, columns) that are not entirely zero."""
        flat = matrices.flatten(0, 1)
        wide = matrices.shape[1] <= matrices.shape[2]
        some = (matrices[0, :_ROWS] if wide else matrices[0, :, :_ROWS].T).double()
        gram = some @ some.T
        gram = gram / gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
        return cls(matrices, sample(matrices), flat[:: -(-flat.shape[0] // _ROWS)].double(), gram)

    @property
    def skew(self) -> Tensor:
        """The difference of the products from those of orthogonal rows."""
        return self.gram - torch.eye(self.gram.shape[0]).to(self.gram)


def looks_like(look: Closeness, closed: bool = False) -> str:
    """Return what a weight resembles.

    Args:
        look: the sample of the weight.
        closed: whether it lets almost nothing through.

    Example:
        >>> [looks_like(Closeness.at(w[None])) for w in (torch.eye(8), torch.ones(8, 8), torch.rand(64, 64) - 0.5)]
        ['identity', 'constant', 'uniform']
    """
    entries, squares = look.entries, look.rows.square()
    if bool((entries == entries[0]).all()) and bool((look.matrices == look.matrices[0, 0, 0]).all()):
        return "constant"
    if squares.shape[1] > 1 and bool((squares.amax(1) >= DOMINANT * squares.sum(1)).all()):
        return "identity"
    if closed:
        return "almost zero"
    if look.gram.shape[0] > 1 and bool(look.skew.abs().max() < RIGHT):
        return "orthogonal"
    if entries.numel() < _FEW:
        return "few entries"
    squared = (entries - entries.mean()).square()
    kurtosis = float(squared.square().mean() / squared.mean().square())
    return next((name for name, value, near in _KURTOSIS if abs(kurtosis - value) <= near), "other")


def distances(look: Closeness) -> tuple[float, float, float]:
    """Return the distances of a weight from an identity, an orthogonal matrix and normal entries.

    Example:
        >>> [round(one, 3) for one in distances(Closeness.at(torch.eye(64)[None]))[:2]]
        [0.0, 0.0]
    """
    squares = look.rows.square()
    whole = float(squares.sum())
    spread = max(0.0, 1 - float(squares.amax(1).sum()) / whole) if whole else math.nan
    turned = float(look.skew.square().sum()) ** 0.5 / math.sqrt(look.gram.shape[0])
    return math.sqrt(spread), turned, _from_normal(look.entries[:: -(-look.entries.numel() // NORMAL)])


def _from_normal(entries: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of numbers from a normal distribution of their mean and deviation."""
    deviation = float(entries.std(correction=0))
    if not deviation:
        return 1.0
    entries = entries.sort().values
    expected = torch.special.ndtr((entries - entries.mean()) / deviation)
    steps = torch.arange(entries.numel() + 1).to(entries) / entries.numel()
    return float(torch.maximum((steps[1:] - expected).amax(), (expected - steps[:-1]).amax()))


def made_from(rms: float, fan_in: int, fan_out: int, size: int) -> tuple[str, float] | None:
    """Return the fan and the gain that match a deviation, within the precision of the sample.

    Fan-in, the mean of both and fan-out are tried in this order. None if none matches or the sample is too small.

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
    """Return the scheme that writes such a weight, or "".

    Args:
        kind: what it resembles.
        made: the fan and the gain that match its deviation.

    Example:
        >>> scheme("identity", None), scheme("normal", ("fan-out", GAINS[1])), scheme("other", None)
        ('idinit', 'kaiming, fan_out', '')
    """
    if kind in _SCHEMES or made is None or kind not in [name for name, *_ in _KURTOSIS]:
        return _SCHEMES.get(kind, "")
    return _DRAWN.get((made[0], GAINS.index(made[1])), "")
