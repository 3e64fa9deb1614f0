"""The ranges of the gates of torch's recurrent layers, for inputs and states of mean square 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from idfx.analysis.recurrence import read_places
from idfx.audits.preactivation_range import Range
from idfx.audits.subject import AuditContext

_PARTS = ("input weight", "hidden weight", "input bias", "hidden bias")


def recurrent_ranges(subject: AuditContext) -> Iterator[tuple[str, Range, Callable[[Tensor], Tensor]]]:
    """Yield each gate of each layer and direction: its name, the range before its function, and the function.

    Args:
        subject: of the audit.
    """
    flow = subject.flow
    for node in {term.node: None for term in flow.terms if term.kind == "recurrent"}:
        layers: dict[str, dict[str, str]] = {}
        gates: tuple[str, ...] = ()
        for name, places in read_places(flow.nodes[node]).items():
            for place in places:
                if place.part in _PARTS and name in flow.capture.parameters:
                    parameter = subject.first_name(flow.capture.parameters[name])
                    layers.setdefault(place.where, {})[place.part] = parameter
                    gates = place.gates or gates
        rectified = "relu" in str(flow.nodes[node].target)
        for parts in layers.values():
            if gates and all(part in parts for part in _PARTS) and all(map(subject.sound, parts.values())):
                yield from _gates(subject, parts, gates, rectified)


def _gates(
    subject: AuditContext, parts: dict[str, str], gates: tuple[str, ...], rectified: bool
) -> Iterator[tuple[str, Range, Callable[[Tensor], Tensor]]]:
    weights = [subject.tensors[parts[part]].double() for part in _PARTS[:2]]
    biases = [subject.tensors[parts[part]].double() for part in _PARTS[2:]]
    square = sum(weight.square().sum(1) for weight in weights)
    assert isinstance(square, Tensor)
    height = square.shape[0] // len(gates)
    for number, gate in enumerate(gates):
        rows = slice(number * height, (number + 1) * height)
        added = [(parts[part], float(bias[rows].abs().max())) for part, bias in zip(_PARTS[2:], biases, strict=True)]
        centre = biases[0][rows] + biases[1][rows]
        function = torch.sigmoid if gate != "candidate" else torch.relu if rectified else torch.tanh
        yield f"{gate} gate", Range(centre, square[rows].sqrt(), tuple(added), parts["input weight"]), function
