"""The captured graph as a torch.fx.GraphModule, and the metadata of its nodes.

Every node has the usual metadata of torch.fx: `meta["val"]`, a meta tensor of the value's shape, stride and dtype, and
`meta["nn_module_stack"]`, the modules in whose forward the operator was called, from the model inwards. What only idfx
needs is a `NodeFacts` under `meta["idfx"]`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx

from idfx.core.records import FACTS, GraphFacts, NodeFacts
from idfx.core.torch_private import lazy_graph_module


def overwritten(value: torch.Tensor, write: torch.Tensor) -> torch.Tensor:
    """Return `value`, part of whose memory the operator behind `write` has changed since it was made.

    A graph node of its own, so that the data flow through views and in-place operators is explicit.
    """
    return value


def describe(node: torch.fx.Node, facts: NodeFacts, value: Any, stack: Mapping[str, tuple[str, str]]) -> None:
    """Set the metadata of a node.

    Args:
        node: of the graph.
        facts: what idfx needs to know of it.
        value: what it computed, a tensor or a sequence with tensors; anything else has no `val`.
        stack: the running modules by path, each with its path and the full name of its class, the outermost first.
    """
    node.meta[FACTS] = facts
    node.meta["nn_module_stack"] = stack
    shown: Any = None
    if isinstance(value, torch.Tensor):
        shown = shape_of(value)
    elif isinstance(value, (list, tuple)):
        shown = tuple(shape_of(item) if isinstance(item, torch.Tensor) else item for item in value)
    if shown is not None:
        node.meta["val"] = shown
    if node.target is overwritten:
        node.meta["is_wrapped"] = True  # one call, also where the code of the module is traced again


def shape_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a meta tensor of the same shape, stride and dtype; None for one that has no such form."""
    try:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    except (RuntimeError, NotImplementedError, TypeError):
        pass
    try:  # a sparse tensor has no strides
        return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="meta")
    except (RuntimeError, NotImplementedError, TypeError):
        return None


def attribute_name(name: str) -> str:
    """Return the attribute of a GraphModule that holds a tensor of the model, by its name there.

    The same name, unless GraphModule itself has an attribute that its first part would hide.

    Example:
        >>> attribute_name("fc.weight"), attribute_name("graph.weight")
        ('fc.weight', 'model_graph.weight')
    """
    return f"model_{name}" if name.partition(".")[0] in _taken() else name


@functools.cache
def _taken() -> frozenset[str]:
    """The attributes that every GraphModule has."""
    return frozenset(dir(torch.fx.GraphModule({}, torch.fx.Graph())))


def assemble(
    graph: torch.fx.Graph, tensors: Mapping[str, torch.Tensor], name: str, facts: GraphFacts
) -> torch.fx.GraphModule:
    """Return a graph as a module that shares its parameters and buffers with the model.

    Args:
        graph: complete; its `get_attr` nodes name tensors.
        tensors: those tensors, by the target of the node.
        name: of the model's class.
        facts: what idfx needs to know of the graph as a whole.
    """
    wanted = {str(node.target): tensors[str(node.target)] for node in graph.nodes if node.op == "get_attr"}
    module = lazy_graph_module(wanted, graph, name)
    module.training = False
    module.meta[FACTS] = facts
    return module


def mirrored(
    value: Any, node: Callable[[Any], Any], tensor: type = torch.Tensor, _seen: frozenset[int] = frozenset()
) -> Any:
    """Return what a forward returned with nodes in place of tensors: tuples, lists and dicts, None for other leaves.

    A mapping and any object with tensors among its attributes become dicts.

    Args:
        value: what the forward returned.
        node: returns the node of a tensor.
        tensor: the class of what counts as one.
    """
    if isinstance(value, tensor):
        return node(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if id(value) in _seen:
        return None
    seen = _seen | {id(value)}
    if isinstance(value, Mapping):
        return {str(key): mirrored(item, node, tensor, seen) for key, item in value.items()}
    if isinstance(value, list):
        return [mirrored(item, node, tensor, seen) for item in value]
    if isinstance(value, (tuple, set, frozenset)):
        return tuple(mirrored(item, node, tensor, seen) for item in value)
    if isinstance(value, (type, bytes)):
        return None
    parts = {str(key): mirrored(item, node, tensor, seen) for key, item in getattr(value, "__dict__", {}).items()}
    held = {key: part for key, part in parts.items() if _holds_node(part)}
    return held or None


def _holds_node(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_node, value.values()))
    return any(map(_holds_node, value)) if isinstance(value, (list, tuple)) else isinstance(value, torch.fx.Node)


def flat(value: Any) -> Sequence[torch.Tensor]:
    """Return the tensors that a captured graph has returned, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in flat(part)]
