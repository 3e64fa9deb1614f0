"""A stored forward pass → the Jacobians between its values, through products with vectors.

Jᵀu is a backward pass. So is J v: Jᵀu is linear in u, and its derivative with respect to u is J. One forward pass is
made and stored, and each product is a pass of the autograd engine, without Python in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from idfx.analysis.dataflow import Dataflow
from idfx.core.errors import AuditError
from idfx.core.records import Join, Structure
from idfx.measuring.derivatives import gradients, joined, split
from idfx.measuring.operators import LinearMap
from idfx.measuring.replay import Replay

_Value = Tensor | GradientEdge


class Linearisation:
    """One stored forward pass of a model, from which derivatives are computed.

    The inputs are the model's floating-point inputs and, for integers, the rows that they look up in learned tables;
    the outputs are all floating-point outputs.

    Args:
        model: with its values.
        structure: of this model; derivatives are taken at the example of its capture.
        flow: of this structure.
        statistics: of the batch normalisations, by the names of their running statistics; held fixed.
        seed: of the random numbers of the forward.
        out_of_time: ends the pass when it returns True.

    Raises:
        AuditError: the graph cannot be run, or no output depends on an input through floating-point numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        flow: Dataflow,
        statistics: Mapping[str, Tensor],
        seed: int = 0,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> None:
        self._name = structure.model
        self._looked_up = {node for node in flow.nodes if _is_lookup(flow, node)}
        steps = structure.capture.steps
        nodes = {steps[node.name]: node.name for node in structure.capture.graph.nodes if node.op == "call_function"}
        self._ends = {join.name: nodes[join.step] for join in structure.joins}
        self._kept = {*self._ends.values(), *(join.fork_node for join in structure.joins)}
        self._edges: dict[str, tuple[GradientEdge, Tensor]] = {}
        self._tables: list[Tensor] = []
        run = Replay(model, structure.capture, seed, out_of_time)
        outputs = run.run(structure.capture.example, self._after, wanted="inputs", twice=True, buffers=statistics)
        placeholders = (node for node in structure.capture.graph.nodes if node.op == "placeholder")
        for node, leaf in zip(placeholders, run.inputs, strict=True):
            if leaf.requires_grad:
                self._edges[node.name] = (get_gradient_edge(leaf), leaf.detach())
        self._inputs = [*(leaf for leaf in run.inputs if leaf.requires_grad), *self._tables]
        self._outputs = [output for output in outputs if output.requires_grad]

    def _after(self, node: torch.fx.Node, result: Any) -> Any:
        value = result[0] if isinstance(result, (tuple, list)) and result else result
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return result
        if node.name in self._looked_up and value is result:
            leaf = value.detach().requires_grad_()
            self._tables.append(leaf)
            value = result = leaf.clone()
        if value.requires_grad and node.name in self._kept:
            self._edges[node.name] = (get_gradient_edge(value), torch.empty_like(value, device="meta"))
        return result

    def whole(self) -> LinearMap:
        """Return the Jacobian of all outputs with respect to all inputs.

        Raises:
            AuditError: no output depends on an input, or an operator has no second derivative.
        """
        if not self._inputs or not self._outputs:
            raise AuditError(
                f"{self._name}: no output depends on an input through floating-point numbers; expected one. Leave out "
                "the metric jacobian."
            )
        return self._map(self._inputs, self._inputs, self._outputs, self._outputs)

    def block(self, join: Join) -> LinearMap | None:
        """Return the Jacobian of a residual block, from its fork to its join; None if no gradient passes through it.

        Raises:
            AuditError: one of its operators has no second derivative.
        """
        end = self._ends[join.name]
        if end not in self._edges or join.fork_node not in self._edges:
            return None
        (source, before), (target, after) = self._edges[join.fork_node], self._edges[end]
        return self._map([source], [before], [target], [after])

    def _map(
        self, inputs: Sequence[_Value], before: Sequence[Tensor], outputs: Sequence[_Value], after: Sequence[Tensor]
    ) -> LinearMap:
        device = self._inputs[0].device
        seeds = [torch.zeros_like(value, device=device).requires_grad_() for value in after]
        differentiated = functools.partial(gradients, self._name, "jacobian", twice=True)
        back = differentiated(outputs, inputs, seeds, create_graph=True)
        known = [(number, value) for number, value in enumerate(back) if value is not None and value.requires_grad]

        def adjoint(vector: Tensor) -> Tensor:
            return joined(differentiated(outputs, inputs, split(vector, seeds)), before, device)

        def forward(vector: Tensor) -> Tensor:
            parts = split(vector, before)
            if not known:
                return torch.zeros(sum(value.numel() for value in after), dtype=vector.dtype, device=device)
            along = [parts[number] for number, _ in known]
            return joined(differentiated([value for _, value in known], seeds, along), seeds, device)

        rows, columns = (sum(value.numel() for value in values) for values in (after, before))
        dtype = torch.float64 if any(seed.dtype == torch.float64 for seed in seeds) else torch.float32
        return LinearMap(rows, columns, forward, adjoint, dtype, device)


def _is_lookup(flow: Dataflow, node: str) -> bool:
    """Whether a value consists of rows of a learned table selected by integer inputs."""
    term = flow.terms[flow.positions[node]] if node in flow.positions else None
    if term is None or not term.data or "float" not in flow.capture.dtypes.get(node, ""):
        return False
    if term.tag == "table":
        return True
    return term.kind == "move" and bool(term.operands) and not any(flow.terms[o].data for o in term.operands)
