"""Weights that lose directions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from idfx.audits.metric import metric
from idfx.audits.pixels import distinct_pixels
from idfx.audits.subject import CLOSED, AuditContext
from idfx.core.findings import Finding, Measure, Severity
from idfx.core.roles import RoleName

SMALLEST = 1e-6  # of the largest singular value
SURE = 1e-5  # of the norm of a Gram matrix in single precision, which is known to about 1e-7
LARGEST = 2048  # of the smaller side
WHOLE = (0.01, 0.5)
INSIDE = (0.25, 0.75)
ROWS = 128  # of a matrix inside a branch that are examined
MATRICES = 8  # of a weight inside a branch

_REMEDY = "Initialise it again (orthogonal, kaiming, idinit): no later layer can recover what it loses."


@metric("rank")
def rank(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Weights that lose rank.

    Definition: the number of singular values of each matrix above 1e-6 of the largest, compared with min(D_out, D_in),
    in float64. It is counted through the eigenvalues of the smaller Gram matrix, which resolve singular values down to
    1e-8 of the largest; they are not computed if a Cholesky factorisation shows that none is too small (first of a part
    of the matrix, in single precision, with a margin of a hundred times its rounding). In the main stem and on
    projection shortcuts, whole weights are examined, except those with a smaller side above 2048, which are skipped and
    counted. For weights inside branches, whose shortcut carries what they lose, and for heads, embeddings, recurrent
    weights and gating weights, up to 128 evenly spaced rows (or columns, if they are fewer) of up to 8 groups or
    experts are examined; closed ones are not findings. The bottleneck of the main stem is the smallest rank that the
    whole signal has to pass (of one position, with kernels including their taps).

    Unit: the lost share of min(D_out, D_in). Thresholds: 0.01 (warning): a square Gaussian matrix of side 2048 has one
    singular value below 1e-6 of the largest in about one of 250 draws, but never a hundredth of them; 0.5 (error).
    Inside branches 0.25 and 0.75: a mirrored weight (looks-linear) loses half by design.

    Source: Edelman, "Eigenvalues and condition numbers of random matrices", 1988, for the smallest singular value.
    """
    looked_at = skipped = oblong = 0
    bottleneck: tuple[int, str] | None = None
    weights = (*subject.weights(), *subject.normalised(), *subject.recurrent(), *subject.embeddings())
    for info, role in weights:
        whole = (role.name.is_stem or role.name is RoleName.PROJECTION_SHORTCUT) and "gating" not in role.traits
        side = min(role.layout.matrix(info.shape)) if role.layout is not None else 0
        if not side or (not whole and (side == 1 or subject.ratio(info, role) <= CLOSED)):
            continue
        if subject.is_zero(info.name) and info.name not in subject.cutting:  # the metric `dead` judges it
            continue
        if whole and side > LARGEST:
            skipped += 1
            continue
        looked_at += 1
        rows, columns = subject.matrices(info.name).shape[1:]
        oblong += rows != columns
        matrices = subject.matrices(info.name) if whole else _part(subject.matrices(info.name))
        lost = _lost(matrices)
        if lost and (pixels := distinct_pixels(subject, info.name)) is not None:
            matrices, lost = pixels, _lost(pixels)
        if role.name.is_stem and "gating" not in role.traits:
            kept = min(matrices.shape[1:]) * matrices.shape[0] - lost, info.name
            bottleneck = kept if bottleneck is None else min(bottleneck, kept)
        yield from _told(subject, info.name, matrices, lost, WHOLE if whole else INSIDE)
    yield Measure("rank", "weights examined", looked_at)
    yield Measure("rank", "not square", oblong)
    if bottleneck is not None:
        yield Measure("rank", "bottleneck of the main stem", f"{bottleneck[0]:,} at {bottleneck[1]}")
    yield Measure("rank", f"skipped, with a side above {LARGEST}", skipped)


def _lost(matrices: Tensor) -> int:
    """The total by which the ranks of matrices fall short of their smaller sides."""
    return sum(map(missing, matrices)) if min(matrices.shape[1:]) > 1 else _zeros(matrices)


def _told(
    subject: AuditContext, name: str, matrices: Tensor, lost: int, thresholds: tuple[float, float]
) -> Iterator[Finding]:
    total = min(matrices.shape[1:]) * matrices.shape[0]
    share = lost / total
    if share > thresholds[0]:
        severity: Severity = "error" if share >= thresholds[1] else "warning"
        message = f"it loses {lost:,} of the {total:,} directions that were examined"
        yield subject.finding(severity, "rank", name, share, thresholds[0], message, _REMEDY)


def _part(matrices: Tensor) -> Tensor:
    """A selection of the matrices, and of the rows of each, or columns if they are fewer."""
    matrices = matrices[:: -(-matrices.shape[0] // MATRICES)]
    axis = 1 if matrices.shape[1] <= matrices.shape[2] else 2
    size = matrices.shape[axis]
    step = -(-size // ROWS)
    return matrices[:, ::step] if axis == 1 else matrices[:, :, ::step]


def _zeros(matrices: Tensor) -> int:
    """The number of matrices with one row, or one column, that are zero."""
    return int((~matrices.flatten(1).any(1)).sum())


def missing(matrix: Tensor) -> int:
    """Return the difference between the smaller side of a matrix and its numerical rank.

    Example:
        >>> missing(torch.eye(4)), missing(torch.ones(3, 4)), missing(torch.zeros(3, 4))
        (0, 2, 3)
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    part = wide[:, : wide.shape[0] * 9 // 8 + 16]  # its rank cannot exceed that of the whole
    if _above(_gram(part.float()), SURE):
        return 0
    gram = _gram(wide.double())
    if _above(gram, SMALLEST**2):
        return 0
    values = torch.linalg.eigvalsh(gram)
    return int((values <= SMALLEST**2 * values[-1].clamp(min=0)).sum())


def _gram(wide: Tensor) -> Tensor:
    return wide @ wide.T


def _above(gram: Tensor, share: float) -> bool:
    """Whether a Cholesky factorisation shows that all eigenvalues of a Gram matrix are above a share of its norm."""
    size = torch.linalg.matrix_norm(gram)
    shifted = gram - share * size * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    return 0 < float(size) < math.inf and not int(torch.linalg.cholesky_ex(shifted).info)
