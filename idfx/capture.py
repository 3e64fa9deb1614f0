"""Model → torch.fx graph of ATen operators, by running its forward once.

The run takes meta tensors, which cost neither memory nor arithmetic, and falls back to the real ones where the
model's Python looks at values. The graph follows the path that the example takes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from idfx.errors import CaptureError, ForwardError
from idfx.interpreter import compute
from idfx.records import Capture, Example, ParameterInfo
from idfx.running import FunctionCalls, ModulePath, run, unwrap
from idfx.sources import out_of_memory


def overwritten(value: torch.Tensor, write: torch.Tensor) -> torch.Tensor:
    """Return `value`, part of whose memory the operator behind `write` has changed since it was made.

    A graph node of its own, so that the data flow through views and in-place operators is explicit.
    """
    return value


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of each argument that the operator writes to."""
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _writes(target: Any) -> bool:
    return hasattr(target, "_schema") and bool(_written(target))


_FAILURES = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)


class _Recorder:
    """Builds the graph call by call. A tensor is known by its place in memory, which two objects may share.

    Every tensor is held on to, so that no place is used twice. `values` has the real tensors of inputs and buffers
    by name where the run has none: a forward may ask for a number that depends on these alone.
    """

    def __init__(self, path: ModulePath, values: Mapping[str, torch.Tensor] | None = None) -> None:
        self.graph = torch.fx.Graph()
        self.path = path
        self._real = values
        self._order: dict[torch.fx.Node, int] = {}
        self._computed: dict[torch.fx.Node, Any] = {}
        self.parameters: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.modules: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.steps: dict[str, int] = {}
        self.calls = 0
        self._names: dict[int, tuple[torch.Tensor, str, bool]] = {}
        self._places: dict[Any, int] = {}
        self._values: dict[Any, tuple[torch.Tensor, torch.fx.Node, int]] = {}
        self._writes: dict[int, list[tuple[torch.fx.Node, Any]]] = {}
        self.functions = FunctionCalls(self)
        self.hides: dict[str, None] = {}

    def know(self, name: str, tensor: torch.Tensor, is_parameter: bool) -> None:
        self._names.setdefault(id(tensor), (tensor, name, is_parameter))
        self._places.setdefault(_place(tensor), id(tensor))

    def placeholder(self, name: str, tensor: torch.Tensor) -> None:
        self._note(self._create("placeholder", name), tensor, -1)

    def _create(self, op: str, target: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> torch.fx.Node:
        node = self.graph.create_node(op, target, args, kwargs or {})
        self._order[node] = len(self._order)
        return node

    def _computed_values(self, wanted: Sequence[torch.fx.Node]) -> dict[torch.fx.Node, Any] | None:
        """The values of some nodes and of what they depend on, None if a parameter is among it or they fail."""
        assert self._real is not None
        stack = list(wanted)
        ancestors: set[torch.fx.Node] = set()
        while stack:
            node = stack.pop()
            if node not in ancestors:
                if node.op == "get_attr" and node.name not in self.constants and node.target not in self._real:
                    return None
                ancestors.add(node)
                stack.extend(node.all_input_nodes)
        writes = any(node.op == "call_function" and _writes(node.target) for node in ancestors)
        ordered = sorted(ancestors, key=self._order.__getitem__)
        leaves = self._real
        device = next((tensor.device for tensor in leaves.values()), torch.device("cpu"))

        def leaf(node: torch.fx.Node) -> torch.Tensor:
            known = self.constants.get(node.name)
            return (leaves[str(node.target)] if known is None else known).clone()

        try:
            values = compute(ordered, leaf, device, None if writes else self._computed)
        except _FAILURES as error:
            if out_of_memory(error):
                raise
            return None
        if not writes:
            self._computed = values
        return values

    def _value(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator returns that needs numbers, None if they depend on a parameter or are not to be had."""
        wanted: list[torch.fx.Node] = []
        torch.fx.node.map_arg((args, kwargs), wanted.append)
        values = self._computed_values(wanted)
        if values is None:
            return None
        read = torch.fx.node.map_arg((args, kwargs), values.__getitem__)
        try:
            with torch.no_grad():
                return _on_meta(func(*read[0], **read[1]))
        except _FAILURES as error:
            if out_of_memory(error):
                raise
            return None

    def _masked(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of a selection by masks, whose number of entries their values tell; None if they do not."""
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
            indices.extend(_on_meta(values[self._node(index)].nonzero(as_tuple=True)))
        return func(args[0], indices, *args[2:], **kwargs)

    def numbers(self, tensor: torch.Tensor) -> list[Any] | None:
        """The numbers in a meta tensor, for a forward that asks for all of them at once."""
        if self._real is None:
            return None
        with _disable_current_modes():
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
                raise
        node = self._create("call_function", func, node_args, node_kwargs)
        for position, name in _written(func):
            target = args[position] if position < len(args) else kwargs.get(name)
            for tensor in target if isinstance(target, (list, tuple)) else (target,):
                if isinstance(tensor, torch.Tensor):
                    self._write(tensor, node)
        self._result(node, result, step)
        return result

    def output(self, tensors: Sequence[torch.Tensor]) -> None:
        self.graph.output(tuple(self._nodes(tensor) for tensor in tensors))

    def _result(self, node: torch.fx.Node, result: Any, step: int) -> None:
        if isinstance(result, torch.Tensor):
            self._note(node, result, step)
        elif isinstance(result, (tuple, list)):
            self.modules[node.name], self.steps[node.name] = self.path.current, step
            for index, part in enumerate(result):
                if isinstance(part, torch.Tensor):
                    item = self._create("call_function", operator.getitem, (node, index))
                    self._note(item, part, step)
        else:
            self.modules[node.name], self.steps[node.name] = self.path.current, step

    def _note(self, node: torch.fx.Node, tensor: torch.Tensor, step: int) -> None:
        name = node.name
        self.modules[name], self.steps[name] = self.path.current, step
        self.shapes[name], self.dtypes[name] = tuple(tensor.shape), str(tensor.dtype)[6:]
        self._values[_place(tensor)] = (tensor, node, self._version(tensor))

    def _version(self, tensor: torch.Tensor) -> int:
        return len(self._writes[_memory(tensor)]) if self._has_writes(tensor) else 0

    def _has_writes(self, tensor: torch.Tensor) -> bool:
        return bool(self._writes) and _memory(tensor) in self._writes

    def _write(self, tensor: torch.Tensor, node: torch.fx.Node) -> None:
        self._nodes(tensor)
        extent = (tensor.shape, tensor.stride(), tensor.storage_offset())
        self._writes.setdefault(_memory(tensor), []).append((node, extent))
        self._values[_place(tensor)] = (tensor, node, self._version(tensor))

    def _nodes(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._node(value)
        if type(value) in (list, tuple):
            return type(value)(self._nodes(item) for item in value)
        return value

    def _node(self, tensor: torch.Tensor) -> torch.fx.Node:
        place = _place(tensor)
        known = self._values.get(place)
        if known is None:
            self._attribute(tensor)
            known = self._values[place]
        _, node, version = known
        if self._has_writes(tensor):
            writes = self._writes[_memory(tensor)]
            extent = (tensor.shape, tensor.stride(), tensor.storage_offset())
            for write, written in writes[version:]:
                if written == extent:
                    node = write
                else:
                    node = self._create("call_function", overwritten, (node, write))
                    self._note(node, tensor, self.steps[write.name])
            self._values[_place(tensor)] = (tensor, node, len(writes))
        return node

    def _attribute(self, tensor: torch.Tensor) -> None:
        """Make the node of a parameter, a buffer or a tensor that the forward took from elsewhere."""
        known = id(tensor) if id(tensor) in self._names else self._places.get(_place(tensor))
        _, name, is_parameter = self._names[known] if known is not None else (tensor, "", False)
        node = self._create("get_attr", name or f"_constant{len(self.constants)}")
        if is_parameter:
            self.parameters[node.name] = name
        elif not name:
            self.constants[node.name] = self._fixed(tensor)
        self._note(node, tensor, -1)

    def on_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        """A meta tensor for one with values, known under the same node."""
        with _disable_current_modes():
            copy = torch.empty_like(tensor, device="meta")
        self._values[_place(copy)] = (copy, self._node(tensor), self._version(copy))
        return copy

    def hidden(self, values: Any) -> None:
        """Note where a parameter is used and no operator is seen."""
        tensors = (value for value in pytree.tree_leaves(values) if isinstance(value, torch.Tensor))
        if any(self._names.get(id(tensor), (tensor, "", False))[2] for tensor in tensors):
            self.hides.setdefault(self.path.current)

    def _fixed(self, tensor: torch.Tensor) -> torch.Tensor:
        """A constant with its values, if the forward is making it from numbers."""
        numbers = self.functions.numbers
        if numbers is None or not tensor.is_meta or isinstance(numbers, torch.Tensor):
            return tensor
        return torch.tensor(numbers, dtype=tensor.dtype, device="cpu")


def _memory(tensor: torch.Tensor) -> int:
    """Which memory a tensor lies in; its identity, if it has none of its own (sparse, under vmap)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def _place(tensor: torch.Tensor) -> Any:
    """Where in memory a tensor lies and how."""
    memory = _memory(tensor)
    if memory == id(tensor):
        return memory
    return memory, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def tensors_in(value: Any, _seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Yield the tensors in a model's input or output: containers, dataclasses, and objects with attributes."""
    seen = _seen if _seen is not None else set()
    if isinstance(value, torch.Tensor):
        yield value
        return
    if value is None or isinstance(value, (str, bytes, int, float, bool, type)) or id(value) in seen:
        return
    seen.add(id(value))
    children: Any
    if isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        children = value
    else:
        children = getattr(value, "__dict__", {}).values()
    for child in children:
        yield from tensors_in(child, seen)


def parameter_info(model: nn.Module) -> dict[str, ParameterInfo]:
    """Return the parameters of a model by first name, each with its other names."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        tensors[id(parameter)] = parameter
    return {
        aliases[0]: ParameterInfo(
            name=aliases[0],
            shape=tuple(tensors[key].shape),
            dtype=str(tensors[key].dtype)[6:],
            requires_grad=tensors[key].requires_grad,
            aliases=tuple(aliases[1:]),
        )
        for key, aliases in names.items()
    }


def _on_meta(value: Any) -> Any:
    copies: dict[int, torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return copies.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))

    return pytree.tree_map_only(torch.Tensor, copy, value)


def _values(buffers: Mapping[str, torch.Tensor], example: Example) -> dict[str, torch.Tensor]:
    """The tensors that have values while a model runs on the meta device, by the targets of their nodes."""
    inputs = tensors_in((example.args, dict(example.kwargs)))
    named = {**buffers, **{f"input_{index}": tensor for index, tensor in enumerate(inputs)}}
    return {name: tensor for name, tensor in named.items() if not tensor.is_meta}


def _running_means(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            yield f"{path}.running_mean".lstrip(".")


def record(model: nn.Module, example: Example, how: str, grad: bool = False) -> Capture:
    """Return the graph of one forward pass on "meta" or on "real" tensors; `capture` chooses."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    tensors: dict[str, torch.Tensor] = {**parameters, **buffers}
    args, kwargs = example.args, dict(example.kwargs)
    if how == "meta":
        tensors, args, kwargs = (_on_meta(value) for value in (tensors, args, kwargs))
    else:  # a forward may write to its buffers
        tensors = {**parameters, **{name: buffer.clone() for name, buffer in buffers.items()}}
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    path = ModulePath(model)
    recorder = _Recorder(path, _values(buffers, example) if how == "meta" else None)
    for name, tensor in tensors.items():
        recorder.know(name, tensor, name in parameters)
    for index, tensor in enumerate(tensors_in((args, kwargs))):
        recorder.placeholder(f"input_{index}", tensor)
    with recorder.functions:
        result = run(model, tensors, args, kwargs, recorder.on_call, path, grad)
    outputs = list(tensors_in(result))
    if not outputs:
        raise CaptureError(
            f"{type(model).__name__}: forward returned no tensor ({type(result).__name__}); expected at least one. "
            "Wrap the model so that its forward returns the tensors that a loss would see."
        )
    recorder.output(outputs)
    zeros = [name for name, buffer in buffers.items() if not buffer.is_meta and not buffer.any()]
    zeros += [name for name in _running_means(model) if buffers[name].is_meta]  # no values: as they start out
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    constants = {
        name: tensor for name, tensor in recorder.constants.items() if not tensor.is_meta and not wrapped(tensor)
    }
    return Capture(
        model=type(model).__name__,
        zeros=frozenset(zeros) | {name for name, tensor in constants.items() if not tensor.any()},
        graph=recorder.graph,
        info=parameter_info(model),
        parameters=recorder.parameters,
        constants=constants,
        modules=recorder.modules,
        shapes=recorder.shapes,
        dtypes=recorder.dtypes,
        steps=recorder.steps,
        calls=recorder.calls,
        hidden=tuple(recorder.hides),
        how=how,
        grad=grad,
        example=example,
    )


def capture(model: nn.Module, example: Example, before_real: Callable[[], object] | None = None) -> Capture:
    """Return the graph of the ATen operators that the model's forward calls on the example.

    Args:
        model: any module; wrappers (DataParallel, torch.compile) are looked through.
        example: its inputs; tensors of any shape and device that the forward accepts.
        before_real: called before real tensors are used, to give a model its values, say.

    Raises:
        ForwardError: the forward raised on the example, on meta tensors and on real ones.
        ResourceError: memory ran out in the forward.
        CaptureError: the forward returns no tensor, or needs values while the model has none (meta device); the model
            is a TorchScript module, or its forward calls an operator for control flow (torch.cond).

    Example:
        >>> found = capture(torch.nn.Linear(3, 2), Example((torch.ones(1, 3),)))
        >>> [node.op for node in found.graph.nodes]
        ['placeholder', 'get_attr', 'get_attr', 'call_function', 'output']
        >>> found.how, sorted(found.parameters.values())
        ('meta', ['bias', 'weight'])
    """
    model = unwrap(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"{type(model).__name__}: it is a TorchScript module, whose operators run outside of Python; expected a "
            "torch.nn.Module as Python runs it. Give the module from which it was scripted or traced."
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise CaptureError(
                f"{type(model).__name__}: {name} has no shape yet, its module is lazy; expected a finished model. "
                "Call the model once on an input first."
            )
    try:
        return record(model, example, "meta")
    except ForwardError as error:
        if any(tensor.is_meta for tensor in model.parameters()):
            raise CaptureError(
                f"{error}; the model is on the meta device and its forward looks at values. Build it on a real device."
            ) from error
    if before_real is not None:
        before_real()
    try:
        return record(model, example, "real")
    except ForwardError as error:
        try:
            return record(model, example, "real", grad=True)
        except ForwardError:
            raise error from error.__cause__


def replay(found: Capture, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the output tensors that the captured graph computes on inputs of the example's form.

    Args:
        found: the capture of `model`.
        args, kwargs: inputs with the shapes of the example.

    Raises:
        CaptureError: the graph holds a tensor whose values nobody knows.
    """
    model = unwrap(model)
    named: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update({name: buffer.clone() for name, buffer in model.named_buffers(remove_duplicate=False)})
    inputs = iter([tensor.clone() for tensor in tensors_in((tuple(args), dict(kwargs)))])
    device = next((tensor.device for tensor in named.values()), torch.device("cpu"))

    def leaf(node: torch.fx.Node) -> Any:
        if node.op == "placeholder":
            return next(inputs)
        if node.name in found.constants:
            return found.constants[node.name].clone()
        if node.target not in named:
            raise CaptureError(
                f"{found.model}: the forward made {node.name} on meta tensors and outside of torch's operators; "
                "expected its values. Capture on real tensors."
            )
        return named[str(node.target)]

    values = compute(found.graph.nodes, leaf, device)
    return list(values[found.graph.output_node()])
