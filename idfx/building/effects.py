"""The effect of an operator on the memory of its first tensor, from its schema."""

from __future__ import annotations

import functools
from typing import Any

import torch

from idfx.core.torch_private import is_composite

# In-place draws: each overwrites its whole tensor without reading it.
DRAWS = frozenset(
    f"aten::{name}_"
    for name in (
        "normal",
        "uniform",
        "random",
        "exponential",
        "bernoulli",
        "cauchy",
        "log_normal",
        "geometric",
    )
)
OVERWRITES = frozenset({"aten::zero_", "aten::fill_", "aten::copy_"})
# Operators whose result is memory that nobody wrote.
ALLOCATIONS = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted")
)
# Operators that take shape, dtype and device from a tensor, and nothing from its values.
SHAPE_READERS = frozenset(
    {f"aten::{name}_like" for name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")}
    | {f"aten::new_{name}" for name in ("empty", "empty_strided", "zeros", "ones", "full")}
    | {"aten::_unsafe_view"}
)


@functools.cache
def effect(func: Any) -> str:
    """Return the effect of an operator: "draw", "overwrite", "change", "view" (reads no value) or "read".

    Args:
        func: an overload of torch.ops.

    Example:
        >>> effect(torch.ops.aten.normal_.default), effect(torch.ops.aten.mul_.Scalar), effect(torch.ops.aten.t.default)
        ('draw', 'change', 'view')
    """
    schema = func._schema
    if schema.name in SHAPE_READERS:
        return "view"
    # Under inference_mode, composite operators are not decomposed and may copy what their schema calls a view.
    if is_composite(func):
        return "read"
    aliases = [result.alias_info for result in schema.returns]
    if aliases and all(alias is not None and not alias.is_write for alias in aliases):
        return "view"
    first = schema.arguments[0].alias_info if schema.arguments else None
    if first is None or not first.is_write or len(aliases) != 1:
        return "read"
    if torch.Tag.inplace_view in func.tags:
        return "read" if schema.name in ("aten::resize_", "aten::resize_as_") else "view"
    if schema.name in DRAWS:
        return "draw"
    return "overwrite" if schema.name in OVERWRITES else "change"
