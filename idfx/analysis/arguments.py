"""Where the call of a sum has its shortcut, so that a run can compare the two."""

from __future__ import annotations

from typing import NamedTuple

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.stacks import stacked


class Argument(NamedTuple):
    """The argument of a call that an operand of its sum is, or is made of; -1 for none.

    `part` is the axis and the indices of the operand in stacked values. `zeroed` is another argument: where that is 0,
    the call gives what it makes of the operand alone.
    """

    operand: int
    part: tuple[int, tuple[int, ...]] | None = None
    zeroed: int | None = None


def argument(flow: Dataflow, position: int, operand: int) -> Argument:
    """Return where the call of a sum has one of its operands.

    Args:
        flow: of the model.
        position: of the sum.
        operand: a term that it adds up.
    """
    terms = flow.terms
    node = flow.nodes[terms[position].node]
    parts = stacked(node, flow.capture.shapes)
    if parts is not None:
        indices = tuple(index for index, other in enumerate(terms[position].operands) if other == operand)
        return Argument(0, (parts.axis, indices))
    names = [getattr(given, "name", "") for given in node.args]
    places = {flow.positions[name]: names.index(name) for name in names if name in flow.positions}
    if operand in places:
        return Argument(places[operand])
    own = _given(flow, position, operand)
    others = [term for other in terms[position].operands if other != operand for term in _given(flow, position, other)]
    made = [places[term] for term in own if term in places]
    alone = [places[term] for term in others if term in places and term not in own]
    return Argument(made[0], zeroed=alone[0]) if made and alone else Argument(-1)


def _given(flow: Dataflow, position: int, operand: int) -> list[int]:
    """The terms that a call is given and of which it makes one of its operands, values before what multiplies them."""
    found, stack = [], [operand]
    while stack:
        here = stack.pop()
        if flow.terms[here].node == flow.terms[position].node:
            stack.extend(reversed(flow.terms[here].operands))
        else:
            found.append(here)
    return found
