"""One term of the data flow: what it is made of, and what of the inputs and parameters is in it."""

from __future__ import annotations

from typing import NamedTuple

from idfx.ops.kinds import Kind
from idfx.ops.semantics import Reading

Readings = tuple[Reading | None, Reading | None]
NO_READINGS: Readings = (None, None)


class DataflowNode(NamedTuple):
    """One term of the data flow; its operands and gates are positions in `Dataflow.terms`, all before its own.

    `kind` says what it does and which rules it follows. `data`: its value depends on an input; `parametric`: on a
    parameter. `degree` is that of a function in its operand, if the operator tells (`idfx.analysis.degrees`).
    `readings`, of a contraction: how each operand is or would be read as a weight.
    """

    kind: Kind
    operands: tuple[int, ...]
    gates: tuple[int, ...]
    node: str
    shape: tuple[int, ...] | None
    data: bool
    parametric: bool
    tag: str = ""
    readings: Readings = NO_READINGS
    axes: tuple[int, ...] | None = None
    factor: float | None = None
    eps: float | None = None
    degree: float | None = None
