"""Buffers, and values computed from fixed values, that cannot be intended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
from torch import Tensor

from idfx.audits.finite import only_bounds
from idfx.audits.folding import Folding
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding
from idfx.ops.semantics import operator_name

LARGE = 1e6
_LIMITS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_VALUES = "Recompute it when the model is on its device: values that are not in the checkpoint are lost on meta."
_INDEX = "Build the index for the size of the table that it is used with."


@metric("tables")
def tables(subject: AuditContext) -> Iterator[Finding]:
    """Fixed tables that cannot be intended: huge numbers, indices out of range, NaN computed from sound values.

    Definition: (a) entries of floating-point buffers above 10⁶ in size, unless people write such numbers (all of these
    are the same negative number, or one or two sizes that are round: a mask or a sentinel), or the buffer only bounds a
    clamp. (b) Fixed indices of a look-up (embedding, index, gather, index_select) beyond the
    end of their table. (c) NaN, and Inf other than a mask's −Inf, in values that the forward computes from parameters
    and buffers without NaN or Inf (the root of a negative variance, an exponential beyond the dtype).

    Unit: entries. Threshold: 0 (error). Frequencies, positions, relative offsets, masks and windows of models stay
    below 10⁶, whereas uninitialised memory holds numbers of any size. A table of wrong but plausible numbers is not
    detected.

    Source: the definition; transformers issues on non-persistent buffers that are lost on the meta device.
    """
    folding = Folding(subject)
    for name, tensor in subject.tensors.items():
        if name not in subject.structure.parameters and tensor.is_floating_point() and tensor.numel():
            large = tensor[tensor.isfinite() & (tensor.abs() > LARGE)]
            if large.numel() and not (is_written(large) or only_bounds(subject, name)):
                message = f"{large.numel():,} of its {tensor.numel():,} entries are above {LARGE:g} in size"
                yield subject.finding("error", "tables", name, large.numel(), 0, message, _VALUES)
    yield from _out_of_range(subject, folding)
    yield from _made(subject, folding)


def is_written(large: Tensor) -> bool:
    """Return whether large numbers are such as people write into masks: one negative number, or one or two round ones.

    A round number has at most two significant digits, is a power of 2, or is the limit of a dtype.

    Args:
        large: numbers, at least one.

    Example:
        >>> is_written(torch.tensor([1e10, -1e10])), is_written(torch.tensor([3.7512e12, 2.2e30]))
        (True, False)
    """
    if large[0] < 0 and bool((large == large[0]).all()):
        return True
    sizes = large.abs().unique()  # type: ignore[no-untyped-call]
    return sizes.numel() <= 2 and all(_is_round(float(size), large.dtype) for size in sizes)


def _is_round(size: float, dtype: torch.dtype) -> bool:
    rounded = [float(f"{size:.1e}"), *(torch.finfo(kind).max for kind in _LIMITS)]
    found = any(float(torch.tensor(value, dtype=dtype)) == size for value in rounded)
    return found or math.frexp(size)[0] == 0.5


def _out_of_range(subject: AuditContext, folding: Folding) -> Iterator[Finding]:
    for node in subject.flow.nodes.values():
        if node.op != "call_function":
            continue
        for size, index in _looked_up(subject, node):
            value = folding.value(index) if folding.is_fixed(index) else None
            if value is None or value.dtype == torch.bool or value.is_floating_point() or not value.numel():
                continue
            count = int(((value >= size) | (value < -size)).sum())
            names = folding.leaves(index)
            if count and names:
                message = f"{count:,} of the {value.numel():,} indices are outside the {size:,} rows of their table"
                yield subject.finding("error", "tables", names[0], count, 0, message, _INDEX)


def _looked_up(subject: AuditContext, node: torch.fx.Node) -> Iterator[tuple[int, torch.fx.Node]]:
    """Yield the number of rows of a look-up, and its indices."""
    name, given = operator_name(node.target).removeprefix("aten."), node.args
    first: Any = given[0] if given else None
    shape = subject.structure.capture.shapes.get(getattr(first, "name", ""))
    if not shape:
        return
    pairs: list[tuple[Any, Any]] = []
    if name == "embedding":
        pairs = [(0, given[1])]
    elif name in ("gather", "index_select"):
        pairs = [(given[1], given[2])]
    elif name in ("index", "_unsafe_index") and isinstance(given[1], (list, tuple)):
        kinds = (subject.structure.capture.dtypes.get(getattr(one, "name", "")) for one in given[1])
        pairs = [] if "bool" in kinds else list(enumerate(given[1]))
    for dim, index in pairs:
        if isinstance(index, torch.fx.Node):
            yield shape[dim], index


def _made(subject: AuditContext, folding: Folding) -> Iterator[Finding]:
    for node in folding.maximal():
        names = folding.leaves(node)
        if not names or not all(map(subject.is_finite, names)) or any(n in (subject.unwritten or {}) for n in names):
            continue
        value = folding.value(node)
        if value is None or not value.is_floating_point():
            continue
        count = int((value.isnan() | (value == torch.inf)).sum())
        if count:
            worst = max(names, key=lambda name: _size(subject.tensors[name]))
            message = f"the forward computes {count:,} NaN or Inf from it, independently of the input"
            yield subject.finding("error", "tables", worst, count, 0, message, _VALUES)


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() and not tensor.is_complex() else 0.0
