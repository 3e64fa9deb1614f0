"""Elementwise operators with one tensor operand.

An entry is needed only if a trial on a zero does not reveal the meaning: a pointwise operator that is not listed is
tried on a zero (`idfx.analysis.dataflow`), and is a map if it takes 0 to 0 and a gate otherwise.
"""

from __future__ import annotations

from typing import Any

from idfx.ops.kinds import Kind
from idfx.ops.semantics import OpSemantics, gate, keeps_zero, move, operator, product, reciprocal, scale, tensors


@operator("aten.neg", "aten.neg_", "aten.negative", "aten.negative_")
def negated(x: Any) -> OpSemantics:
    """−x."""
    return scale(x, -1.0)


@operator("aten.positive")
def kept(x: Any) -> OpSemantics:
    """X itself."""
    return move(x)


@operator("aten.pow", "aten.pow_", "aten.float_power")
def power(x: Any, exponent: Any) -> OpSemantics:
    """x^p: zero at zero if p is a positive number."""
    if isinstance(exponent, (int, float)) and not isinstance(x, (int, float)):
        return move(x) if exponent == 1 else keeps_zero(x) if exponent > 0 else reciprocal(x)
    return gate(x, exponent)


@operator("aten.rsqrt", "aten.rsqrt_", "aten.reciprocal", "aten.reciprocal_")
def inverted(x: Any) -> OpSemantics:
    """1 / x or 1 / √x."""
    return reciprocal(x)


@operator("aten.square", "aten.square_", "aten.hardswish", "aten.hardswish_", "aten.leaky_relu", "aten.leaky_relu_",
          "aten.elu_", "aten.celu_", "aten.selu_")  # fmt: skip
def entrywise(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """An elementwise function with f(0) = 0 that not every version of torch marks as pointwise."""
    return keeps_zero(x)


@operator("aten.hardsigmoid_")
def squashed(x: Any) -> OpSemantics:
    """An elementwise function with f(0) ≠ 0 that not every version of torch marks as pointwise."""
    return gate(x)


@operator("aten.ldexp", "aten.ldexp_")
def shifted(x: Any, exponent: Any) -> OpSemantics:
    """x · 2^exponent, a factor that is never zero."""
    return product(x, gate(exponent))


@operator("aten.prelu", "aten._prelu_kernel", "aten.rrelu", "aten.rrelu_")
def rectified(x: Any, *slopes: Any, **options: Any) -> OpSemantics:
    """x above zero, slope · x below."""
    return keeps_zero(x, *slopes)


@operator("aten.clamp", "aten.clamp_", "aten.clip", "aten.clip_", "aten.hardtanh", "aten.hardtanh_")
def clamped(x: Any, low: Any = None, high: Any = None) -> OpSemantics:
    """X clamped between two bounds; zero stays zero if it is between them, as it is expected of bounds in tensors."""
    above = isinstance(low, (int, float)) and low > 0
    below = isinstance(high, (int, float)) and high < 0
    if above or below:
        return OpSemantics(Kind.GATE, (x,), eps=float(low) if above else None)
    return keeps_zero(x, *tensors(low, high))


@operator("aten.clamp_min", "aten.clamp_min_")
def bounded_below(x: Any, low: Any) -> OpSemantics:
    """max(x, low)."""
    return clamped(x, low, None)


@operator("aten.clamp_max", "aten.clamp_max_")
def bounded_above(x: Any, high: Any) -> OpSemantics:
    """min(x, high)."""
    return clamped(x, None, high)


@operator("aten.glu")
def gated_half(x: Any, dim: int = -1) -> OpSemantics:
    """GLU: one half of x times the sigmoid of the other half."""
    return OpSemantics(Kind.PRODUCT, (OpSemantics(Kind.MOVE, (x,), tag="first half", axes=(dim,)), gate(x)), tag="glu")


@operator("aten.zero_", "aten.zeros_like", "aten.new_zeros")
def zero(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """Zeros with the shape of x."""
    return OpSemantics(Kind.ZERO, ())


@operator("aten.fill_", "aten.ones_like", "aten.empty_like", "aten.full_like",
          "aten.rand_like", "aten.randn_like", "aten.randint_like", "aten.new_ones",
          "aten.new_empty", "aten.new_full", "aten.new_empty_strided", "aten.uniform_",
          "aten.normal_", "aten.bernoulli", "aten.bernoulli_", "aten.random_", "aten.exponential_",
          "aten._assert_async", "aten._assert_tensor_metadata", "aten.item", "aten._local_scalar_dense",
          "aten.sym_size", "aten.is_nonzero", "aten.equal", "aten.allclose", "aten.sym_numel",
          "aten.is_same_size", "aten._has_compatible_shallow_copy_type", "aten._has_same_storage_numel")  # fmt: skip
def constant(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """A value that depends at most on the shape of x."""
    return OpSemantics(Kind.GATE, ())
