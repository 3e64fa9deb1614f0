"""Addition and multiplication of two tensors, and their combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from idfx.ops.kinds import Kind
from idfx.ops.semantics import (
    OpSemantics,
    add,
    concat,
    is_operand,
    keeps_zero,
    operator,
    product,
    reciprocal,
    scale,
)


@operator("aten.add", "aten.add_", "prims.add")
def added(x: Any, other: Any, *, alpha: Any = 1) -> OpSemantics:
    """The sum x + alpha · other."""
    return add(x, other, alpha)


@operator("aten.sub", "aten.sub_", "aten.subtract", "aten.subtract_", "prims.sub")
def subtracted(x: Any, other: Any, *, alpha: Any = 1) -> OpSemantics:
    """X − alpha · other."""
    return add(x, other, -alpha) if is_operand(other) else add(x, -other * alpha)


@operator("aten.rsub")
def subtracted_from(x: Any, other: Any, alpha: Any = 1) -> OpSemantics:
    """Other − alpha · x."""
    negative = scale(x, -float(alpha))
    return add(other, negative) if is_operand(other) else add(negative, other)


@operator("aten.mul", "aten.mul_", "aten.multiply", "aten.multiply_", "prims.mul")
def multiplied(x: Any, other: Any) -> OpSemantics:
    """The product x · other."""
    return product(x, other)


@operator("aten.div", "aten.div_", "aten.divide", "aten.divide_", "aten.true_divide", "aten.true_divide_")
def divided(x: Any, other: Any, *, rounding_mode: Any = None) -> OpSemantics:
    """X / other: zero if x is, but never because other is."""
    if rounding_mode is not None:
        return keeps_zero(x, other)
    if is_operand(other):
        return OpSemantics(Kind.PRODUCT, (x, reciprocal(other, -1.0)), tag="scale")
    return scale(x, 1.0 / other if isinstance(other, (int, float)) and other else None)


@operator("aten.addcmul", "aten.addcmul_")
def add_product(x: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> OpSemantics:
    """The sum x + value · tensor1 · tensor2."""
    return add(x, product(tensor1, tensor2), value)


@operator("aten.addcdiv", "aten.addcdiv_")
def add_quotient(x: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> OpSemantics:
    """The sum x + value · tensor1 / tensor2."""
    return add(x, OpSemantics(Kind.PRODUCT, (tensor1, reciprocal(tensor2, -1.0)), tag="scale"), value)


@operator("aten.lerp", "aten.lerp_")
def interpolated(x: Any, end: Any, weight: Any) -> OpSemantics:
    """Interpolation: x + weight · (end − x), which is (1 − weight) · x + weight · end."""
    return add(product(x, subtracted_from(weight, 1) if is_operand(weight) else 1.0 - weight), product(end, weight))


@operator("aten.maximum", "aten.minimum", "aten.fmax", "aten.fmin")
def extreme(x: Any, other: Any) -> OpSemantics:
    """The elementwise larger or smaller of two tensors; next to a fixed one, the other is clamped."""

    def arranged(kinds: Sequence[int]) -> OpSemantics:
        bounded = [value for value, kind in zip((x, other), kinds, strict=True) if kind]
        if len(bounded) == 1:
            return keeps_zero(bounded[0], *(value for value in (x, other) if value is not bounded[0]))
        return keeps_zero(concat((x, other)))

    return OpSemantics(Kind.MAP, (x, other), arranged=arranged)
