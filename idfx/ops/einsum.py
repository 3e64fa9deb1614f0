"""Contractions over named axes: einsum, and tensordot as a special case."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from idfx.core.records import Layout
from idfx.ops.kinds import Kind
from idfx.ops.semantics import OpSemantics, Reading, Shape, contract, operator, product

_DOTS = "..."


@operator("aten.einsum")
def einsum(equation: str, tensors: Any, *, path: Any = None) -> OpSemantics:
    """A sum of products over named axes; without an axis to sum over, a product entry by entry."""
    names, result = _named(equation)
    if len(tensors) == 1:
        return OpSemantics(Kind.MIX, (tensors[0],))
    return OpSemantics(Kind.CONTRACT, tuple(tensors), arranged=functools.partial(_arranged, tensors, names, result))


@operator("aten.tensordot")
def tensordot(a: Any, b: Any, dims_self: Any, dims_other: Any) -> OpSemantics:
    """A sum of products over pairs of axes."""
    pairs = tuple(zip(dims_self, dims_other, strict=True))
    swapped = tuple((theirs, own) for own, theirs in pairs)
    return contract(a, b, functools.partial(_dotted, pairs, True), functools.partial(_dotted, swapped, False))


def _dotted(pairs: Sequence[tuple[int, int]], first: bool, own: Shape | None, other: Shape | None) -> Reading | None:
    """Read one operand of a tensordot: axes that are not summed over count outputs."""
    if own is None or other is None:
        return None
    places = [(theirs % len(other), axis % len(own)) for axis, theirs in pairs]
    ins = tuple(axis for _, axis in sorted(places))
    outs = tuple(axis for axis in range(len(own)) if axis not in ins)
    if not ins or not outs:
        return None
    end = len(other) - len(ins) if first else 0
    axes = tuple(range(-end - len(outs), -end))
    return Reading(Layout(outs[0], ins[0], out_rest=outs[1:], in_rest=ins[1:]), axes)


def _named(equation: str) -> tuple[list[str], str]:
    """The axis names of each operand and of the result; without an arrow, those that occur once, sorted."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    names = left.split(",")
    if not arrow:
        counts = Counter(left.replace(_DOTS, "").replace(",", ""))
        result = _DOTS * (_DOTS in left) + "".join(sorted(name for name, count in counts.items() if count == 1))
    return names, result


def _arranged(tensors: Sequence[Any], names: Sequence[str], result: str, kinds: Sequence[int]) -> OpSemantics:
    """Combine two operands at a time: first those that carry data, then fixed ones, then the weights."""
    whole = tuple(own for own, kind in zip(names, kinds, strict=True) if kind == 2)
    waiting = list(range(len(names)))

    def rank(at: int) -> tuple[int, bool]:
        return (1, 2, 0)[kinds[at]], set(names[at]).isdisjoint(set(held) - set(result))

    held = ""
    first = min(waiting, key=rank)
    waiting.remove(first)
    term, held = tensors[first], names[first]
    while waiting:
        at = min(waiting, key=rank)
        waiting.remove(at)
        later = result + "".join(names[after] for after in waiting)
        kept = _kept(held + names[at], later) if waiting else result
        if _is_entrywise(held, names[at], kept):
            term, held = product(term, tensors[at]), kept
            continue
        layouts = (
            functools.partial(_read, own, other, kept, whole) for own, other in ((held, names[at]), (names[at], held))
        )
        term, held = contract(term, tensors[at], *layouts), kept
    assert isinstance(term, OpSemantics)
    return term


def _is_entrywise(own: str, other: str, result: str) -> bool:
    """Whether nothing is summed over: each entry of the result is a product of one entry of each operand."""
    axes = [names.replace(_DOTS, ".") for names in (own, other)]
    apart = all(len(set(names)) == len(names) for names in axes)
    return apart and set(axes[0] + axes[1]) == set(result.replace(_DOTS, "."))


def _kept(names: str, later: str) -> str:
    """The axes of a product of two operands that are needed later, without repetition."""
    letters = dict.fromkeys(name for name in names if name.isalpha() and name in later)
    return _DOTS * (_DOTS in names) + "".join(letters)


def _read(
    own: str, other: str, result: str, whole: Sequence[str], own_shape: Shape | None, other_shape: Shape | None
) -> Reading | None:
    """Read one of two operands by the names of its axes; inputs that are of two data operands are a product of both."""
    spelled = _spelled((own, other), result, (own_shape, other_shape))
    if spelled is None:
        return None
    own, other, result = spelled
    outs = [name for name in result if name in own and name not in other]
    ins = [name for name in other if name in own and name not in result]
    batch = [name for name in own if name in other and name in result]
    given = set(ins) & set("".join(whole))
    apart = bool(given) and not any(given <= set(names) for names in whole)
    if not outs or not ins or apart or sorted(own) != sorted([*outs, *ins, *batch]):
        return None
    out_axes, in_axes, batch_axes = (tuple(own.index(name) for name in part) for part in (outs, ins, batch))
    layout = Layout(out_axes[0], in_axes[0], batch_axes=batch_axes, out_rest=out_axes[1:], in_rest=in_axes[1:])
    return Reading(layout, tuple(result.index(name) - len(result) for name in outs))


def _spelled(names: Sequence[str], result: str, shapes: Sequence[Shape | None]) -> list[str] | None:
    """Name each axis of the ellipsis by a digit; None if their number is unknown."""
    counts = []
    for own, shape in zip(names, shapes, strict=True):
        if _DOTS in own and shape is None:
            return None
        counts.append(len(shape or ()) - len(own) + len(_DOTS) if _DOTS in own else 0)
    most = max(counts)
    digits = "".join(str(place % 10) for place in range(most))
    each = (*zip(names, counts, strict=True), (result, most))
    return [own.replace(_DOTS, digits[most - count :]) for own, count in each]
