"""Where parameters meet data: weight sites with the layout of their matrix, and every other use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from idfx.flow import Flow, operator_name
from idfx.records import Layout, Site


@dataclass(frozen=True, slots=True)
class Use:
    """One way in which a parameter enters the data: `how` it acts, and at which term.

    `how` is "weight", "gain" (a factor inside a weight expression), "table", "recurrent", "bias", "norm scale",
    "norm shift", "scale", "offset" (added), "token" (put beside the data) or "other".
    """

    parameter: str
    how: str
    term: int
    layout: Layout | None = None
    activation: str = ""


@dataclass(frozen=True)
class Sites:
    """The weight sites by term, and the uses of each parameter."""

    at: Mapping[int, tuple[Site, ...]]
    uses: Mapping[str, tuple[Use, ...]]


def _leaves(flow: Flow, position: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The parameters of an expression, each with the terms from the expression's value down to it."""
    stack: list[tuple[int, tuple[int, ...]]] = [(position, ())]
    while stack:
        top, chain = stack.pop()
        term = flow.terms[top]
        if term.kind == "parameter":
            yield top, chain
        elif term.parametric and not term.data:
            stack.extend((o, (*chain, top)) for o in reversed((*term.operands, *term.gates)))


def _absolute(layout: Layout, dimensions: int) -> Layout | None:
    """Resolve axes counted from the end; the axes that are neither output, input nor tap count matrices."""
    if layout.in_axis is None or layout.in_axis >= 0:
        return layout
    if dimensions < 2:
        return None
    batch = tuple(range(dimensions - 2))
    return replace(layout, out_axis=layout.out_axis + dimensions, in_axis=layout.in_axis + dimensions, batch_axes=batch)


def _swapped(layout: Layout, first: int, second: int) -> Layout:
    def at(axis: int) -> int:
        return second if axis == first else first if axis == second else axis

    return replace(
        layout,
        out_axis=at(layout.out_axis),
        in_axis=None if layout.in_axis is None else at(layout.in_axis),
        tap_axes=tuple(at(axis) for axis in layout.tap_axes),
        batch_axes=tuple(at(axis) for axis in layout.batch_axes),
    )


def _layout(flow: Flow, layout: Layout | None, operand: int, leaf: int, chain: tuple[int, ...]) -> Layout | None:
    """Follow a layout from the operand that is contracted back to the parameter that it is made of."""
    used, own = flow.terms[operand].shape, flow.terms[leaf].shape
    if layout is None or used is None or own is None:
        return None
    found = _absolute(layout, len(used))
    if found is None:
        return None
    reshaped = False
    for position in chain:
        term = flow.terms[position]
        shape = term.shape or ()
        before = [flow.terms[operand].shape for operand in term.operands]
        if term.axes is not None:
            found = _swapped(found, term.axes[0] % len(shape), term.axes[1] % len(shape))
        elif shape not in before:
            reshaped = True
    return None if reshaped and used != own else found


def _activation(flow: Flow, position: int) -> str:
    """The nonlinear operator that the output of a weight runs into, past its bias and normalisation."""
    while len(flow.users.get(position, ())) == 1:
        position = flow.users[position][0]
        term = flow.terms[position]
        if term.kind in ("map", "gate"):
            node = flow.nodes[term.node]
            return operator_name(node.target).removesuffix("_")
        if term.kind not in ("move", "scale", "norm", "sum", "product"):
            break
    return ""


def _how(flow: Flow, position: int, operand: int, leaf: int, chain: tuple[int, ...]) -> str:
    term = flow.terms[position]
    own, used = flow.terms[leaf].shape or (), flow.terms[operand].shape or ()
    if term.kind == "contract":
        inside = [flow.terms[p].kind for p in chain]
        smaller = math.prod(own) < math.prod(used) and "concat" not in inside
        return "gain" if smaller and "product" in inside else "table" if term.tag == "table" else "weight"
    if term.kind == "recurrent":
        return "recurrent"
    if term.kind == "product" and operand in term.operands:
        return "norm scale" if term.tag == "norm scale" else "scale"
    if term.kind == "sum" and operand in term.operands:
        return {"bias": "bias", "shift": "norm shift"}.get(term.tag, "offset")
    if term.kind == "concat":
        return "token"
    return "other"


def find_sites(flow: Flow) -> Sites:
    """Return where every parameter of a data flow meets data.

    Args:
        flow: the data flow of one forward pass.
    """
    uses: dict[str, list[Use]] = {}
    at: dict[int, list[Site]] = {}
    counts: Counter[str] = Counter()
    for position, term in enumerate(flow.terms):
        if not term.data:
            continue
        for operand in dict.fromkeys((*term.operands, *term.gates)):
            if flow.terms[operand].data or not flow.terms[operand].parametric:
                continue
            for leaf, chain in _leaves(flow, operand):
                name = flow.capture.parameters[flow.terms[leaf].node]
                how = _how(flow, position, operand, leaf, chain)
                layout = _layout(flow, term.layouts[1], operand, leaf, chain) if how == "weight" else None
                activation = _activation(flow, position) if how == "weight" else ""
                uses.setdefault(name, []).append(Use(name, how, position, layout, activation))
                if how in ("weight", "table", "recurrent"):
                    module = flow.module(position) or flow.capture.model
                    counts[module] += 1
                    at.setdefault(position, []).append(
                        Site(
                            name=module if counts[module] == 1 else f"{module}#{counts[module]}",
                            operator=operator_name(flow.nodes[term.node].target),
                            module=flow.module(position),
                            step=flow.step(position),
                            parameter=name,
                            layout=layout,
                            shape=flow.terms[leaf].shape or (),
                        )
                    )
    return Sites({p: tuple(s) for p, s in at.items()}, {n: tuple(u) for n, u in uses.items()})
