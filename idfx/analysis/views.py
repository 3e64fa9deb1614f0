"""Parameter expression → which axes of the parameter the axes of the used tensor are.

A weight is used as a view of its parameter: transposed, sliced, one expert selected, axes merged. The views are run
on a tensor that has strides and no memory, and the strides of the result say where each axis comes from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx

from idfx.analysis.dataflow import Dataflow
from idfx.core.records import Layout

_ROOM = 1 << 50  # more bytes than any machine has; the tensor has no memory, and concatenated parts fit too


@dataclass(frozen=True, slots=True)
class View:
    """The sizes, strides and offset, in entries of the parameter, of a tensor made of it."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Matrix:
    """How a parameter is read as matrices, and the range of its outputs that one use takes; None for all."""

    layout: Layout
    rows: tuple[int, int] | None = None


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the row-major strides of a shape.

    Example:
        >>> strides_of((2, 3, 4))
        (12, 4, 1)
    """
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def blank(shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of a shape that has strides and no memory, row by row.

    Example:
        >>> blank((2, 3)).t().stride()
        (1, 3)
    """
    return torch.empty(_ROOM, dtype=torch.uint8, device="meta").as_strided(shape, strides_of(shape))


def follow(flow: Dataflow, leaf: int, chain: tuple[int, ...]) -> View | None:
    """Return the view of a parameter that an expression is, None if it is not a view.

    Args:
        flow: the data flow.
        leaf: the parameter.
        chain: the terms of the expression, from its value down to the parameter.
    """
    shape = flow.terms[leaf].shape
    if shape is None:
        return None
    tensor: Any = blank(shape)
    source = leaf
    for position in reversed(chain):
        term = flow.terms[position]
        if term.kind == "move":
            tensor = moved(flow, position, source, tensor)
        elif term.kind == "concat" and term.shape is not None and len(term.shape) == tensor.dim():
            tensor = tensor.as_strided(term.shape, tensor.stride(), tensor.storage_offset())
        elif term.shape != tuple(tensor.shape):
            return None
        if tensor is None:
            return None
        source = position
    return View(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))


def moved(flow: Dataflow, position: int, source: int, tensor: Any) -> Any:
    """Return the result of one move on a tensor without memory, by its strides; None if it is not a view.

    A copy keeps the strides of its source; a selection by another tensor is not a view.

    Args:
        flow: the data flow.
        position: the move.
        source: the term that it moves.
        tensor: in the place of the source.
    """
    term, node = flow.terms[position], flow.nodes[flow.terms[position].node]
    before = flow.nodes[flow.terms[source].node]
    if term.tag == "rounded":
        return tensor
    if flow.positions.get(node.name) != position or before not in node.all_input_nodes:
        same = isinstance(tensor, torch.Tensor) and term.shape == tuple(tensor.shape)
        return tensor if same else None

    def stand_in(other: torch.fx.Node) -> Any:
        shape = flow.capture.shapes.get(other.name, ())
        return tensor if other is before else torch.empty(shape, dtype=torch.int64, device="meta")

    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), stand_in)
    assert callable(node.target)
    try:
        result = node.target(*args, **kwargs)
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    if not isinstance(result, torch.Tensor) or result.untyped_storage()._cdata == _storage(tensor):
        return result
    return tensor if isinstance(tensor, torch.Tensor) and result.shape == tensor.shape else None


def _storage(tensor: Any) -> int:
    first = tensor if isinstance(tensor, torch.Tensor) else tensor[0]
    return int(first.untyped_storage()._cdata)


def read_matrix(view: View, shape: tuple[int, ...], layout: Layout) -> Matrix | None:
    """Return how a parameter is read, given how a view of it is read.

    Args:
        view: of the parameter.
        shape: of the parameter.
        layout: of the viewed tensor, axes from its start.

    Example:
        >>> view = View((8, 4), (4, 1), 32)  # the second of three experts of shape (8, 4)
        >>> read_matrix(view, (3, 8, 4), Layout(0, 1)).layout == Layout(1, 2, batch_axes=(0,))
        True
    """
    own = strides_of(shape)
    if (view.sizes, view.strides) == (shape, own):
        return Matrix(layout)
    found = [_axes(view, shape, axes) for axes in (layout.out_axes, layout.in_axes, layout.tap_axes)]
    batch = [_axes(view, shape, (axis,)) for axis in layout.batch_axes if view.strides[axis]]
    outs, ins, taps = found
    if not outs or ins is None or taps is None or None in batch:
        return None
    taken = [axis for axes in (*found, *batch) for axis, _ in axes or ()]
    if len(set(taken)) < len(taken) or any(part < shape[axis] for axis, part in outs[1:]):
        return None
    first = 0
    for axis, _ in outs:
        first = first * shape[axis] + view.offset // own[axis] % shape[axis]
    rows = (first, first + math.prod(part for _, part in outs))
    spare = set(range(len(shape))) - {axis for axes in found for axis, _ in axes or ()}
    read = replace(
        layout,
        out_axis=outs[0][0],
        in_axis=ins[0][0] if ins else None,
        tap_axes=tuple(axis for axis, _ in taps),
        batch_axes=tuple(sorted(spare)),
        out_rest=tuple(axis for axis, _ in outs[1:]),
        in_rest=tuple(axis for axis, _ in ins[1:]),
    )
    return Matrix(read, None if rows == (0, read.outputs(shape)) else rows)


def _axes(view: View, shape: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """The axes of a parameter that some axes of its view are, each with how much of it; None where they are none.

    Axes that lie one within the other are one: a merged axis comes apart, and the parts of an axis come together.
    """
    own = strides_of(shape)
    ones = (a for a, size in enumerate(shape) if size == 1)
    single = dict(zip((a for a, size in enumerate(view.sizes) if size == 1), ones, strict=False))
    runs: list[tuple[int, int]] = []
    found: list[tuple[int, int]] = []
    for axis in axes:
        size, stride = view.sizes[axis], view.strides[axis]
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    for size, stride in runs:
        steps = [a for a, step in enumerate(own) if step == stride and shape[a] > 1]
        parts: list[tuple[int, int]] = []
        for axis in reversed([a for a in range(steps[0] + 1) if shape[a] > 1] if steps and stride else []):
            part = min(size, shape[axis])
            if size % part or view.offset // own[axis] % shape[axis] + part > shape[axis]:
                return None
            parts.insert(0, (axis, part))
            size //= part
            if size == 1:
                break
        if size > 1:
            return None
        found += parts
    return found + [(single[axis], 1) for axis in axes if axis in single]
