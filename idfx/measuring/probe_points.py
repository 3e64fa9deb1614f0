"""Structure → the points of a forward pass to observe: weight uses, activations, ends of residual blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.queries import StructureQueries
from idfx.analysis.terms import DataflowNode
from idfx.core.findings import PointKind
from idfx.core.records import Structure
from idfx.ops.semantics import operator_name

SOFTMAX = frozenset({"aten.softmax", "aten._softmax", "aten._safe_softmax"})
ATTENTION = "aten.scaled_dot_product_attention"


@dataclass(frozen=True)
class Place:
    """A value of the forward pass to observe; `axis` is the axis of its units, counted from the end.

    `kind`, `operator`, `parameter` and `block` are as in `ActivationStats`.
    """

    name: str
    kind: PointKind
    operator: str
    parameter: str
    block: str | None
    axis: int


def places(structure: Structure, network: StructureQueries) -> dict[str, Place]:
    """Return the points of a forward pass by node, in order of execution.

    Args:
        structure: of a model.
        network: of this structure.
    """
    flow = network.flow
    axes = _unit_axes(flow)
    sites = {site.step: site for site in reversed(structure.sites)}
    joins = {join.step: join for join in structure.joins}
    found: dict[str, Place] = {}
    origins: dict[
        int, tuple[str, str, str | None]
    ] = {}  # of each value: where it comes from, by which weight, its block
    for position, term in enumerate(flow.terms):
        origin = next((origins[source] for source in flow.sources[position] if source in origins), ("", "", None))
        origins[position] = origin
        node = flow.nodes[term.node]
        if node.op != "call_function" or flow.positions[node.name] != position:
            continue
        step, axis, operator = structure.capture.steps.get(node.name, -1), axes[position], operator_name(node.target)
        if step in joins:
            join = joins[step]
            found[node.name] = Place(join.name, "join", operator, "", join.parent, axis)
        elif step in sites and sites[step].layout is not None:
            site = sites[step]
            around = network.around(site.parameter)
            block = around.name if around is not None else None
            found[node.name] = Place(site.name, "weight", operator, site.parameter, block, axis)
        elif _is_activation(flow, position, node):
            name = structure.capture.modules.get(node.name, "") or origin[0] or node.name
            found[node.name] = Place(name, "activation", operator, origin[1], origin[2], axis)
            continue
        if node.name in found:
            place = found[node.name]
            origins[position] = (place.name, place.parameter, place.block)
    return found


def _is_activation(flow: Dataflow, position: int, node: torch.fx.Node) -> bool:
    """Whether a value is a function, elementwise or over a slice, of one value that carries data."""
    term = flow.terms[position]
    if operator_name(node.target) == ATTENTION:
        return True
    if not term.kind.is_function or term.tag or not term.data:
        return False
    if "float" not in flow.capture.dtypes.get(node.name, ""):
        return False
    if operator_name(node.target) in SOFTMAX:
        return True
    carriers = [p for p in (*term.operands, *term.gates) if flow.terms[p].data]
    same = len(carriers) == 1 and flow.terms[carriers[0]].shape == term.shape
    return same and "float" in flow.capture.dtypes.get(flow.terms[carriers[0]].node, "")


def _unit_axes(flow: Dataflow) -> list[int]:
    """The unit axis of each value, from the end: the axis of the outputs of the weight that it comes from."""
    axes: list[int] = []
    for position, term in enumerate(flow.terms):
        axes.append(_unit_axis(flow, position, term, axes))
    return axes


def _unit_axis(flow: Dataflow, position: int, term: DataflowNode, axes: list[int]) -> int:
    if term.kind == "contract":
        reading = next((reading for reading in term.readings if reading is not None), None)
        return reading.axes[0] if reading is not None and reading.axes else -1
    carrier = next((operand for operand in term.operands if flow.terms[operand].data), None)
    if carrier is None:
        return -1
    before, after = flow.terms[carrier].shape, term.shape
    axis = axes[carrier]
    if before is None or after is None or len(before) < -axis:
        return -1
    if term.kind.keeps_axes and len(before) == len(after):
        return axis
    node = flow.nodes[term.node]
    given: Any = node.args
    name, moved = operator_name(node.target), axis % len(before)
    if term.kind == "move" and name == "aten.permute":
        order: list[int] = [number % len(before) for number in given[1]]
        return order.index(moved) - len(before)
    if term.kind == "move" and name in ("aten.transpose", "aten.swapaxes"):
        one, other = (number % len(before) for number in given[1:3])
        new: int = {one: other, other: one}.get(moved, moved)
        return new - len(before)
    if len(before) == len(after) and before[axis] == after[axis]:
        return axis
    if name == "aten.flatten" and len(after) < len(before):
        return _flattened(before, after, axis)
    return -1


def _flattened(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int:
    """The new position of an axis if the axes before or after it were merged."""
    for candidate in (axis % len(before), axis % len(before) - (len(before) - len(after))):
        if 0 < candidate < len(after) and after[candidate] == before[axis]:
            return candidate - len(after)
    return -1
