"""Weights that lose directions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from idfx.audits.metric import metric
from idfx.audits.subject import CLOSED, AuditContext
from idfx.core.findings import Finding, Measure, Severity
from idfx.core.roles import RoleName

SMALLEST = 1e-6  # of the largest singular value
SURE = 1e-5  # of the norm of a Gram matrix in single precision, which is known to some 1e-7
LARGEST = 2048  # of the smaller side
WHOLE = (0.01, 0.5)
INSIDE = (0.25, 0.75)
ROWS = 128  # of a matrix inside of a branch that are looked at
MATRICES = 8  # of a weight inside of a branch

_REMEDY = "Draw it anew (orthogonal, kaiming, idinit): what it loses no later layer can bring back."


@metric("rank")
def rank(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Weights that lose rank.

    Definition: the number of singular values of each matrix above 1e-6 of the largest, against min(D_out, D_in), in
    float64. It is counted by eigenvalues of the smaller Gram matrix, which tell singular values down to 1e-8 of the
    largest; where a Cholesky factorisation shows that none is too small (first of a part of the matrix, in single
    precision, with a margin of a hundred times its rounding), they are not computed. In the main stem and on projection
    shortcuts the whole is looked at, but for a smaller side above 2048, which is left out and counted. Inside of
    branches, whose shortcut carries what they lose, in heads, embeddings, recurrent weights and those that only
    steer another value, it is up to 128 evenly spaced rows (or columns, if they are fewer) of up to 8 groups or
    experts; closed ones are no finding. The bottleneck of the main stem is the smallest rank that all of the signal has
    to pass (of one position, kernels together with their taps).

    Unit: the share of min(D_out, D_in) that is lost. Thresholds: 0.01 (warning): a square Gaussian matrix of side 2048
    has one singular value below 1e-6 of the largest once in some 250 draws, never a hundredth of them; 0.5 (error).
    Inside of branches 0.25 and 0.75: a mirrored weight (looks-linear) loses half on purpose.

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
        if whole and side > LARGEST:
            skipped += 1
            continue
        looked_at += 1
        rows, columns = subject.matrices(info.name).shape[1:]
        oblong += rows != columns
        matrices = subject.matrices(info.name) if whole else _part(subject.matrices(info.name))
        lost = _lost(matrices)
        if role.name.is_stem and "gating" not in role.traits:
            kept = min(matrices.shape[1:]) * matrices.shape[0] - lost, info.name
            bottleneck = kept if bottleneck is None else min(bottleneck, kept)
        yield from _told(subject, info.name, matrices, lost, WHOLE if whole else INSIDE)
    yield Measure("rank", "weights looked at", looked_at)
    yield Measure("rank", "of them not square", oblong)
    if bottleneck is not None:
        yield Measure("rank", "bottleneck of the main stem", f"{bottleneck[0]:,} at {bottleneck[1]}")
    yield Measure("rank", f"left out, a side above {LARGEST}", skipped)


def _lost(matrices: Tensor) -> int:
    """By how much the ranks of matrices fall short of their smaller sides."""
    return sum(map(missing, matrices)) if min(matrices.shape[1:]) > 1 else _zeros(matrices)


def _told(
    subject: AuditContext, name: str, matrices: Tensor, lost: int, thresholds: tuple[float, float]
) -> Iterator[Finding]:
    total = min(matrices.shape[1:]) * matrices.shape[0]
    share = lost / total
    if share > thresholds[0]:
        severity: Severity = "error" if share >= thresholds[1] else "warning"
        message = f"it loses {lost:,} of the {total:,} directions that were looked at"
        yield subject.finding(severity, "rank", name, share, thresholds[0], message, _REMEDY)


def _part(matrices: Tensor) -> Tensor:
    """Some of the matrices, and of each some rows, or columns if they are fewer."""
    matrices = matrices[:: -(-matrices.shape[0] // MATRICES)]
    axis = 1 if matrices.shape[1] <= matrices.shape[2] else 2
    size = matrices.shape[axis]
    step = -(-size // ROWS)
    return matrices[:, ::step] if axis == 1 else matrices[:, :, ::step]


def _zeros(matrices: Tensor) -> int:
    """How many matrices with one row, or one column, are zero."""
    return int((~matrices.flatten(1).any(1)).sum())


def missing(matrix: Tensor) -> int:
    """Return by how much the numerical rank of a matrix falls short of its smaller side.

    Example:
        >>> missing(torch.eye(4)), missing(torch.ones(3, 4)), missing(torch.zeros(3, 4))
        (0, 2, 3)
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    part = wide[:, : wide.shape[0] * 9 // 8 + 16]  # its rank is not above that of the whole
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
    """Whether all eigenvalues of a Gram matrix are above a share of its norm, told by a Cholesky factorisation."""
    size = torch.linalg.matrix_norm(gram)
    shifted = gram - share * size * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    return 0 < float(size) < math.inf and not int(torch.linalg.cholesky_ex(shifted).info)
