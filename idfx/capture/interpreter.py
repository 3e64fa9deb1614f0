"""Captured nodes → their values, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.fx

Leaf = Callable[[torch.fx.Node], Any]
OnCall = Callable[[Any, Sequence[Any], dict[str, Any]], Any]


class GraphInterpreter(torch.fx.Interpreter):
    """A torch.fx.Interpreter whose leaves are given node by node, and that can run a part of a graph.

    `run()` frees each value after its last use. A subclass may override `call`.

    Args:
        graph: captured.
        leaf: the value of a placeholder or `get_attr` node; operators may write to it.
        device: where an operator that was captured on the meta device makes its tensors.
    """

    def __init__(self, graph: torch.fx.Graph, leaf: Leaf, device: torch.device) -> None:
        super().__init__(torch.nn.Module(), graph=graph)
        self.extra_traceback = False
        self._leaf, self._device = leaf, device

    def run_node(self, n: torch.fx.Node) -> Any:
        """Return the value of a node, given those before it."""
        if n.op in ("placeholder", "get_attr"):
            return self._leaf(n)
        read = torch.fx.node.map_arg((n.args, n.kwargs), self.env.__getitem__)
        if n.op == "output":
            return read[0][0]
        args, kwargs = torch.fx.node.map_aggregate(read, self._placed)
        return self.call(n, args, kwargs)

    def call(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of a node's operator for these arguments."""
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _placed(self, value: Any) -> Any:
        return self._device if isinstance(value, torch.device) and value.type == "meta" else value


def apply(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operator."""
    return func(*args, **kwargs)


class WatchedInterpreter(GraphInterpreter):
    """Hands each operator call over, as `idfx.capture.running.run` does of a forward; `getitem` is no operator."""

    def __init__(self, graph: torch.fx.Graph, leaf: Leaf, device: torch.device, on_call: OnCall) -> None:
        super().__init__(graph, leaf, device)
        self._on_call = on_call

    def call(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not hasattr(node.target, "_schema"):
            return super().call(node, args, kwargs)
        return self._on_call(node.target, args, kwargs)


def evaluate(
    nodes: Iterable[torch.fx.Node], leaf: Leaf, device: torch.device, known: Mapping[torch.fx.Node, Any] | None = None
) -> dict[torch.fx.Node, Any]:
    """Return the values of some nodes of a graph, computed without gradients.

    Args:
        nodes: in the order of execution, with all that they depend on.
        leaf, device: as in `GraphInterpreter`.
        known: values from before.
    """
    nodes = list(nodes)
    values: dict[torch.fx.Node, Any] = dict(known or {})
    if not nodes:
        return values
    interpreter = _Partial(nodes[0].graph, leaf, device)
    interpreter.env = values
    with torch.no_grad():
        for node in nodes:
            if node not in values:
                values[node] = interpreter.run_node(node)
    return values


class _Partial(GraphInterpreter):
    """Keeps every value, and does not go through the whole graph to find the last use of each."""

    def __init__(self, graph: torch.fx.Graph, leaf: Leaf, device: torch.device) -> None:
        torch.fx.Interpreter.__init__(self, torch.nn.Module(), garbage_collect_values=False, graph=graph)
        self._leaf, self._device = leaf, device
