"""Model → captured graph: chooses and runs a tracer.

A tracer is a function (model, example, materialize) → torch.fx.GraphModule with nodes described as in
`idfx.capture.graph`; `materialize` gives a model its values if the tracer needs them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import nn

from idfx.capture.graph import flat
from idfx.capture.interpreter import OnCall, WatchedInterpreter, apply
from idfx.capture.nested import copies_of, map_example, tensors_in
from idfx.capture.wrappers import unwrap
from idfx.core.errors import CaptureError
from idfx.core.records import FACTS, Capture, Example, ParameterInfo
from idfx.core.registry import Registry
from idfx.core.torch_private import missing
from idfx.sharding.together import whole

Materialize = Callable[[], object] | None
Tracer = Callable[[nn.Module, Example, Materialize], torch.fx.GraphModule]
TRACERS: Registry[Tracer] = Registry("tracer")


@TRACERS.register("record")
def _record(model: nn.Module, example: Example, materialize: Materialize) -> torch.fx.GraphModule:
    """Record the operators that one forward pass calls."""
    from idfx.capture.recording import trace_calls

    return trace_calls(model, example, materialize)


@TRACERS.register("export")
def _export(model: nn.Module, example: Example, materialize: Materialize) -> torch.fx.GraphModule:
    """Use the graph of torch.export."""
    from idfx.capture.export import trace_export

    return trace_export(model, example)


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


def capture(model: nn.Module, example: Example, before_real: Materialize = None, tracer: str | None = None) -> Capture:
    """Return the graph of the ATen operators that the model's forward calls on the example.

    Args:
        model: any module; wrappers (DataParallel, torch.compile) are removed.
        example: its inputs; tensors of any shape and device that the forward accepts.
        before_real: called before real tensors are used, for example to give a model its values.
        tracer: "record" or "export"; the default is the first, or the second, with a warning, if this version of torch
            does not support recording.

    Raises:
        ForwardError: the forward raised on the example, on meta tensors and on real ones.
        ResourceError: memory ran out in the forward, or would run out on real tensors.
        CaptureError: the forward returns no tensor, or needs values that the model does not have (meta device); the
            model is a TorchScript module; the forward runs without idfx alone; or torch.export rejects the model.
        UsageError: an unknown tracer.

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
            f"{type(model).__name__}: it is a TorchScript module, whose operators run outside Python; expected a "
            "torch.nn.Module that runs in Python. Use the module from which it was scripted or traced."
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise CaptureError(
                f"{type(model).__name__}: {name} has no shape yet, its module is lazy; expected a complete model. "
                "Call the model once on an input first."
            )
    chosen = TRACERS.find(tracer or default_tracer())
    return Capture(type(model).__name__, chosen(model, example, before_real), parameter_info(model), example)


def record(model: nn.Module, example: Example, how: str, grad: bool = False, training: bool = False) -> Capture:
    """Return the capture of one forward pass on "meta" or on "real" tensors, in evaluation or in training mode."""
    from idfx.capture.recording import one_pass

    return Capture(type(model).__name__, one_pass(model, example, how, grad, training), parameter_info(model), example)


def default_tracer() -> str:
    """Return the default tracer, and warn if it is not the usual one."""
    if not missing:
        return "record"
    warnings.warn(
        f"{missing}; models are captured by torch.export, which is slower and rejects more models", stacklevel=3
    )
    return "export"


def replay(
    found: Capture, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], on_call: OnCall = apply
) -> list[Any]:
    """Return the output tensors that the captured graph computes on inputs of the example's form.

    The whole of a DTensor is gathered when an operator first reads it, and freed after the last one.

    Args:
        found: the capture of `model`.
        args, kwargs: inputs with the shapes of the example.
        on_call: returns the result of an operator for its arguments.

    Raises:
        CaptureError: the graph contains a tensor whose values are unknown.
    """
    model = unwrap(model)
    named: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(copies_of(dict(model.named_buffers(remove_duplicate=False))))
    inputs = iter([tensor.clone() for tensor in tensors_in((tuple(args), dict(kwargs)))])
    device = next((tensor.device for tensor in named.values()), torch.device("cpu"))

    def leaf(node: torch.fx.Node) -> Any:
        if node.op == "placeholder":
            return next(inputs)
        if node.name in found.constants:
            return found.constants[node.name].clone()
        name = node.meta[FACTS].name
        if name not in named:
            raise CaptureError(
                f"{found.model}: the forward made {node.name} on meta tensors and outside torch's operators; "
                "expected its values. Capture on real tensors."
            )
        return whole(named[name], name)

    with torch.no_grad():
        return list(flat(WatchedInterpreter(found.graph, leaf, device, on_call).run()))


def another(example: Example, whole: bool = True) -> Example | None:
    """Return an example of the same form with other values, or None if no value can be changed.

    Floating-point tensors are drawn again at the same scale; integers, if `whole` is set, are mirrored within their
    range, so that an index stays valid and a mask of ones stays a mask of ones.
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
