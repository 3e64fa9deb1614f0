"""Where parameters meet data: weight sites with the layout of their matrix, and every other use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.entering import Entry, entries, how
from idfx.analysis.recurrence import read_parameter, read_places
from idfx.analysis.uses import How, RecurrentSlot, Use
from idfx.analysis.views import Matrix, follow, read_matrix
from idfx.core.records import WeightUse
from idfx.ops.kinds import Kind
from idfx.ops.semantics import operator_name

_BEFORE_ACTIVATION = frozenset({Kind.MOVE, Kind.SCALE, Kind.NORM, Kind.SUM, Kind.PRODUCT})


@dataclass(frozen=True)
class ParameterUses:
    """The weight sites by term, and the uses of each parameter."""

    at: Mapping[int, tuple[WeightUse, ...]]
    uses: Mapping[str, tuple[Use, ...]]

    def rows(self, parameter: str, term: int) -> tuple[int, int] | None:
        """Return the range of a weight's outputs that it gives at a term, None for all."""
        return next((use.rows for use in self.uses.get(parameter, ()) if use.term == term), None)


def find_sites(flow: Dataflow) -> ParameterUses:
    """Return where every parameter of a data flow meets data.

    Args:
        flow: the data flow of one forward pass.
    """
    uses: dict[str, list[Use]] = {}
    at: dict[int, list[WeightUse]] = {}
    counts: Counter[str] = Counter()
    for entry in entries(flow):
        use = _use(entry)
        uses.setdefault(use.parameter, []).append(use)
        if use.how in (How.WEIGHT, How.TABLE, How.RECURRENT):
            module = flow.module(entry.term) or flow.capture.model
            counts[module] += 1
            name = module if counts[module] == 1 else f"{module}#{counts[module]}"
            at.setdefault(entry.term, []).append(_site(entry, use, name))
    return ParameterUses({p: tuple(s) for p, s in at.items()}, {n: tuple(u) for n, u in uses.items()})


def _use(entry: Entry) -> Use:
    """What a parameter does where it enters the data."""
    flow, acts = entry.flow, how(entry)
    layout, rows, activation = None, None, ""
    places: tuple[RecurrentSlot, ...] = ()
    if acts is How.WEIGHT:
        matrix = _matrix(entry)
        layout, rows = (matrix.layout, matrix.rows) if matrix is not None else (None, None)
        activation = _activation(flow, entry.term)
    elif acts is How.RECURRENT:
        given = read_places(flow.nodes[entry.entered.node]).get(flow.terms[entry.operand].node, ())
        places, layout = read_parameter(flow, entry.leaf, entry.chain, given)
    axes = sum(size > 1 for size in entry.used)
    added = entry.added or 0.0 if acts in (How.NORM_SCALE, How.SCALE) else 0.0
    return Use(entry.parameter, acts, entry.term, layout, activation, rows, _slices(entry), axes, places, added)


def _site(entry: Entry, use: Use, name: str) -> WeightUse:
    flow = entry.flow
    return WeightUse(
        name=name,
        operator=operator_name(flow.nodes[entry.entered.node].target),
        module=flow.module(entry.term),
        step=flow.step(entry.term),
        parameter=use.parameter,
        layout=use.layout,
        shape=entry.own,
    )


def _matrix(entry: Entry) -> Matrix | None:
    """Follow the layout of a weight site from the operand that is contracted back to the parameter it is made of."""
    read, own = entry.entered.readings[1], entry.flow.terms[entry.leaf].shape
    if read is None or own is None:
        return None
    view = follow(entry.flow, entry.leaf, entry.chain)
    return None if view is None else read_matrix(view, own, read.layout)


def _slices(entry: Entry) -> int | None:
    """The axis along which a weight is normalised slice by slice, if it is."""
    norms = (entry.flow.terms[p] for p in entry.chain if entry.flow.terms[p].kind is Kind.NORM)
    return next((norm.axes[0] for norm in norms if norm.axes is not None), None)


def _activation(flow: Dataflow, position: int) -> str:
    """The nonlinear operator that the output of a weight runs into, past its bias and normalisation."""
    while len(flow.users.get(position, ())) == 1:
        position = flow.users[position][0]
        term = flow.terms[position]
        if term.kind.is_function:
            return operator_name(flow.nodes[term.node].target).removesuffix("_")
        if term.kind not in _BEFORE_ACTIVATION:
            break
    return ""
