"""A sum that is written as a reduction over stacked values: which values they are, and the factor of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch.fx

from idfx.ops.semantics import operator_name

_RESHAPED = frozenset({"aten.view", "aten.reshape", "aten.unflatten", "aten._unsafe_view", "aten._reshape_copy"})
_REDUCED = frozenset({"aten.sum", "aten.mean"})


class Stack(NamedTuple):
    """Values stacked along an axis of the first argument of a reduction, which multiplies each by `factor`."""

    values: tuple[torch.fx.Node, ...]
    axis: int
    factor: float


def stacked(node: torch.fx.Node, shapes: Mapping[str, tuple[int, ...]]) -> Stack | None:
    """Return the values that a reduction adds up if it goes over an axis along which they were stacked, else None.

    `stack` makes such an axis, and so does `cat` where each part is one long there, or where the axis is cut into its
    parts again. Entries at the same position are added.

    Args:
        node: of an operator.
        shapes: by node name.

    Example:
        >>> from idfx.capture.tracing import capture
        >>> from idfx.core.records import Example
        >>> class Twice(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.cat((x, x.tanh())).view(2, 3).mean(0)
        >>> found = capture(Twice(), Example((torch.ones(3),)))
        >>> stacked(list(found.graph.nodes)[-2], found.shapes)
        Stack(values=(x, tanh_default), axis=0, factor=0.5)
    """
    whole = node.args[0] if node.args else None
    if operator_name(node.target) not in _REDUCED or not isinstance(whole, torch.fx.Node) or whole.name not in shapes:
        return None
    shape = shapes[whole.name]
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if isinstance(dims, (list, tuple)):
        dims = dims[0] if len(dims) == 1 else None
    if not isinstance(dims, int) or not shape:
        return None
    axis = dims % len(shape)
    values = _values(whole, axis, shapes)
    if values is None or len(values) < 2:
        return None
    return Stack(values, axis, 1.0 if operator_name(node.target) == "aten.sum" else 1 / len(values))


def _values(whole: torch.fx.Node, axis: int, shapes: Mapping[str, tuple[int, ...]]) -> tuple[torch.fx.Node, ...] | None:
    """The values of which each index along an axis has one."""
    shape = shapes[whole.name]
    joined = whole.args[0] if operator_name(whole.target) in _RESHAPED else whole
    if not isinstance(joined, torch.fx.Node) or joined.name not in shapes or not joined.args:
        return None
    before, parts = shapes[joined.name], joined.args[0]
    dim = joined.args[1] if len(joined.args) > 1 else joined.kwargs.get("dim", 0)
    if not isinstance(parts, (list, tuple)) or not isinstance(dim, int) or dim % len(before) != axis:
        return None
    values = tuple(part for part in parts if isinstance(part, torch.fx.Node))
    if len(values) != shape[axis] or len(values) != len(parts) or before[:axis] != shape[:axis]:
        return None
    if operator_name(joined.target) == "aten.stack":
        return values if joined is whole else None
    wide = {shapes.get(value.name, ())[axis : axis + 1] for value in values}
    alike = len(wide) == 1 and all(math.prod(shapes[value.name]) * len(values) == math.prod(before) for value in values)
    return values if operator_name(joined.target) in ("aten.cat", "aten.concat", "aten.concatenate") and alike else None
