"""Recurrent operators: the slot of each of their parameters, and the rows of each gate.

Both follow from the order of the operator's arguments, not from the names in a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.fx

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.traits import Traits, layout_traits
from idfx.analysis.uses import How, RecurrentSlot, Use
from idfx.analysis.views import follow, read_matrix, strides_of
from idfx.core.records import Layout, Role
from idfx.core.roles import RoleName
from idfx.ops.semantics import operator_name, tensors

# The rows of a weight, as torch stacks them; a layer without gates has only the candidate.
GATES = {
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
    "rnn_tanh": ("candidate",),
    "rnn_relu": ("candidate",),
}
_WEIGHTS = {
    "input weight": "it multiplies the input of",
    "hidden weight": "it multiplies the last state of",
    "projection": "it projects the output of the cells to the state of",
}
_BIASES = {
    "input bias": "it is added to the product with the input weight of",
    "hidden bias": "it is added to the product with the hidden weight of",
}
_READ = {"input": "it is the input of", "initial state": "it is the initial state of"}
_DOES = _WEIGHTS | _BIASES | _READ
_GATED = ("input weight", "hidden weight", "input bias", "hidden bias")


def read_places(node: torch.fx.Node) -> Mapping[str, tuple[RecurrentSlot, ...]]:
    """Return the places of the values that a recurrent operator is called with, by node; none for other operators.

    Args:
        node: the call.

    Source: the signatures of aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu and their cells. A list of parameters
        has for each layer and direction the input weight, the hidden weight, both biases, the projection.

    Example:
        >>> graph = torch.fx.Graph()
        >>> x, h, w, u = (graph.placeholder(name) for name in "xhwu")
        >>> call = graph.call_function(torch.ops.aten.gru_cell.default, (x, h, w, u))
        >>> [place.part for name in "xhwu" for place in read_places(call)[name]]
        ['input', 'initial state', 'input weight', 'hidden weight']
    """
    kind = operator_name(node.target).removeprefix("aten.").removesuffix("_cell")
    if kind not in GATES:
        return {}
    schema: Any = getattr(node.target, "_schema", None)
    given = {**dict(zip((a.name for a in schema.arguments), node.args, strict=False)), **node.kwargs}
    read = {"input": given.get("input", given.get("data")), "initial state": given["hx"]}
    found = [
        (value, RecurrentSlot(part, (), "a recurrent layer"))
        for part, values in read.items()
        for value in tensors(values)
    ]
    if "params" in given:
        found += _flat(given, GATES[kind])
    else:
        values = (given.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh"))
        each = (RecurrentSlot(part, GATES[kind], "a cell") for part in _GATED)
        found += [(value, place) for value, place in zip(values, each, strict=True) if value is not None]
    places: dict[str, tuple[RecurrentSlot, ...]] = {}
    for value, place in found:
        places[value.name] = (*places.get(value.name, ()), place)
    return places


def _flat(given: Mapping[str, Any], gates: tuple[str, ...]) -> Iterator[tuple[Any, RecurrentSlot]]:
    """The slots of a list of parameters, layer by layer and direction by direction; none if it is not such a list."""
    params, directions = given["params"], 2 if given["bidirectional"] else 1
    parts = [*(_GATED if given["has_biases"] else _GATED[:2]), "projection"]
    each, rest = divmod(len(params), given["num_layers"] * directions)
    if rest or each not in (len(parts) - 1, len(parts)):
        return
    for number, value in enumerate(params):
        run, slot = divmod(number, each)
        where = f"layer {run // directions}" + (" backwards" if run % directions else "")
        yield value, RecurrentSlot(parts[slot], gates if parts[slot] in _GATED else (), where)


def read_parameter(
    flow: Dataflow, leaf: int, chain: tuple[int, ...], places: tuple[RecurrentSlot, ...]
) -> tuple[tuple[RecurrentSlot, ...], Layout | None]:
    """Return the places of a parameter and how its matrix is read; no places where it is used in part or not as it is.

    Args:
        flow: the data flow.
        leaf: the parameter.
        chain: the terms from the operator's argument down to the parameter.
        places: of the operator's arguments.
    """
    own, parts = flow.terms[leaf].shape, {place.part for place in places}
    if parts <= _READ.keys():
        return places, None
    moved = all(flow.terms[position].kind == "move" for position in chain)
    view = follow(flow, leaf, chain) if moved and own is not None else None
    if view is None or own is None:
        return (), None
    if parts <= _BIASES.keys():
        return (places if (view.sizes, view.strides) == (own, strides_of(own)) else ()), None
    matrix = read_matrix(view, own, Layout(parts=max(len(places[0].gates), 1)))
    return (places, matrix.layout) if matrix is not None and matrix.rows is None else ((), None)


def recurrent_role(uses: Sequence[Use], shape: tuple[int, ...], sites: tuple[str, ...], traits: Traits) -> Role:
    """Return the role of a parameter of a recurrent layer: its place and gates, if all its uses agree on them.

    Args:
        uses: of the parameter, some of them by recurrent layers.
        shape: of the parameter.
        sites: where it is used.
        traits: that it has beside.
    """
    others = sorted({use.how for use in uses} - {How.RECURRENT})
    places = list(dict.fromkeys(place for use in uses for place in use.places))
    layouts = {use.layout for use in uses}
    evidence = ""
    if others:
        evidence = f"it belongs to a recurrent layer; it is also used as {', '.join(others)}"
    elif len(places) > 1 or len(layouts) > 1:
        evidence = f"it has several slots in recurrent layers: {', '.join(place.part for place in places)}"
    elif not places or not all(use.places for use in uses):
        evidence = "it belongs to a recurrent layer, but is not passed to it whole and unchanged"
    if evidence:
        return Role(RoleName.RECURRENT, evidence, sites=sites, traits=traits)
    (place,), (layout,) = places, layouts
    gates = _gates(place, shape if layout is None else (layout.outputs(shape),))
    where = ", ".join(dict.fromkeys(found.where for use in uses for found in use.places))
    own: Traits = {place.part: f"{_DOES[place.part]} {where}"}
    if gates:
        own["gates"] = ", ".join(f"rows {start} to {stop - 1} {name}" for name, (start, stop) in gates.items())
    own |= layout_traits(layout, None, shape)
    return Role(
        RoleName.RECURRENT, f"it is the {place.part} of a recurrent layer", layout, None, sites, own, gates=gates
    )


def _gates(place: RecurrentSlot, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """The rows of each gate, of a parameter whose first axis counts them."""
    height = shape[0] // len(place.gates) if place.gates else 0
    return {name: (at * height, (at + 1) * height) for at, name in enumerate(place.gates)}
