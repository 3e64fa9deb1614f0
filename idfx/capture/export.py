"""Model → captured graph by torch.export: on request, and if this version of torch does not support recording.

The graph is that of `torch.export.export(strict=False)` in its functional form: each in-place write is a separate
operator. It takes several times as long as recording, and rejects models whose Python depends on values.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
from torch import nn

from idfx.capture.graph import assemble, attribute_name, describe, mirrored
from idfx.capture.inputs import names_of_tensors
from idfx.capture.isolation import undisturbed
from idfx.core.errors import CaptureError, shortened
from idfx.core.records import FACTS, Example, GraphFacts, NodeFacts


def trace_export(model: nn.Module, example: Example) -> torch.fx.GraphModule:
    """Return the graph that torch.export makes of a model.

    Args:
        model: without wrappers.
        example: its inputs.

    Raises:
        CaptureError: torch.export rejects the model, or keeps a part of it as a separate graph.
    """
    args, kwargs = example.args, dict(example.kwargs)
    with undisturbed(model):
        try:
            program = torch.export.export(model, tuple(args), kwargs, strict=False).run_decompositions({})
        except Exception as error:
            raise CaptureError(
                f"{type(model).__name__}: torch.export rejects it ({shortened(error)}); expected a forward whose path "
                "does not depend on values. Use the other tracer, or give other inputs."
            ) from error
    return _Translation(program, model, names_of_tensors(model, args, kwargs)).result()


class _Translation:
    """Copies an exported graph into the form of a captured one: tensors of the model become `get_attr` nodes."""

    def __init__(self, program: torch.export.ExportedProgram, model: nn.Module, inputs: list[str]) -> None:
        self._program, self._model = program, model
        self._graph = torch.fx.Graph()
        self._nodes: dict[torch.fx.Node, torch.fx.Node] = {}
        self._names = iter(inputs)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers = dict(model.named_buffers(remove_duplicate=False))
        self._kinds = dict.fromkeys(parameters, "parameter") | dict.fromkeys(buffers, "buffer")
        self._tensors = {attribute_name(name): tensor for name, tensor in {**parameters, **buffers}.items()}
        self._step = 0

    def result(self) -> torch.fx.GraphModule:
        leaves = {spec.arg.name: spec.target for spec in self._program.graph_signature.input_specs if spec.target}
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, leaves.get(node.name))
            elif node.op == "call_function":
                self._call(node)
            elif node.op != "output":
                raise CaptureError(
                    f"{type(self._model).__name__}: torch.export keeps {node.target} as a separate graph; expected "
                    "only operators. Use the other tracer."
                )
        self._output()
        facts = GraphFacts(self._step, "export", False)
        return assemble(self._graph, self._tensors, type(self._model).__name__, facts)

    def _placeholder(self, node: torch.fx.Node, name: str | None) -> None:
        value = node.meta.get("val")
        if name is not None:
            if name not in self._kinds:  # a tensor that the forward took from elsewhere
                self._tensors[name] = self._program.constants[name]
            facts = NodeFacts(self._kinds.get(name, "constant"), name=name if name in self._kinds else "")
            facts = facts._replace(zero=facts.kind != "parameter" and _is_zero(self._tensors[attribute_name(name)]))
            made = self._graph.create_node("get_attr", attribute_name(name))
        elif isinstance(value, torch.Tensor):
            made, facts = self._graph.create_node("placeholder", next(self._names)), NodeFacts("input")
        else:  # a number or a flag, which the graph has taken in
            return
        self._nodes[node] = made
        describe(made, facts, value, {})

    def _call(self, node: torch.fx.Node) -> None:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self._nodes.__getitem__)
        if node.target is operator.getitem:
            step = self._nodes[node.all_input_nodes[0]].meta[FACTS].step
        else:
            step, self._step = self._step, self._step + 1
        made = self._graph.create_node("call_function", node.target, args, kwargs)
        self._nodes[node] = made
        describe(made, NodeFacts("operator", step), node.meta.get("val"), _stack(node))

    def _output(self) -> None:
        """What the forward itself returned, in its own containers, without what it wrote into its buffers."""
        signature, output = self._program.graph_signature, self._program.graph.output_node()
        own = {spec.arg.name for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT" and spec.arg}
        returned = [item for item in output.args[0] if not isinstance(item, torch.fx.Node) or item.name in own]
        spec = self._program.call_spec.out_spec
        marked = [_Marker(self._nodes[item]) if isinstance(item, torch.fx.Node) else item for item in returned]
        value = spec.unflatten(marked) if spec is not None and spec.num_leaves == len(marked) else marked
        self._graph.output(mirrored(value, lambda marker: marker.node, _Marker))


class _Marker:
    """Stands for a tensor while the containers of an output are put together again."""

    def __init__(self, node: torch.fx.Node) -> None:
        self.node = node


def _stack(node: torch.fx.Node) -> Mapping[str, tuple[str, str]]:
    """The modules of an exported node by path: torch.export has them by a name of its own."""
    entries: Any = (node.meta.get("nn_module_stack") or {}).values()
    return {
        path: (path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
        for path, kind in entries
    }


def _is_zero(tensor: torch.Tensor) -> bool:
    return not tensor.is_meta and not bool(tensor.any())
