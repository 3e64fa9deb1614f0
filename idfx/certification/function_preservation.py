"""Loaded weights × structure → how much the added blocks change the outputs.

Without the branches of added blocks, the rest is, judging by the weights, the checkpoint's model, provided that
everything in it was loaded and every tensor of the checkpoint was used. So both are run, and their outputs compared.
If tensors grew, the model without these branches is also compared with its code on the checkpoint's own tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import torch
import torch.fx
from torch import nn

from idfx.capture.interpreter import apply
from idfx.capture.wrappers import unwrap
from idfx.certification.certificate import read_again, run_once, shortcut_of
from idfx.certification.narrower import compare_narrower, old_tokens, tolerance, without_new
from idfx.certification.start import change
from idfx.core.errors import CertificateError
from idfx.core.records import FACTS, Growth, Join, Structure
from idfx.ops.semantics import operator_name
from idfx.planning.checkpoints import state_of
from idfx.planning.scalars import source_of
from idfx.planning.widening import NOTHING, Grown


class _OtherCallError(CertificateError):
    """The run makes different calls from the captured one."""


class _Without:
    """Runs a model without the branches of some joins: each join returns its shortcut."""

    def __init__(self, joins: Mapping[int, Join], expected: Mapping[int, str]) -> None:
        self._joins, self._expected, self.calls = joins, expected, 0

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        step, self.calls = self.calls, self.calls + 1
        join = self._joins.get(step)
        if join is None:
            return func(*args, **kwargs)
        if operator_name(func) != self._expected[step]:
            raise _OtherCallError
        shortcut = shortcut_of(join, func, args, kwargs)
        return func(*args, **kwargs).copy_(shortcut)


def growth(
    model: nn.Module,
    structure: Structure,
    closed: Collection[str],
    loaded: Collection[str],
    unplaced: Collection[str] = (),
    grown: Grown = NOTHING,
) -> Growth:
    """Return how a model relates to the model whose checkpoint was loaded into it.

    Args:
        model: initialised, on any device.
        structure: of this model.
        closed: the joins that start as their shortcut because their ends were initialised, not loaded.
        loaded: parameters and buffers that come from the checkpoint, under any of their names.
        unplaced: tensors of the checkpoint that the model does not take.
        grown: tensors of the checkpoint that were made to fit.
    """
    model = unwrap(model)
    joins = {join.step: join for join in structure.joins if join.name in closed and join.operand >= 0}
    blocks = tuple(join.name for join in joins.values())
    state = state_of(model)
    used = (name for name in _outside(structure, joins) if name in state)  # non-persistent buffers follow from the code
    fresh = tuple(dict.fromkeys(source_of(name) for name in used if source_of(name) not in loaded))
    altered = tuple(join.name for join in joins.values() if join.kind != "identity")
    found = Growth(blocks, fresh, None, tuple(unplaced), altered, grown.widened, grown.longer)
    if fresh or unplaced or altered:
        return found
    try:
        return _compared(model, structure, joins, found, grown)
    except _OtherCallError:  # values or a cache changed the path: read the one that this run takes
        again = read_again(model, structure)
        joins = {join.step: join for join in again.joins if join.name in closed and join.operand >= 0}
        try:
            return _compared(model, again, joins, found, grown)
        except _OtherCallError:
            return found


def growth_failures(model: nn.Module, found: Growth) -> list[str]:
    """Return why a model whose tensors grew is not known to compute what the checkpoint's model does.

    Args:
        model: with the grown tensors.
        found: from `growth`.
    """
    if not (found.widened or found.longer):
        return []
    subject = f"{(*found.widened, *found.longer)[0]} grew, but"
    for names, what in (
        (found.fresh, "is not loaded"),
        (found.unplaced, "of the checkpoint is missing or different in the model"),
        (found.altered, "is an added block whose shortcut is not an identity"),
    ):
        if names:
            return [f"{subject} {names[0]} {what}, so that the outputs cannot be compared with the checkpoint's model"]
    if found.preserved is None:
        why = found.place or "the outputs could not be compared"
        return [f"{subject} nothing shows that the function is preserved: {why}"]
    if found.preserved > tolerance(model):
        told = f"{found.preserved:.2g} of the largest, from {found.place} on"
        return [f"{subject} the outputs differ from those of the checkpoint's model by {told}"]
    return []


def _compared(model: nn.Module, structure: Structure, joins: Mapping[int, Join], found: Growth, grown: Grown) -> Growth:
    """The difference of the outputs from those without the branches of some joins, and from the checkpoint's model."""
    capture = structure.capture
    calls = (n for n in capture.graph.nodes if n.op == "call_function" and hasattr(n.target, "_schema"))
    names = {capture.steps[n.name]: operator_name(n.target) for n in calls}
    example = old_tokens(capture.example, grown)
    without = _Without(joins, names)
    before = run_once(model, capture, example, without.on_call)
    if without.calls != capture.calls:
        raise _OtherCallError
    whole = run_once(model, capture, example, apply)
    if not grown.before:
        return replace(found, difference=_difference(whole, before))
    narrow = compare_narrower(model, structure, grown, before, lambda: _Without(joins, names).on_call)
    kept = None if narrow.outputs is None else without_new(whole, narrow.outputs, grown.rows)
    difference = None if kept is None or narrow.outputs is None else _difference(kept, narrow.outputs)
    return replace(found, difference=difference, preserved=narrow.difference, place=narrow.place)


def _difference(whole: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> float | None:
    """The maximum of max|output − output before| / max|output before| over all outputs; None without finite outputs."""
    tensors = [tensor for tensor in (*whole, *before) if tensor.numel()]
    if not tensors or not all(bool(tensor.isfinite().all()) for tensor in tensors):
        return None
    return change(whole, before)


def _outside(structure: Structure, joins: Mapping[int, Join]) -> list[str]:
    """The parameters and buffers that reach the outputs without the branches of some joins."""
    capture = structure.capture
    graph: nx.DiGraph[torch.fx.Node] = nx.DiGraph()
    graph.add_nodes_from(capture.graph.nodes)
    for node in capture.graph.nodes:
        join = joins.get(capture.steps.get(node.name, -1)) if node.op == "call_function" else None
        graph.add_edges_from((kept, node) for kept in (_shortcut(node, join) if join else node.all_input_nodes))
    used = (node for node in nx.ancestors(graph, capture.graph.output_node()) if node.op == "get_attr")
    return sorted({node.meta[FACTS].name for node in used if node.name not in capture.constants})


def _shortcut(node: torch.fx.Node, join: Join) -> list[torch.fx.Node]:
    """The nodes of the shortcut of a join; a sum over stacked values is followed as a whole."""
    if join.zeroed is not None:
        return [one for at, one in enumerate(node.args) if at != join.zeroed and isinstance(one, torch.fx.Node)]
    operand = node.args[join.operand] if join.operand < len(node.args) else None
    return [operand] if isinstance(operand, torch.fx.Node) else list(node.all_input_nodes)
