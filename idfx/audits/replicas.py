"""Outputs of a weight that are copies of one another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from idfx.audits.metric import metric
from idfx.audits.pixels import distinct_pixels
from idfx.audits.subject import CLOSED, AuditContext
from idfx.core.findings import Finding, Severity

NARROW = 4  # columns; with fewer, rows of a half-precision matrix may be equal by chance
DOMINANT = 0.9  # of a row's squared length: one entry that holds this much makes it a row of an identity
_LOOKED_AT = 16  # columns of the first comparison of rows

_REMEDY = "Draw the rows at random, or as an identity with noise (idinit), so that each output learns its own."


@metric("replicas")
def replicas(subject: AuditContext) -> Iterator[Finding]:
    """Outputs of a weight that start as exact copies of another output.

    Definition: the rows that are equal, bit for bit, to an earlier row of the same matrix (of each group, expert and
    fused part) or of the same trainable embedding. Not counted are rows of zeros, rows with one entry that holds 0.9 of
    the squared length (a padded identity repeats rows by design), matrices with fewer than 4 columns (equal by chance),
    closed ends of branches and heads, and rows whose outputs become neighbouring pixels, each as often as every other
    (a sub-pixel layer that starts as nearest-neighbour upsampling).

    Unit: the share of the rows. Thresholds: above 0 (warning): copies start with the same output, and only the layers
    that read them can separate them. From half of the rows (error): a constant matrix has only one direction.

    Source: Goodfellow, Bengio and Courville, "Deep learning", 2016, section 8.4, on breaking symmetry.
    """
    for info, role in (*subject.weights(), *subject.normalised(), *subject.recurrent(), *subject.embeddings()):
        rows, columns = role.layout.matrix(info.shape) if role.layout else (0, 0)
        closed = role.name.is_last and subject.ratio(info, role) < CLOSED
        if rows < 2 or columns < NARROW or closed or subject.is_zero(info.name):
            continue
        matrices = subject.matrices(info.name)
        copies = copied_rows(matrices)
        if copies and distinct_pixels(subject, info.name) is None:
            total = matrices.shape[0] * rows
            severity: Severity = "error" if copies / total >= 0.5 else "warning"
            message = f"{copies:,} of its {total:,} rows are exact copies of another row"
            yield subject.finding(severity, "replicas", info.name, copies / total, 0, message, _REMEDY)


def copied_rows(matrices: Tensor) -> int:
    """Return the number of rows equal to an earlier row of the same matrix, except rows of zeros and of identities.

    Args:
        matrices: (count, rows, columns), floating.

    Example:
        >>> copied_rows(torch.ones(1, 3, 4)), copied_rows(torch.eye(4)[None].repeat(1, 2, 1))
        (2, 0)
    """
    count, rows, columns = matrices.shape
    some = torch.linspace(0, columns - 1, min(columns, _LOOKED_AT), dtype=torch.float64, device=matrices.device).long()
    number = torch.arange(count, device=matrices.device).view(-1, 1).expand(count, rows).reshape(-1)
    suspects = _repeated(number, matrices.index_select(2, some).reshape(count * rows, -1))
    if not suspects.any():
        return 0
    number, flat = number[suspects], matrices.reshape(count * rows, columns)[suspects]
    squares = flat.double().square()
    told = squares.amax(1) < DOMINANT * squares.sum(1)  # false for a row of zeros, too
    number, flat = number[told], flat[told]
    if not flat.shape[0]:
        return 0
    return flat.shape[0] - len(set(zip(number.tolist(), _hashed(flat).tolist(), strict=True)))


def _repeated(number: Tensor, rows: Tensor) -> Tensor:
    """Which rows have the hash of another row with their number."""
    seen: dict[tuple[int, int], int] = {}
    pairs = list(zip(number.tolist(), _hashed(rows).tolist(), strict=True))
    for pair in pairs:
        seen[pair] = seen.get(pair, 0) + 1
    return torch.tensor([seen[pair] > 1 for pair in pairs], device=rows.device)


def _hashed(rows: Tensor) -> Tensor:
    """An integer hash of the bits of each row; integer sums do not depend on their order."""
    wide = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(2**62, (rows.shape[1],), generator=generator).mul_(2).add_(1).to(rows.device)
    hashed: Tensor = ((rows.contiguous().view(wide).long() + 1) * odd).sum(1)
    return hashed
