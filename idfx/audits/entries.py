"""Entries and rows of weights and tables that do not belong to the distribution of the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from idfx.audits.metric import metric
from idfx.audits.subject import SAMPLE, AuditContext, sample
from idfx.core.findings import Finding
from idfx.core.records import ParameterInfo, Role

FEWEST = 256  # entries of a tensor that is judged
FAR = 20.0  # deviations
RARE = 0.05  # of the entries
DOMINANT = 0.9  # of a row's squared length
APART = 4.0  # times the size of the median row
FEWEST_ROWS, FEWEST_COLUMNS = 8, 16
_DEVIATION = 1.4826  # of a normal distribution, over its median absolute deviation

_OUTLIERS = "Cut the draw at two or three of its own deviations: trunc_normal_ takes a and b as values (±2 by default)."
_ONE_SIDED = "Draw around 0: torch.randn or uniform_(-a, a) instead of torch.rand."
_ROWS = "Draw these rows like the others; rows that were added to a table start well at its mean and deviation."


@metric("entries")
def entries(subject: AuditContext) -> Iterator[Finding]:
    """Outliers, values far on one side of 0, and rows whose size is not that of the rest.

    Definition: for trainable weights that act on the data directly, embeddings, positions and tokens of at least 256
    entries: (a) entries more than 20 deviations from the median, where the deviation is 1.48 times the median absolute
    deviation; not if it is 0 (sparse weights), if they are more than a twentieth of all, or if half of the rows have
    one entry with 0.9 of their squared length (identities). (b) The mean over the deviation, if it is above 1 in size
    or all entries have one sign. (c) For embeddings, positions and heads: rows whose root mean square is more than 4
    times that of the median row, or less than a quarter, and two or more rows of zeros in a table, beside the padding
    row.

    Unit: entries; deviations; rows. Threshold: 0 (warning). (a) A normal draw of any size stays below 8 deviations, and
    a Laplace draw of a million entries below 16; a truncated normal whose bounds lie far outside puts entries on them
    in low precision. (b) A weight of mean m and deviation s maps the mean of its inputs √fan-in · m / s times as
    strongly as anything else. (c) With 16 columns, the sizes of random rows differ by a fifth.

    Source: the definition of the distributions that torch.nn.init draws from.
    """
    for info, role in (*subject.weights(), *subject.recurrent(), *subject.embeddings(), *subject.values()):
        tensor = subject.tensors[info.name]
        if not info.requires_grad or tensor.numel() < FEWEST or subject.is_zero(info.name):
            continue
        matrices = subject.matrices(info.name) if role.layout is not None else tensor.reshape(1, -1, info.shape[-1])
        uneven = _uneven(subject, info, role, matrices)
        yield from uneven
        look = Look.at(tensor)
        if not uneven:
            yield from _outliers(subject, info.name, look, matrices)
        if look.deviation and (abs(look.mean) > look.deviation or look.low > 0 or look.high < 0):
            share = abs(look.mean) / look.deviation
            told = f"its mean {look.mean:.3g} is {share:.3g} times its deviation {look.deviation:.3g}"
            yield subject.finding("warning", "entries", info.name, share, 1, told, _ONE_SIDED)


@dataclass(frozen=True)
class Look:
    """The smallest and the largest entry of a tensor, and of a sample the mean, deviation, median and its deviation."""

    low: float
    high: float
    mean: float
    deviation: float
    median: float
    usual: float

    @classmethod
    def at(cls, tensor: Tensor) -> Look:
        """Return the numbers of a floating-point tensor with entries.

        Example:
            >>> look = Look.at(torch.arange(5.0))
            >>> look.low, look.high, look.mean, look.median
            (0.0, 4.0, 2.0, 2.0)
        """
        low, high = tensor.aminmax()
        some = sample(tensor)
        few = some[:: 4 if some.numel() > SAMPLE // 2 else 1]
        median = few.median()
        usual = _DEVIATION * float((few - median).abs().median())
        return cls(float(low), float(high), float(some.mean()), float(some.std(correction=0)), float(median), usual)


def _outliers(subject: AuditContext, name: str, look: Look, matrices: Tensor) -> Iterator[Finding]:
    far = max(look.high - look.median, look.median - look.low)
    if not look.usual or far <= FAR * look.usual:
        return
    tensor = subject.tensors[name]
    count = int(((tensor - look.median).abs() > FAR * look.usual).sum())
    if count <= RARE * tensor.numel() and not _is_identity(matrices):
        told = f"{count:,} of its {tensor.numel():,} entries are more than {FAR:g} deviations of the others away, the"
        told += f" farthest {far / look.usual:.3g}"
        yield subject.finding("warning", "entries", name, count, 0, told, _OUTLIERS)


def _is_identity(matrices: Tensor) -> bool:
    """Whether half of the rows have one entry that holds most of their squared length."""
    squares = matrices.double().square()
    dominated = squares.amax(2) >= DOMINANT * squares.sum(2)
    return float(dominated.double().mean()) >= 0.5


def _uneven(subject: AuditContext, info: ParameterInfo, role: Role, matrices: Tensor) -> list[Finding]:
    """The finding for rows whose size is not that of the rest, if there are any."""
    table = role.name in ("embedding", "position")
    if not (table or role.name == "head") or matrices.shape[0] != 1 or math.prod(info.shape[:-2]) != 1:
        return []
    rows = matrices[0]
    if rows.shape[0] < FEWEST_ROWS or rows.shape[1] < FEWEST_COLUMNS:
        return []
    sizes = torch.linalg.vector_norm(rows.float(), dim=1) / rows.shape[1] ** 0.5
    some = sizes[sizes > 0]
    middle = float(some.median()) if some.numel() else 0.0
    wrong = (sizes > APART * middle) | ((sizes > 0) & (sizes < middle / APART))
    silent = (sizes == 0).index_fill(0, subject.padding(info.name), False)
    if table and int(silent.sum()) > 1:
        wrong |= silent
    count = int(wrong.sum())
    if not count or 2 * count > rows.shape[0]:
        return []
    first = int(wrong.nonzero()[0])
    told = f"{count:,} of its {rows.shape[0]:,} rows are not of the size of the others: row {first} has a root mean"
    told += f" square of {float(sizes[first]):.3g}, the median row {middle:.3g}"
    return [subject.finding("warning", "entries", info.name, count, 0, told, _ROWS)]
