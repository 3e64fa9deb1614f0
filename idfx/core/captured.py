"""What a capture is: a model's parameters, the example it was run with, and its operators as a graph."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    import torch.fx


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a model, under its first name; `aliases` are the other names of the same tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool = True
    aliases: tuple[str, ...] = ()


def first_names(parameters: Mapping[str, ParameterInfo]) -> dict[str, str]:
    """Return the first name of each parameter, by every name that it has.

    Example:
        >>> first_names({"embed.weight": ParameterInfo("embed.weight", (2, 2), "float32", aliases=("head.weight",))})
        {'embed.weight': 'embed.weight', 'head.weight': 'embed.weight'}
    """
    return {name: info.name for info in parameters.values() for name in (info.name, *info.aliases)}


def not_writable_reason(info: ParameterInfo) -> str:
    """Return the reason why a parameter is never written; "" if it may be written.

    Example:
        >>> not_writable_reason(ParameterInfo("w", (2,), "int8"))
        'its dtype is int8, which idfx does not fill'
    """
    if not info.requires_grad:
        return "it is frozen (requires_grad is False)"
    if info.dtype not in ("float64", "float32", "float16", "bfloat16"):
        return f"its dtype is {info.dtype}, which idfx does not fill"
    return "it has no entries" if 0 in info.shape else ""


@dataclass(frozen=True)
class Example:
    """The example inputs that a model is run with."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


FACTS = "idfx"  # the key of a node's `meta` under which its NodeFacts lie


class NodeFacts(NamedTuple):
    """What idfx needs to know about a node of a captured graph, in addition to the metadata of torch.fx.

    `kind` is "input", "parameter", "buffer", "constant" (a tensor that the forward took from elsewhere) or "operator".
    `step` is the number of the operator call in one forward pass, -1 where there is none. `name` is that of the
    parameter or buffer in the model. `zero`: a buffer or constant that is zero throughout.
    """

    kind: str
    step: int = -1
    name: str = ""
    zero: bool = False


class GraphFacts(NamedTuple):
    """What idfx needs to know of a captured graph as a whole, under `graph_module.meta["idfx"]`.

    `calls` is the number of operator calls in one forward pass. `how` says what was run: "meta" or "real" tensors, or
    "export" for the graph of torch.export. `grad` says whether gradients were on, which a forward that differentiates
    needs.
    """

    calls: int
    how: str
    grad: bool


@dataclass(frozen=True)
class Capture:
    """A model as a torch.fx.GraphModule of ATen operators.

    The tensors of the example are the graph's placeholders, in the order of the flattened example; parameters, buffers
    and other tensors that the forward used are `get_attr` nodes. Each node has `meta["val"]`,
    `meta["nn_module_stack"]` and, under `meta["idfx"]`, its `NodeFacts`; the mappings of this record are read from
    them. The module shares its parameters and buffers with the model.
    """

    model: str
    graph_module: torch.fx.GraphModule = field(repr=False, compare=False)
    info: Mapping[str, ParameterInfo] = field(repr=False)
    example: Example = field(repr=False, compare=False)

    @property
    def calls(self) -> int:
        """The number of operator calls in one forward pass."""
        return self._whole.calls

    @property
    def how(self) -> str:
        """What was run: "meta" or "real" tensors, or "export"."""
        return self._whole.how

    @property
    def tracer(self) -> str:
        """The name of the tracer that made the graph."""
        return "export" if self.how == "export" else "record"

    @property
    def grad(self) -> bool:
        """Whether gradients were on."""
        return self._whole.grad

    @property
    def _whole(self) -> GraphFacts:
        facts: GraphFacts = self.graph_module.meta[FACTS]
        return facts

    @property
    def graph(self) -> torch.fx.Graph:
        """The graph of the module."""
        return self.graph_module.graph

    @functools.cached_property
    def _facts(self) -> Mapping[str, NodeFacts]:
        return {node.name: node.meta[FACTS] for node in self.graph.nodes if FACTS in node.meta}

    @functools.cached_property
    def parameters(self) -> Mapping[str, str]:
        """By node, the parameter that it reads."""
        return {node: facts.name for node, facts in self._facts.items() if facts.kind == "parameter"}

    @functools.cached_property
    def zeros(self) -> frozenset[str]:
        """The nodes of buffers and constants that are zero throughout."""
        return frozenset(node for node, facts in self._facts.items() if facts.zero)

    @functools.cached_property
    def constants(self) -> Mapping[str, torch.Tensor]:
        """By node, the tensor that the forward took from elsewhere, where its values are known."""
        nodes = (node for node in self.graph.nodes if node.op == "get_attr" and node.meta[FACTS].kind == "constant")
        module = self.graph_module
        held = dict((*module.named_buffers(remove_duplicate=False), *module.named_parameters(remove_duplicate=False)))
        found = {node.name: held[str(node.target)] for node in nodes}
        return {node: tensor for node, tensor in found.items() if not tensor.is_meta}

    @functools.cached_property
    def out_of_sight(self) -> bool:
        """Whether the forward reads a tensor that comes from outside torch's operators and whose values are unknown."""
        leaves = (node.name for node in self.graph.nodes if node.op == "get_attr")
        return any(self._facts[name].kind == "constant" and name not in self.constants for name in leaves)

    @functools.cached_property
    def steps(self) -> Mapping[str, int]:
        """By node, the number of its operator call in one forward pass; -1 for a node that is no call."""
        return {node: facts.step for node, facts in self._facts.items()}

    @functools.cached_property
    def modules(self) -> Mapping[str, str]:
        """By node, the path of the innermost module in whose forward it stands."""
        stacks = ((node.name, node.meta.get("nn_module_stack")) for node in self.graph.nodes)
        return {node: next(reversed(stack.values()))[0] if stack else "" for node, stack in stacks}

    @functools.cached_property
    def _tensors(self) -> Mapping[str, torch.Tensor]:
        values = ((node.name, node.meta.get("val")) for node in self.graph.nodes)
        return {node: value for node, value in values if hasattr(value, "dtype")}

    @functools.cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """By node, the shape of its value, if that is a tensor."""
        return {node: tuple(value.shape) for node, value in self._tensors.items()}

    @functools.cached_property
    def dtypes(self) -> Mapping[str, str]:
        """By node, the dtype of its value, if that is a tensor: "float32"."""
        return {node: str(value.dtype)[6:] for node, value in self._tensors.items()}
