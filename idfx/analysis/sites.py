"""Where parameters meet data: weight sites with the layout of their matrix, and every other use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from idfx.analysis.dataflow import Dataflow, divides
from idfx.analysis.recurrence import read_parameter, read_places
from idfx.analysis.uses import RecurrentSlot, Use
from idfx.analysis.views import Matrix, follow, read_matrix
from idfx.core.records import WeightUse
from idfx.ops.kinds import Kind
from idfx.ops.semantics import operator_name

_BEFORE_ACTIVATION = frozenset({Kind.MOVE, Kind.SCALE, Kind.NORM, Kind.SUM, Kind.PRODUCT})
_BEFORE_BIAS = frozenset({Kind.MOVE, Kind.SCALE, Kind.MIX, Kind.PRODUCT})


@dataclass(frozen=True)
class ParameterUses:
    """The weight sites by term, and the uses of each parameter."""

    at: Mapping[int, tuple[WeightUse, ...]]
    uses: Mapping[str, tuple[Use, ...]]

    def rows(self, parameter: str, term: int) -> tuple[int, int] | None:
        """Return the range of a weight's outputs that it gives at a term, None for all."""
        return next((use.rows for use in self.uses.get(parameter, ()) if use.term == term), None)


def _leaves(flow: Dataflow, position: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The parameters of an expression, each with the terms from the expression's value down to it."""
    stack: list[tuple[int, tuple[int, ...]]] = [(position, ())]
    while stack:
        top, chain = stack.pop()
        term = flow.terms[top]
        if term.kind == "parameter":
            yield top, chain
        elif term.parametric and not term.data:
            stack.extend((o, (*chain, top)) for o in reversed((*term.operands, *term.gates)))


def _matrix(flow: Dataflow, site: int, leaf: int, chain: tuple[int, ...]) -> Matrix | None:
    """Follow the layout of a weight site from the operand that is contracted back to the parameter it is made of."""
    read, own = flow.terms[site].readings[1], flow.terms[leaf].shape
    if read is None or own is None:
        return None
    view = follow(flow, leaf, chain)
    return None if view is None else read_matrix(view, own, read.layout)


def _activation(flow: Dataflow, position: int) -> str:
    """The nonlinear operator that the output of a weight runs into, past its bias and normalisation."""
    while len(flow.users.get(position, ())) == 1:
        position = flow.users[position][0]
        term = flow.terms[position]
        if term.kind.is_function:
            node = flow.nodes[term.node]
            return operator_name(node.target).removesuffix("_")
        if term.kind not in _BEFORE_ACTIVATION:
            break
    return ""


def _how(flow: Dataflow, position: int, operand: int, leaf: int, chain: tuple[int, ...]) -> str:
    term = flow.terms[position]
    own, used = flow.terms[leaf].shape or (), flow.terms[operand].shape or ()
    if any(_looks_up(flow, p) for p in chain):
        return "position"
    if term.kind == "contract":
        inside = [flow.terms[p].kind for p in chain]
        smaller = math.prod(own) < math.prod(used) and "concat" not in inside
        return "gain" if smaller and "product" in inside else "table" if term.tag == "table" else "weight"
    if term.kind == "recurrent":
        return "recurrent"
    if term.kind == "move" and operand in term.operands:
        return "table"  # only where it is looked up does data come in
    plain = all(flow.terms[p].kind == "move" for p in chain)
    if term.kind == "product" and operand in term.operands:
        return "norm scale" if term.tag == "norm scale" or (plain and _scales_norm(flow, position)) else "scale"
    if term.kind == "sum" and operand in term.operands:
        by_hand = "bias" if _is_bias(flow, position, operand, own) else "offset"
        by_hand = "norm shift" if plain and _shifts_norm(flow, position) else by_hand
        return {"bias": "bias", "shift": "norm shift"}.get(term.tag, by_hand)
    if term.kind == "concat":
        return "token"
    return "other"


def _data(flow: Dataflow, position: int) -> int | None:
    """The only data operand of a term, past moves and scales."""
    while True:
        sources = flow.sources[position]
        if len(sources) != 1:
            return None
        position = sources[0]
        if not flow.terms[position].kind.is_proportional:
            return position


def _scales_norm(flow: Dataflow, position: int) -> bool:
    """Whether a product multiplies what a normalisation gives, written by an operator or by hand."""
    before = _data(flow, position)
    return before is not None and (flow.terms[before].kind == "norm" or divides(flow, before))


def _shifts_norm(flow: Dataflow, position: int) -> bool:
    """Whether a sum adds to what a normalisation gives, scaled or not."""
    before = _data(flow, position)
    if before is not None and flow.terms[before].kind == "product" and len(flow.sources[before]) == 1:
        return _scales_norm(flow, before)
    return before is not None and (flow.terms[before].kind == "norm" or divides(flow, before))


def _is_bias(flow: Dataflow, position: int, operand: int, shape: tuple[int, ...]) -> bool:
    """Whether a sum adds one number to each output of a weight: what stands before it is one, at most mixed since."""
    before = [o for o in flow.terms[position].operands if o != operand and flow.terms[o].data]
    while len(before) == 1 and flow.terms[before[0]].kind in _BEFORE_BIAS:
        term = flow.terms[before[0]]
        if term.kind == "product" and (term.tag or len(flow.sources[before[0]]) != 2):
            return False
        values = [o for o in term.operands if flow.terms[o].data]
        before = values[-1:] if term.kind == "product" else values
    if len(before) != 1 or flow.terms[before[0]].kind != "contract" or flow.terms[before[0]].tag == "table":
        return False
    read = flow.terms[before[0]].readings[1]
    width = flow.terms[flow.terms[before[0]].operands[1]].shape
    if read is None or width is None or not 1 <= sum(size > 1 for size in shape) <= len(read.axes):
        return False
    return math.prod(shape) == read.layout.outputs(width)


def _slices(flow: Dataflow, chain: tuple[int, ...]) -> int | None:
    """The axis along which a weight is normalised slice by slice, if it is."""
    norms = (flow.terms[p] for p in chain if flow.terms[p].kind == "norm")
    return next((norm.axes[0] for norm in norms if norm.axes is not None), None)


def _looks_up(flow: Dataflow, position: int) -> bool:
    """Whether a term of an expression selects entries by another tensor."""
    term = flow.terms[position]
    return (term.kind == "move" and bool(term.gates)) or (term.kind == "product" and term.tag == "table")


def _values(flow: Dataflow, leaves: list[tuple[int, tuple[int, ...]]]) -> list[tuple[int, tuple[int, ...]]]:
    """The ways from a value down to its parameters, without those by which one only gives another way its size."""

    def steers(chain: tuple[int, ...]) -> bool:
        return any(flow.terms[position].kind == "gate" for position in chain)

    straight = {leaf for leaf, chain in leaves if not steers(chain)}
    return [(leaf, chain) for leaf, chain in leaves if leaf not in straight or not steers(chain)]


def _is_layer(flow: Dataflow, position: int) -> bool:
    """Whether a term of an expression applies a weight, named so by its operator, to a value that no input enters."""
    term = flow.terms[position]
    return term.kind == "product" and term.readings[0] is None and term.readings[1] is not None


def find_sites(flow: Dataflow) -> ParameterUses:
    """Return where every parameter of a data flow meets data.

    Args:
        flow: the data flow of one forward pass.
    """
    uses: dict[str, list[Use]] = {}
    at: dict[int, list[WeightUse]] = {}
    counts: Counter[str] = Counter()
    terms = flow.terms
    for position, term in enumerate(terms):
        if not term.data or not term.parametric:
            continue
        given = read_places(flow.nodes[term.node]) if term.kind == "recurrent" else {}
        for operand in dict.fromkeys(term.operands + term.gates):
            if terms[operand].data or not terms[operand].parametric:
                continue
            leaves: list[tuple[int, tuple[int, ...]]]
            if terms[operand].kind == "parameter":
                leaves, fixed = [(operand, ())], False
            else:
                leaves = _values(flow, list(_leaves(flow, operand)))
                fixed = any(_is_layer(flow, p) for _, chain in leaves for p in chain)
            for leaf, chain in leaves:
                name = flow.capture.parameters[terms[leaf].node]
                how = "fixed" if fixed else _how(flow, position, operand, leaf, chain)
                matrix = _matrix(flow, position, leaf, chain) if how == "weight" else None
                layout = matrix.layout if matrix is not None else None
                places: tuple[RecurrentSlot, ...] = ()
                if how == "recurrent":
                    places, layout = read_parameter(flow, leaf, chain, given.get(terms[operand].node, ()))
                activation = _activation(flow, position) if how == "weight" else ""
                rows = matrix.rows if matrix is not None else None
                axes = sum(size > 1 for size in terms[operand].shape or ())
                slices = _slices(flow, chain) if chain else None
                use = Use(name, how, position, layout, activation, rows, slices, axes, places)
                uses.setdefault(name, []).append(use)
                if how in ("weight", "table", "recurrent"):
                    module = flow.module(position) or flow.capture.model
                    counts[module] += 1
                    at.setdefault(position, []).append(
                        WeightUse(
                            name=module if counts[module] == 1 else f"{module}#{counts[module]}",
                            operator=operator_name(flow.nodes[term.node].target),
                            module=flow.module(position),
                            step=flow.step(position),
                            parameter=name,
                            layout=layout,
                            shape=terms[leaf].shape or (),
                        )
                    )
    return ParameterUses({p: tuple(s) for p, s in at.items()}, {n: tuple(u) for n, u in uses.items()})
