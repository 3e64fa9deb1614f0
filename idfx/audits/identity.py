"""What the values of each weight look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from idfx.audits.metric import metric
from idfx.audits.subject import CLOSED, Subject, sample
from idfx.findings import Measure

DOMINANT = 0.99
RIGHT = 1e-3
_ROWS = 16  # of a matrix that are looked at
_FEW = 256  # entries below which the shape of a distribution is not told


@metric("identity")
def identity(subject: Subject) -> Iterator[Measure]:
    """How many weights look like identities, closed ends, orthogonal or random matrices; measured, not judged.

    Definition, the first that is true, read from up to 16 rows and 16,384 entries: "zero"; "constant" (all entries the
    same); "identity" (one entry of each row holds 0.99 of its squared length, as in IDI and IDIC); "almost zero" (rms ·
    √fan-in is at most 0.01, as in IDIZ and IDIZC); "orthogonal" (rows, or columns if they are fewer, of one length and
    at right angles to 1e-3); by the kurtosis of the entries "uniform" (1.8 ± 0.15), "truncated normal" (2.36 ± 0.15,
    cut at two deviations) and "normal" (3 ± 0.3); "few entries" (below 256); "other".

    Unit: weights. Threshold: none.

    Source: Pan et al., "IDInit", ICLR 2025, for IDI and IDIZ; the kurtosis of the three distributions is theirs
    exactly.
    """
    counts = Counter(_kind(subject, info.name, subject.ratio(info, role)) for info, role in subject.weights())
    for name, count in counts.most_common():
        yield Measure("identity", name, count)


def _kind(subject: Subject, name: str, ratio: float) -> str:
    if subject.is_zero(name):
        return "zero"
    return looks_like(subject.matrices(name), closed=ratio <= CLOSED)


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
    rows = _rows(matrices)
    squares = rows.square()
    if rows.shape[1] > 1 and bool((squares.amax(1) >= DOMINANT * squares.sum(1)).all()):
        return "identity"
    if closed:
        return "almost zero"
    if _is_orthogonal(matrices):
        return "orthogonal"
    if entries.numel() < _FEW:
        return "few entries"
    centred = entries - entries.mean()
    squared = centred.square()
    kurtosis = float(squared.square().mean() / squared.mean().square())
    for name, value, near in (("uniform", 1.8, 0.15), ("truncated normal", 2.36, 0.15), ("normal", 3.0, 0.3)):
        if abs(kurtosis - value) <= near:
            return name
    return "other"


def _rows(matrices: Tensor) -> Tensor:
    """Some rows of some matrices, evenly spaced, in double precision."""
    flat = matrices.flatten(0, 1)
    return flat[:: -(-flat.shape[0] // _ROWS)].double()


def _is_orthogonal(matrices: Tensor) -> bool:
    """Whether rows (or columns) of the first matrix have one length and stand at right angles."""
    wide = matrices.shape[1] <= matrices.shape[2]
    rows = (matrices[0, :_ROWS] if wide else matrices[0, :, :_ROWS].T).double()
    squares = (rows[:2] * rows[0]).sum(1) if rows.shape[0] > 1 else rows.new_zeros(2)
    if not squares[0] or abs(squares[1]) > RIGHT * squares[0]:  # two rows tell as a rule
        return False
    gram = rows @ rows.T
    there = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    return bool((gram / gram.diagonal().mean() - there).abs().max() < RIGHT)
