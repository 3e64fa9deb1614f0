"""Captured nodes → their values: the graph run as it stands, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.fx


def compute(
    nodes: Iterable[torch.fx.Node],
    leaf: Callable[[torch.fx.Node], Any],
    device: torch.device,
    known: Mapping[torch.fx.Node, Any] | None = None,
    call: Callable[[torch.fx.Node, tuple[Any, ...], dict[str, Any]], Any] | None = None,
) -> dict[torch.fx.Node, Any]:
    """Return the value of each node.

    Args:
        nodes: in the order of execution, with all that they depend on.
        leaf: the value of a placeholder or `get_attr` node; operators may write to it.
        device: where an operator that was captured on the meta device makes its tensors.
        known: values from before.
        call: returns the value of an operator's node, given its arguments; by default its target is called without
            gradients.
    """
    call = call or _without_gradients
    values: dict[torch.fx.Node, Any] = dict(known or {})

    def placed(value: Any) -> Any:
        return device if isinstance(value, torch.device) and value.type == "meta" else value

    for node in nodes:
        if node in values:
            continue
        if node.op in ("placeholder", "get_attr"):
            values[node] = leaf(node)
            continue
        read = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        args, kwargs = torch.fx.node.map_aggregate(read, placed)
        if node.op == "output":
            values[node] = args[0]
        else:
            values[node] = call(node, args, kwargs)
    return values


def _without_gradients(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)
