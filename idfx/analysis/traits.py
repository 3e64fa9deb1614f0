"""Traits of weights: attention, gates, the two halves of an MLP, each with its evidence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from idfx.analysis.attention import attention_parts, sites_before
from idfx.analysis.dataflow import Dataflow, divides
from idfx.analysis.paths import Paths
from idfx.core.records import Layout
from idfx.ops.kinds import Kind, Length
from idfx.ops.semantics import operator_name

Traits = dict[str, str]

_RANKING = frozenset({"aten.topk", "aten.sort", "aten.argmax"})
_FURTHEST = 64  # terms between the two weights of an MLP; as a rule it is a handful


def read_traits(flow: Dataflow, paths: Paths) -> Mapping[int, Traits]:
    """Return the traits of the weight sites, by term, that follow from their surroundings.

    Args:
        flow, paths: from the analysis of the graph.
    """
    found: dict[int, Traits] = {}
    for site, attention in attention_parts(flow).items():
        found.setdefault(site, {}).update(attention)
    for site in _gates(flow, paths):
        if not found.get(site, {}).keys() & {"query", "key"}:
            found.setdefault(site, {})["gate"] = "its output, after a nonlinear function, multiplies another value"
    for site in _ranked(flow):
        if "gate" in found.get(site, {}):
            found[site]["router"] = "its outputs are ranked, and the largest say which of several values count"
    for wide, narrow in _hidden_layers(flow):
        if {wide, narrow} <= paths.signal and not found.get(wide, {}).keys() & {"query", "key", "value"}:
            behind, before = (flow.module(site) or flow.capture.model for site in (narrow, wide))
            found.setdefault(wide, {})["expansion"] = f"after a nonlinear function, {behind} narrows what it widens"
            found.setdefault(narrow, {})["contraction"] = f"it narrows what {before} widens"
    for position, term in enumerate(flow.terms):
        if term.kind == "contract" and term.data and position not in paths.signal:
            steers = "its output only gates other values"
            found.setdefault(position, {})["gating"] = steers
    return found


def layout_traits(layout: Layout | None, slices: int | None, shape: tuple[int, ...]) -> Traits:
    """Return the traits that a weight's own shape gives it.

    Args:
        layout: of the weight.
        slices: the axis along which each slice of it is divided by its own norm, if it is.
        shape: of the parameter.

    Example:
        >>> layout_traits(Layout(tap_axes=(2,), groups=4), None, (4, 1, 3))
        {'depthwise': '4 groups: each channel has its own kernel'}
    """
    if layout is None:
        return {}
    traits: Traits = {}
    rows, columns = layout.matrix(shape)
    if layout.groups > 1:
        single = layout.inputs(shape) == (1 if layout.grouped == "out" else layout.groups)
        name = "depthwise" if single else "grouped"
        what = "each channel has its own kernel" if single else "each sees its own channels"
        traits[name] = f"{layout.groups} groups: {what}"
    if slices is not None and slices not in layout.out_axes:
        traits["normalised"] = f"each slice along axis {slices} is divided by its own norm, which must not be 0"
    if layout.parts > 1:
        traits["stacked"] = f"{layout.parts} stacked matrices, used one by one"
    count = math.prod(shape[axis] for axis in layout.batch_axes)
    if count > 1:
        traits["experts"] = f"{count} matrices, one for each index of axes {list(layout.batch_axes)}"
    if layout.groups * layout.parts == 1 and rows != columns:
        traits["tall" if rows > columns else "wide"] = f"its matrix is {rows} × {columns}"
    return traits


def _gates(flow: Dataflow, paths: Paths) -> Iterator[int]:
    """The weight sites of the factor of a product that cannot be zero or is less direct than the other factor."""
    for position, term in enumerate(flow.terms):
        operands = flow.sources[position]
        if term.kind != "product" or term.tag == "attention" or len(operands) != 2 or divides(flow, position):
            continue
        if not paths.reaches_output(position):
            continue
        open_, bent = [not paths.zeroable[operand] for operand in operands], [False, False]
        if open_[0] == open_[1]:
            bent = [_bent(flow, paths, operand) for operand in operands]
        for factors in (open_, bent):
            if factors[0] != factors[1]:
                gate, value = operands[factors.index(True)], operands[factors.index(False)]
                others = set(sites_before(flow, value))
                sites = list(sites_before(flow, _behind_own_gate(flow, gate)))
                if not others.issuperset(sites) or flow.terms[gate].shape != _origin(flow, gate):
                    yield from sites


def _ranked(flow: Dataflow) -> Iterator[int]:
    """The weight sites whose outputs are ranked, as those of the router of a mixture of experts."""
    for position, term in enumerate(flow.terms):
        node = flow.nodes[term.node]
        if term.data and node.op == "call_function" and operator_name(node.target) in _RANKING:
            yield from sites_before(flow, position)


def _origin(flow: Dataflow, position: int) -> tuple[int, ...] | None:
    """The shape of the output of the last weight before a term, if there is only one path to it."""
    for _ in range(_FURTHEST):
        sources = flow.sources[position]
        if flow.terms[position].kind in ("contract", "sum") or len(sources) != 1:
            break
        position = sources[0]
    return flow.terms[position].shape


def _behind_own_gate(flow: Dataflow, position: int) -> int:
    """The value x that a product x · f(x) is a function of, such as a GELU in its parts; any other term itself."""
    own = _gated_by_itself(flow, position)
    return position if own is None else own


def _gated_by_itself(flow: Dataflow, position: int) -> int | None:
    sources = flow.sources[position]
    product = flow.terms[position].kind == "product" and len(sources) > 1
    return flow.degrees.origin(sources) if product else None


def _bent(flow: Dataflow, paths: Paths, position: int) -> bool:
    """Whether a value has gone through a nonlinear function since its last weight."""
    for _ in range(_FURTHEST):
        sources = flow.sources[position]
        if flow.terms[position].kind == "contract" or len(sources) != 1:
            return _gated_by_itself(flow, position) is not None
        if paths.step(sources[0], position) >= Length.NONLINEAR:
            return True
        position = sources[0]
    return False


def _hidden_layers(flow: Dataflow) -> Iterator[tuple[int, int]]:
    """Pairs of weights with a nonlinear layer between them that is wider than what comes before and after."""
    for position in range(len(flow.terms)):
        first = _widths(flow, position)
        if first is None or first[1] <= first[0]:
            continue
        for second, bent in _next_weights(flow, position):
            widths = _widths(flow, second)
            if bent and widths is not None and widths[1] < widths[0]:
                yield position, second


def _widths(flow: Dataflow, position: int) -> tuple[int, int] | None:
    """D_in and D_out of a dense layer applied to each place alone, else None."""
    term = flow.terms[position]
    if term.kind != "contract" or not term.data or term.readings[1] is None:
        return None
    layout = term.readings[1].layout
    if layout.groups > 1 or not layout.in_axes:
        return None
    shape = flow.terms[term.operands[1]].shape
    if shape is None or any(shape[axis] > 1 for axis in layout.tap_axes):
        return None
    return layout.inputs(shape), layout.outputs(shape)


def _next_weights(flow: Dataflow, position: int) -> Iterator[tuple[int, bool]]:
    """The dense weights that read a value next, and whether there is a nonlinear function in between.

    Written by hand: a term counts twice, with and without a function on the path to it.
    """
    stack = [(user, False) for user in flow.users.get(position, ())]
    seen: set[tuple[int, bool]] = set()
    while stack and len(seen) < _FURTHEST:
        here = stack.pop()
        if here in seen:
            continue
        seen.add(here)
        term, bent = flow.terms[here[0]], here[1]
        depthwise = term.kind == "contract" and term.readings[1] is not None and term.readings[1].layout.groups > 1
        if term.kind == "contract" and not depthwise:
            yield here[0], bent
        elif depthwise or (_stays_hidden(term.kind) and _alone(flow, here[0])):
            bent = bent or term.kind.is_function or (term.kind == "product" and len(flow.sources[here[0]]) > 1)
            stack.extend((user, bent) for user in flow.users.get(here[0], ()))


def _stays_hidden(kind: Kind) -> bool:
    """Whether a hidden layer stays the same layer: its values are moved, scaled, normalised, shifted or gated."""
    return kind.keeps_axes or kind is Kind.MOVE


def _alone(flow: Dataflow, position: int) -> bool:
    """Whether a term leads a hidden layer on: a sum of two data tensors ends it, a gate or a divisor does not."""
    return flow.terms[position].kind in (Kind.PRODUCT, Kind.NORM) or len(flow.sources[position]) == 1


def together(parts: Sequence[Traits]) -> Traits:
    """Return the traits of all the sites of one weight, each once; it steers if it does at every one.

    Example:
        >>> together([{"query": "a"}, {"query": "b", "key": "c"}])
        {'query': 'a', 'key': 'c'}
    """
    merged: Traits = {}
    for part in parts:
        for name, evidence in part.items():
            if name != "gating" or all(name in other for other in parts):
                merged.setdefault(name, evidence)
    return merged
