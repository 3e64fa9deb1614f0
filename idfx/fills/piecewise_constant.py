"""The fill of biases whose rows belong to different gates: one value in some rows, another in the others."""

from __future__ import annotations

from collections.abc import Sequence

from idfx.core.errors import PlanError
from idfx.fills import fills
from idfx.fills.matrices import Target, check_number, check_ranges


@fills.register("piecewise_constant")
def piecewise_constant(
    target: Target, *, rows: Sequence[Sequence[int]], inside: float, value: float = 0.0, axis: int = 0
) -> None:
    """One value in some rows and another in all others: for the bias of a forget gate next to other gates.

    W[m, ...] = inside for m in rows, value elsewhere

    Args:
        target: a tensor of one axis or more.
        rows: half-open ranges along the axis, [[start, stop], ...].
        inside, value: numbers that the dtype can represent.
        axis: of the rows.

    Raises:
        PlanError: a value that is not such a number, ranges that overlap or leave the axis, or an axis that does not
            exist.

    Source: ours; for the forget gate Gers, Schmidhuber and Cummins, "Learning to forget", 2000.

    Example:
        >>> import torch
        >>> from idfx.fills import fill_
        >>> fill_(torch.empty(4), "piecewise_constant", {"rows": [[1, 2]], "inside": 1}, parameter="rnn.bias", seed=0)
        tensor([0., 1., 0., 0.])
    """
    inside, value = check_number(target, "inside", inside), check_number(target, "value", value)
    shape = target.shard.shape
    if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < len(shape):
        raise PlanError(f"{target.parameter}: axis {axis!r} for shape {shape}; expected one of its axes. Write 0.")
    ranges = check_ranges(target.parameter, rows, shape[axis])
    target.tensor.fill_(value)
    for start, stop in ranges:
        span = target.span(axis, start, stop)
        target.tensor.narrow(axis, span.start - target.shard.offsets[axis], len(span)).fill_(inside)
