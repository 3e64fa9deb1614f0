"""Model → torch.fx graph of ATen operators, by running its forward once.

The run takes meta tensors, which cost neither memory nor arithmetic, and falls back to the real ones where the
model's Python looks at values. The graph follows the path that the example takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import nn

from idfx.capture.interpreter import compute
from idfx.capture.nested import UncopiedError, map_example, tensors_in
from idfx.capture.recorder import Recorder, on_meta_device
from idfx.capture.running import ModulePath, run, unwrap
from idfx.core.errors import CaptureError, ForwardError
from idfx.core.records import Capture, Example, ParameterInfo


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


def _values(buffers: Mapping[str, torch.Tensor], example: Example) -> dict[str, torch.Tensor]:
    """The tensors that have values while a model runs on the meta device, by the targets of their nodes."""
    inputs = tensors_in((example.args, dict(example.kwargs)))
    named = {**buffers, **{f"input_{index}": tensor for index, tensor in enumerate(inputs)}}
    return {name: tensor for name, tensor in named.items() if not tensor.is_meta}


def _running_means(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            yield f"{path}.running_mean".lstrip(".")


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return one copy of each tensor, under every name that it has: shared buffers stay shared."""
    copies = {id(tensor): tensor.clone() for tensor in tensors.values()}
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}


def record(model: nn.Module, example: Example, how: str, grad: bool = False) -> Capture:
    """Return the graph of one forward pass on "meta" or on "real" tensors; `capture` chooses."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    tensors: dict[str, torch.Tensor] = {**parameters, **buffers}
    if how == "meta":
        tensors, given = on_meta_device(tensors), map_example(example, on_meta_device)
    else:  # a forward may write to its buffers and inputs
        tensors, given = {**parameters, **_copies(buffers)}, map_example(example, torch.clone)
    args, kwargs = given.args, dict(given.kwargs)
    path = ModulePath(model)
    recorder = Recorder(path, _values(buffers, example) if how == "meta" else None)
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
    except UncopiedError:  # PackedSequence, say, refuses the meta device
        pass
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
    named.update(_copies(dict(model.named_buffers(remove_duplicate=False))))
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


def another(example: Example, whole: bool = True) -> Example | None:
    """Return an example of the same form with other values, or None if nothing of it can be changed.

    Floating tensors are drawn anew at the same scale; integers, if `whole` is set, are mirrored within their range, so
    that an index stays an index and a mask of ones a mask of ones.
    """
    generator = torch.Generator().manual_seed(1)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout != torch.strided or tensor.is_nested:
            return tensor.clone()
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            spread = tensor.detach().float().std(correction=0).cpu() if tensor.numel() > 1 else torch.tensor(1.0)
            drawn = noise * (spread if spread > 0 else 1.0) + tensor.detach().float().mean().cpu()
            return drawn.to(tensor.device, tensor.dtype)
        if tensor.dtype == torch.bool or tensor.is_complex() or not tensor.numel() or not whole:
            return tensor.clone()
        return tensor.max() + tensor.min() - tensor

    changed = map_example(example, change)
    before, after = (tensors_in((one.args, dict(one.kwargs))) for one in (example, changed))
    plain = ((a, b) for a, b in zip(before, after, strict=True) if a.layout == torch.strided and not a.is_nested)
    same = all(torch.equal(a, b) for a, b in plain)
    return None if same else changed
