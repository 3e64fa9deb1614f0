"""Operator calls → torch.fx graph: one run of a forward, recorded call by call.

A tensor is identified by its location in memory. On the meta device the recorder also computes the values that a
forward reads, as long as they depend only on inputs and buffers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx

from idfx.capture.dispatch import FunctionCalls
from idfx.capture.graph import attribute_name, describe, mirrored, overwritten
from idfx.capture.interpreter import evaluate
from idfx.capture.module_path import ModulePath
from idfx.core.errors import out_of_memory
from idfx.core.records import FACTS, NodeFacts
from idfx.core.torch_private import memory, pytree, resolve_overload, without_modes
from idfx.ops.semantics import operator_name
from idfx.sharding.layout import is_sharded


def on_meta_device(value: Any) -> Any:
    """Return a value with its tensors on the meta device, one for each of them; a DTensor as the plain whole."""
    copies: dict[int, torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = (
                torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                if is_sharded(tensor)
                else torch.empty_like(tensor, device="meta")
            )
        return copies[id(tensor)]

    return pytree.tree_map_only(torch.Tensor, copy, value)


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of each argument that the operator writes to."""
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def viewing(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return the operator that makes a view, for one that turns its operand into that view: squeeze for squeeze_.

    Example:
        >>> given = (torch.ones(1), 0), {}
        >>> str(viewing(torch.ops.aten.squeeze_.dim, *given)), str(viewing(torch.ops.aten.relu_.default, *given))
        ('aten.squeeze.dim', 'aten.relu_.default')
    """
    if torch.Tag.inplace_view not in func.tags or func is torch.ops.aten.detach_.default:
        return func
    packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
    same = func if packet is None else resolve_overload(packet, tuple(args), kwargs)
    aliases = [result.alias_info for result in same._schema.returns]
    return same if all(alias is not None and not alias.is_write for alias in aliases) else func


def _writes(target: Any) -> bool:
    return hasattr(target, "_schema") and bool(_written(target))


_FAILURES = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)


def _as_in_half_precision(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result on meta tensors of an operator that takes their type on a device alone, as torch._grouped_mm float32.

    None if it does not run in bfloat16 either, or if its floating-point operands differ in type.
    """
    given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    kinds = {tensor.dtype for tensor in given if tensor.is_floating_point()}
    if len(kinds) != 1 or func._schema.is_mutable or not all(tensor.is_meta for tensor in given):
        return None
    (kind,) = kinds

    def to(tensor: torch.Tensor, old: torch.dtype, new: torch.dtype) -> torch.Tensor:
        return torch.empty_like(tensor, dtype=new) if tensor.dtype is old else tensor

    half = functools.partial(to, old=kind, new=torch.bfloat16)
    read = pytree.tree_map_only(torch.Tensor, half, (tuple(args), kwargs))
    try:
        result = func(*read[0], **read[1])
    except _FAILURES:
        return None
    return pytree.tree_map_only(torch.Tensor, functools.partial(to, old=torch.bfloat16, new=kind), result)


class Recorder:
    """Builds the graph call by call. A tensor is identified by its location in memory, which two objects may share.

    Every tensor is kept alive, so that no address is used twice. `values` has the real tensors of inputs and buffers by
    name if the run has none: a forward may read a number that depends only on these. `device` is the model's own; the
    graph has it in place of the meta device.
    """

    def __init__(
        self, path: ModulePath, values: Mapping[str, torch.Tensor] | None = None, device: torch.device | None = None
    ) -> None:
        self.graph = torch.fx.Graph()
        self.path = path
        self._real, self._device = values, device
        self._order: dict[torch.fx.Node, int] = {}
        self._computed: dict[torch.fx.Node, Any] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.calls = 0
        self._names: dict[int, tuple[torch.Tensor, str, bool]] = {}
        self._places: dict[Any, int] = {}
        self._values: dict[Any, tuple[torch.Tensor, torch.fx.Node, int]] = {}
        self._detached: dict[int, tuple[torch.Tensor, torch.fx.Node, int]] = {}
        self._writes: dict[int, list[tuple[torch.fx.Node, Any]]] = {}
        self.functions = FunctionCalls(self)

    def know(self, name: str, tensor: torch.Tensor, is_parameter: bool) -> None:
        self._names.setdefault(id(tensor), (tensor, name, is_parameter))
        self._places.setdefault(view_key(tensor), id(tensor))

    def placeholder(self, name: str, tensor: torch.Tensor) -> None:
        self._note(self._create("placeholder", name), tensor, NodeFacts("input"))

    def _create(self, op: str, target: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> torch.fx.Node:
        node = self.graph.create_node(op, target, args, kwargs or {})
        self._order[node] = len(self._order)
        return node

    def _computed_values(self, wanted: Sequence[torch.fx.Node]) -> dict[torch.fx.Node, Any] | None:
        """The values of some nodes and of their dependencies, None if one is a parameter or if they fail."""
        assert self._real is not None
        stack = list(wanted)
        ancestors: set[torch.fx.Node] = set()
        while stack:
            node = stack.pop()
            if node not in ancestors:
                if node.op == "get_attr" and node.target not in self.constants and node.target not in self._real:
                    return None
                ancestors.add(node)
                stack.extend(node.all_input_nodes)
        writes = any(node.op == "call_function" and _writes(node.target) for node in ancestors)
        ordered = sorted(ancestors, key=self._order.__getitem__)
        leaves = self._real
        device = next((tensor.device for tensor in leaves.values()), torch.device("cpu"))

        def leaf(node: torch.fx.Node) -> torch.Tensor:
            known = self.constants.get(str(node.target))
            return (leaves[str(node.target)] if known is None else known).clone()

        try:
            values = evaluate(ordered, leaf, device, None if writes else self._computed)
        except _FAILURES as error:
            if out_of_memory(error):
                raise
            return None
        if not writes:
            self._computed = values
        return values

    def _value(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operator that needs numbers, None if they depend on a parameter or are not available."""
        wanted: list[torch.fx.Node] = []
        torch.fx.node.map_arg((args, kwargs), wanted.append)
        values = self._computed_values(wanted)
        if values is None:
            return None
        read = torch.fx.node.map_arg((args, kwargs), values.__getitem__)
        try:
            with torch.no_grad():
                return on_meta_device(func(*read[0], **read[1]))
        except _FAILURES as error:
            if out_of_memory(error):
                raise
            return None

    def _masked(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of a selection by masks, whose size depends on their values; None if these are unknown."""
        if func._schema.name not in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index"):
            return None
        indices: list[Any] = []
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                indices.append(index)
                continue
            values = self._computed_values([self._node(index)])
            if values is None:
                return None
            indices.extend(on_meta_device(values[self._node(index)].nonzero(as_tuple=True)))
        return func(args[0], indices, *args[2:], **kwargs)

    def numbers(self, tensor: torch.Tensor) -> list[Any] | None:
        """The numbers in a meta tensor, for a forward that reads all of them at once."""
        if self._real is None:
            return None
        with without_modes():
            node = self._node(tensor)
            values = self._computed_values([node])
            return None if values is None else values[node].tolist()

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        step, self.calls = self.calls, self.calls + 1
        node_args = tuple(self._nodes(arg) for arg in args)
        node_kwargs = {key: self._nodes(arg) for key, arg in kwargs.items()}
        try:
            result = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            if self._real is None:
                raise
            result = self._masked(func, args, kwargs)
            if result is None:
                result = self._value(func, node_args, node_kwargs)
            if result is None:
                result = _as_in_half_precision(func, args, kwargs)
            if result is None:
                raise
        func = viewing(func, args, kwargs)
        node = self._create("call_function", func, node_args, node_kwargs)
        for position, name in _written(func):
            target = args[position] if position < len(args) else kwargs.get(name)
            for tensor in target if isinstance(target, (list, tuple)) else (target,):
                if isinstance(tensor, torch.Tensor):
                    self._write(tensor, node)
        before = self._values.get(view_key(result)) if operator_name(func) == "aten.detach" else None
        self._result(node, result, step)
        if before is not None:  # what is detached lies where it lay, but only the new object has lost its gradient
            self._detached[id(result)] = self._values[view_key(result)]
            self._values[view_key(result)] = before
        return result

    def size(self) -> int:
        """The bytes of all that the operators have made; none of it is freed before the run ends."""
        made = {memory(t): t for t, node, _ in self._values.values() if node.op == "call_function"}
        return sum(t.numel() * t.element_size() for t in made.values())

    def output(self, value: Any) -> None:
        """Record what the forward returned."""
        self.graph.output(mirrored(value, self._node))

    def _result(self, node: torch.fx.Node, result: Any, step: int) -> None:
        facts = NodeFacts("operator", step)
        if isinstance(result, torch.Tensor):
            self._note(node, result, facts)
            return
        describe(node, facts, result, self.path.stack)
        for index, part in enumerate(result if isinstance(result, (tuple, list)) else ()):
            if isinstance(part, torch.Tensor):
                self._note(self._create("call_function", operator.getitem, (node, index)), part, facts)

    def _note(self, node: torch.fx.Node, tensor: torch.Tensor, facts: NodeFacts) -> None:
        describe(node, facts, tensor, self.path.stack)
        self._values[view_key(tensor)] = (tensor, node, self._version(tensor))

    def _version(self, tensor: torch.Tensor) -> int:
        return len(self._writes[memory(tensor)]) if self._has_writes(tensor) else 0

    def _has_writes(self, tensor: torch.Tensor) -> bool:
        return bool(self._writes) and memory(tensor) in self._writes

    def _write(self, tensor: torch.Tensor, node: torch.fx.Node) -> None:
        self._nodes(tensor)
        extent = (tensor.shape, tensor.stride(), tensor.storage_offset())
        self._writes.setdefault(memory(tensor), []).append((node, extent))
        self._values[view_key(tensor)] = (tensor, node, self._version(tensor))

    def _nodes(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._node(value)
        if type(value) in (list, tuple):
            return type(value)(self._nodes(item) for item in value)
        if isinstance(value, torch.device) and value.type == "meta" and self._device is not None:
            return self._device
        return value

    def _node(self, tensor: torch.Tensor) -> torch.fx.Node:
        place = view_key(tensor)
        known = self._detached.get(id(tensor)) or self._values.get(place)
        if known is None:
            self._attribute(tensor)
            known = self._values[place]
        _, node, version = known
        if self._has_writes(tensor):
            writes = self._writes[memory(tensor)]
            extent = (tensor.shape, tensor.stride(), tensor.storage_offset())
            for write, written in writes[version:]:
                if written == extent:
                    node = write
                else:
                    node = self._create("call_function", overwritten, (node, write))
                    self._note(node, tensor, NodeFacts("operator", write.meta[FACTS].step))
            if id(tensor) in self._detached:
                self._detached[id(tensor)] = (tensor, node, len(writes))
            else:
                self._values[place] = (tensor, node, len(writes))
        return node

    def _attribute(self, tensor: torch.Tensor) -> None:
        """Make the node of a parameter, a buffer or a tensor that the forward took from elsewhere."""
        known = id(tensor) if id(tensor) in self._names else self._places.get(view_key(tensor))
        _, name, is_parameter = self._names[known] if known is not None else (tensor, "", False)
        target = attribute_name(name) if name else f"_constant{len(self.constants)}"
        node = self._create("get_attr", target)
        if not name:
            self.constants[target] = self._fixed(tensor)
        kind = "parameter" if is_parameter else "buffer" if name else "constant"
        self._note(node, tensor, NodeFacts(kind, name=name))

    def on_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        """A meta tensor for one with values, known under the same node."""
        with without_modes():
            copy = torch.empty_like(tensor, device="meta")
            self._values[view_key(copy)] = (copy, self._node(tensor), self._version(copy))
        return copy

    def _fixed(self, tensor: torch.Tensor) -> torch.Tensor:
        """A constant with its values, if the forward is making it from numbers."""
        numbers = self.functions.numbers
        if numbers is None or not tensor.is_meta or isinstance(numbers, torch.Tensor):
            return tensor
        return torch.tensor(numbers, dtype=tensor.dtype, device="cpu")


def view_key(tensor: torch.Tensor) -> Any:
    """The location of a tensor in memory, and its layout."""
    where = memory(tensor)
    if where == id(tensor):
        return where
    return where, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
