"""Two inputs that give the same features → the operator at which their difference ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import networkx as nx
import torch
import torch.fx
from torch import Tensor, nn

from idfx.core.errors import AuditError, PeerError
from idfx.core.records import FACTS, Example, Structure
from idfx.measuring.replay import Replay
from idfx.ops.semantics import operator_name
from idfx.sharding.together import together, whole


class Loss(NamedTuple):
    """Where the difference ends: an operator, its module, and the parameter of zeros that it reads, if it does."""

    operator: str
    module: str
    zeros: str | None

    def __str__(self) -> str:
        place = (
            f"{self.operator} in module {self.module!r}" if self.module else f"{self.operator} in the model's forward"
        )
        return f"{place}, whose {self.zeros} is 0" if self.zeros is not None else place


def lost_at(model: nn.Module, structure: Structure, other: Example, step: int | None) -> Loss | None:
    """Return where the difference between the captured example and another ends, before a call or the output.

    Both run through the captured graph. From the call backwards, through values that are equal in both runs, the first
    operator whose inputs differ is the one; None if there is none, or if the graph cannot be run.

    Args:
        model: initialised.
        structure: of the model.
        other: an example of the same form.
        step: of the call whose result is the same in both runs; None for the output.
    """
    capture = structure.capture
    try:
        with together(model.parameters()):
            first, second = (_fingerprints(model, structure, example) for example in (capture.example, other))
    except (AuditError, PeerError):
        return None
    differ = {node for node, value in first.items() if value != second.get(node)}
    calls = (n for n in capture.graph.nodes if n.op == "call_function" and capture.steps.get(n.name) == step)
    ends = [*calls] if step is not None else [capture.graph.output_node()]
    alike: nx.DiGraph[torch.fx.Node] = nx.DiGraph()
    alike.add_nodes_from(node for node in capture.graph.nodes if node not in differ)
    alike.add_edges_from((source, node) for node in alike for source in node.all_input_nodes if source not in differ)
    before = set(ends).union(*(nx.ancestors(alike, end) for end in ends if end in alike))
    for node in reversed([*capture.graph.nodes]):
        if node in before and node.op == "call_function" and not differ.isdisjoint(node.all_input_nodes):
            return Loss(
                operator_name(node.target), capture.modules.get(node.name, ""), _zeros(model, structure, node, other)
            )
    return None


def _fingerprints(
    model: nn.Module, structure: Structure, example: Example, moved: Mapping[str, Tensor] | None = None
) -> dict[torch.fx.Node, float]:
    """A number for each value of a run, which changes if entries change or move."""
    found: dict[torch.fx.Node, float] = {}

    def after(node: torch.fx.Node, value: Any) -> Any:
        if isinstance(value, Tensor):
            found[node] = fingerprint(value)
        return value

    replay = Replay(model, structure.capture)
    replay.run(example, after, moved=moved)
    inputs = structure.capture.graph.find_nodes(op="placeholder")
    return found | {node: fingerprint(value) for node, value in zip(inputs, replay.inputs, strict=False)}


def fingerprint(tensor: Tensor) -> float:
    """Return a sum with weights from 1 to 2 along the entries, which changes if features change or move."""
    flat = torch.view_as_real(tensor).flatten() if tensor.is_complex() else tensor.detach().flatten()
    return float(flat.double() @ torch.linspace(1, 2, flat.numel(), dtype=torch.float64, device=flat.device))


def _zeros(model: nn.Module, structure: Structure, node: torch.fx.Node, other: Example) -> str | None:
    """The trainable parameter of zeros among the operands of a node with which, once it moves, the results differ."""
    own = dict(model.named_parameters(remove_duplicate=False))
    for source in node.all_input_nodes:
        while source.op == "call_function" and len(source.all_input_nodes) == 1:  # a transposed or reshaped weight
            source = source.all_input_nodes[0]
        name = structure.first_names.get(source.meta[FACTS].name) if source.op == "get_attr" else None
        parameter = own.get(name) if name is not None else None
        if name is None or parameter is None or not parameter.requires_grad:
            continue
        full = whole(parameter, name)
        if not bool(full.any()):
            moved = {name: torch.linspace(0.5, 1.5, full.numel()).reshape(full.shape).to(full)}
            runs = (_fingerprints(model, structure, one, moved) for one in (structure.capture.example, other))
            if len({run[node] for run in runs}) > 1:
                return name
    return None
