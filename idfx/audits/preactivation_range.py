"""The range of the values before an activation, for inputs of mean square 1: the centre and spread of each unit.

A weight without bias gives 0 ± the length of its row, and a normalisation 0 ± 1. Added values shift the centre, factors
scale both, and moves preserve them. Everything else is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor

from idfx.analysis.dataflow import divides
from idfx.analysis.terms import DataflowNode
from idfx.audits.folding import LARGEST, Folding
from idfx.audits.subject import AuditContext
from idfx.fills.folding import matrices_of
from idfx.ops.semantics import operator_name

_CHANNELS_SECOND = ("batch_norm", "group_norm", "instance_norm")


@dataclass(frozen=True)
class Range:
    """`centre` and `spread` (a standard deviation) of each unit, to be broadcast to the value's shape.

    `added` are the parameters and buffers that shift the centre, each with its largest entry; `weight` is the nearest
    weight or normalisation.
    """

    centre: Any
    spread: Any
    added: tuple[tuple[str, float], ...] = ()
    weight: str = ""


class Reach:
    """Computes the ranges of the values of a data flow, each once.

    Args:
        subject: of the audit.
    """

    def __init__(self, subject: AuditContext) -> None:
        self._subject, self._flow = subject, subject.flow
        self._folding = Folding(subject)
        self._known: dict[int, Range | None] = {}

    def of(self, position: int) -> Range | None:
        """Return the range of a term's value, or None if it is unknown."""
        if position not in self._known:
            self._known[position] = None
            self._known[position] = self._read(position, self._flow.terms[position])
        return self._known[position]

    def _read(self, position: int, term: DataflowNode) -> Range | None:
        if not term.data or term.shape is None:
            return None
        if term.kind == "norm" or (term.kind == "scale" and term.eps is not None):
            return Range(torch.zeros(()), torch.ones(()))
        if term.kind == "contract":
            return self._contract(term)
        if term.kind == "product" and divides(self._flow, position):
            return Range(torch.zeros(()), torch.ones(()))
        if term.kind == "scale" and term.factor is not None and (found := self.of(term.operands[0])):
            return Range(found.centre * term.factor, found.spread * abs(term.factor), found.added, found.weight)
        reader = {"sum": self._sum, "product": self._product, "move": self._move}.get(term.kind)
        return reader(position, term) if reader is not None else None

    def _contract(self, term: DataflowNode) -> Range | None:
        """0 ± the length of the row of each output."""
        read, node = term.readings[1], self._flow.nodes[self._flow.terms[term.operands[1]].node]
        if read is None or term.shape is None or len(read.axes) != 1 or read.layout.batch_axes:
            return None
        weight = self._folding.value(node)
        if weight is None or not weight.is_floating_point():
            return None
        lengths = torch.linalg.vector_norm(matrices_of(weight.double(), read.layout), dim=2).reshape(-1)
        if lengths.numel() != term.shape[read.axes[0]]:
            return None
        name = (*self._folding.leaves(node), "")[0]
        return Range(torch.zeros(()), _along(lengths, read.axes[0], len(term.shape)), (), name)

    def _fixed(self, term: DataflowNode, operand: int) -> Tensor | None:
        """The value of a fixed operand, with the axes of the result."""
        node = self._flow.nodes[self._flow.terms[operand].node]
        value = self._folding.value(node) if self._flow.positions[node.name] == operand else None
        if value is None or term.shape is None or not value.is_floating_point():
            return None
        value, name = value.double(), operator_name(self._flow.nodes[term.node].target)
        if value.dim() == 1 and any(word in name for word in _CHANNELS_SECOND):
            return _along(value, 1 - len(term.shape), len(term.shape))
        if value.dim() == 1 and term.tag == "bias":
            reads = (self._flow.terms[o].readings[1] for o in term.operands if self._flow.terms[o].kind == "contract")
            axes = [read.axes[0] for read in reads if read is not None]
            return _along(value, axes[0], len(term.shape)) if axes else None
        return value

    def _sum(self, position: int, term: DataflowNode) -> Range | None:
        centre, square = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        added: list[tuple[str, float]] = []
        weight = ""
        for operand in term.operands:
            if self._flow.terms[operand].data:
                found = self.of(operand)
                if found is None or not isinstance(found.centre, Tensor):
                    return None
                centre, square = centre + found.centre, square + found.spread.square()
                added, weight = [*added, *found.added], weight or found.weight
            else:
                value = self._fixed(term, operand)
                if value is None or not value.numel():
                    return None
                centre = centre + value
                names = self._folding.leaves(self._flow.nodes[self._flow.terms[operand].node])
                added += [(name, float(value.abs().max())) for name in names]
        return Range(centre, square.sqrt(), tuple(added), weight)

    def _product(self, position: int, term: DataflowNode) -> Range | None:
        data = [operand for operand in term.operands if self._flow.terms[operand].data]
        found = self.of(data[0]) if len(data) == 1 else None
        if found is None or not isinstance(found.centre, Tensor):
            return None
        centre, spread, weight = found.centre, found.spread, found.weight
        for operand in term.operands:
            if operand not in data:
                value = self._fixed(term, operand)
                if value is None:
                    return None
                centre, spread = centre * value, spread * value.abs()
                names = self._folding.leaves(self._flow.nodes[self._flow.terms[operand].node])
                weight = weight or (*names, "")[0]
        return Range(centre, spread, found.added, weight)

    def _move(self, position: int, term: DataflowNode) -> Range | None:
        """Apply the move to both centre and spread."""
        node, source = self._flow.nodes[term.node], self._flow.terms[term.operands[0]]
        found = self.of(term.operands[0])
        alone = len(node.all_input_nodes) == 1 and self._flow.positions[node.name] == position and not term.gates
        if found is None or not alone or torch.Size(source.shape or ()).numel() > LARGEST:
            return None
        shape = source.shape or ()

        def moved(value: Any) -> Any:
            whole = value.expand(shape) if isinstance(value, Tensor) else value
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda _: whole)
            assert callable(node.target)
            return node.target(*args, **kwargs)

        try:
            return Range(moved(found.centre), moved(found.spread), found.added, found.weight)
        except (RuntimeError, TypeError, IndexError):
            return None


def _along(values: Tensor, axis: int, dims: int) -> Tensor:
    """Return a vector along one axis, counted from the end, of a value with this number of axes."""
    shape = [1] * dims
    shape[axis] = values.numel()
    return values.double().reshape(shape)
