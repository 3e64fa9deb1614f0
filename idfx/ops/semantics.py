"""The small algebra that describes the meaning of operators, and the registry of meanings.

An operator is a function with the operator's own signature that returns a `OpSemantics`. Two questions are asked of a
term: when is it zero, and how far is it from passing its operand on unchanged. `idfx.ops.kinds.Kind` answers both for
each kind of term, and everything that idfx knows about structure follows from the answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from idfx.core.records import Layout
from idfx.core.registry import Registry
from idfx.ops.kinds import Kind

Meaning = Callable[..., "OpSemantics"]
Shape = tuple[int, ...]


class Reading(NamedTuple):
    """The layout of one operand of a contraction as a weight, and the axes of the result that count its outputs.

    The axes of the result are counted from its end, in the order of `layout.out_axes`.
    """

    layout: Layout
    axes: tuple[int, ...]


# A layout alone: the outputs are the last axis of the result, before any taps. Or, where the number of their axes
# matters, a function of the shapes of the operand and of the other operand (None: not known).
Layouts = Layout | Callable[[Shape | None, Shape | None], Reading | None] | None


def reading(layouts: Layouts, own: Shape | None, other: Shape | None) -> Reading | None:
    """Return the reading of an operand of a contraction, or None if it is not a plain matrix.

    Args:
        layouts: given by the operator.
        own, other: the shapes of the operand and of the other operand.

    Example:
        >>> reading(Layout(0, 1, (2,)), (8, 4, 3), (1, 4, 16)).axes
        (-2,)
    """
    if isinstance(layouts, Layout):
        return Reading(layouts, (-1 - len(layouts.tap_axes),))
    return None if layouts is None else layouts(own, other)


OPERATORS: Registry[Meaning] = Registry("operator", "idfx.ops")
operator = OPERATORS.register


@dataclass(eq=False, slots=True)
class OpSemantics:
    """What an operator does: a kind, the operands that its value is made of, and what only steers it.

    `kind` may be given as its plain word. `operands` are graph nodes or further terms; `gates` (masks, indices,
    statistics) affect the value but do not carry it. `tag` says what a parameter among the operands is ("bias",
    "shift", "scale", "table"). `layouts` are how the first and second operand of a contraction would be read as a
    weight; `arranged` gives the term instead, where it differs with which operands carry data (2), depend on parameters
    (1) or are fixed (0). `axes` is the one along which a norm takes its slices one by one, or along which the first
    half is taken; `factor` is the number that a scale multiplies by or that is added, `eps` what a norm adds or the
    least value of a function; `degree` is the k of a function with f(c · x) = cᵏ · f(x), where a trial cannot tell.
    """

    kind: Kind
    operands: tuple[Any, ...]
    gates: tuple[Any, ...] = ()
    tag: str = ""
    layouts: tuple[Layouts, Layouts] = (None, None)
    arranged: Callable[[Sequence[int]], OpSemantics] | None = None
    axes: tuple[int, ...] | None = None
    factor: float | None = None
    eps: float | None = None
    degree: float | None = None

    def __post_init__(self) -> None:
        if type(self.kind) is not Kind:  # the plain word
            self.kind = Kind(self.kind)  # type: ignore[call-arg]


@functools.cache
def operator_name(target: Any) -> str:
    """Return "aten.add" for the overload aten::add.Tensor, by which its meaning is registered."""
    return target._schema.name.replace("::", ".") if hasattr(target, "_schema") else str(target)


def is_operand(value: Any) -> bool:
    """Return whether a value represents a tensor (a graph node or a term) rather than a plain number."""
    return isinstance(value, OpSemantics) or hasattr(value, "all_input_nodes")


def tensors(*values: Any) -> tuple[Any, ...]:
    """Return the tensor operands among the values, including those in lists."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found.extend(tensors(*value))
        elif is_operand(value):
            found.append(value)
    return tuple(found)


def move(x: Any, *gates: Any) -> OpSemantics:
    """Entries of x moved, selected, repeated or padded with zeros."""
    return OpSemantics(Kind.MOVE, (x,), tensors(*gates))


def mix(x: Any, *gates: Any) -> OpSemantics:
    """Fixed linear combinations of the entries of x."""
    return OpSemantics(Kind.MIX, (x,), tensors(*gates))


def pool(x: Any) -> OpSemantics:
    """The largest of neighbouring entries of x."""
    return OpSemantics(Kind.POOL, (x,))


def scale(x: Any, factor: float | None = None) -> OpSemantics:
    """X times fixed numbers."""
    return OpSemantics(Kind.SCALE, (x,), factor=factor)


def keeps_zero(x: Any, *gates: Any) -> OpSemantics:
    """A nonlinear function of x with f(0) = 0."""
    return OpSemantics(Kind.MAP, (x,), tensors(*gates))


def gate(*values: Any) -> OpSemantics:
    """A function of the values that is not zero if they are."""
    return OpSemantics(Kind.GATE, tensors(*values))


def reciprocal(x: Any, degree: float | None = None) -> OpSemantics:
    """1 over a function of x, of the given degree: an unbounded gate, as in a hand-written normalisation."""
    return OpSemantics(Kind.GATE, tensors(x), tag="reciprocal", degree=degree)


def norm(x: Any, weight: Any, bias: Any, eps: float) -> OpSemantics:
    """X rescaled by its own statistics, times a scale, plus a shift."""
    return affine(OpSemantics(Kind.NORM, (x,), eps=float(eps)), weight, bias)


def affine(x: Any, weight: Any, bias: Any) -> OpSemantics:
    """x · weight + bias, either of which may be absent."""
    result = x if weight is None else OpSemantics(Kind.PRODUCT, (x, weight), tag="norm scale")
    return result if bias is None else OpSemantics(Kind.SUM, (result, bias), tag="shift")


def product(a: Any, b: Any) -> OpSemantics:
    """a · b, elementwise; with a number it is a scale."""
    if not is_operand(a):
        a, b = b, a
    return OpSemantics(Kind.PRODUCT, (a, b), tag="scale") if is_operand(b) else scale(a, _number(b))


def contract(a: Any, b: Any, layout_a: Layouts, layout_b: Layouts, bias: Any = None) -> OpSemantics:
    """The contraction of a with b, plus a bias; each operand has a layout in case it is the weight."""
    result = OpSemantics(Kind.CONTRACT, (a, b), layouts=(layout_a, layout_b))
    return result if bias is None else OpSemantics(Kind.SUM, (result, bias), tag="bias")


def add(a: Any, b: Any, alpha: Any = 1) -> OpSemantics:
    """A + alpha · b; with a non-zero number it is an offset, which is never zero."""
    if not is_operand(a):
        a, b = b, a
    if is_operand(b):
        return OpSemantics(Kind.SUM, (a, b if alpha == 1 else scale(b, _number(alpha))))
    return move(a) if b == 0 else OpSemantics(Kind.SUM, (a, OpSemantics(Kind.GATE, (), factor=_number(b))))


def concat(values: Any, *gates: Any) -> OpSemantics:
    """The values, concatenated."""
    return OpSemantics(Kind.CONCAT, tensors(values), tensors(*gates))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
