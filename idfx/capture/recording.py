"""Model → captured graph, by recording every operator call of one forward pass.

The run uses meta tensors, which need neither memory nor arithmetic, and falls back to real tensors if the model's
Python code depends on values. The graph is that of the path that the example takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.fx
from torch import nn

from idfx.capture.blame import at_fault
from idfx.capture.graph import assemble, attribute_name
from idfx.capture.inputs import names_of_tensors
from idfx.capture.module_path import ModulePath
from idfx.capture.nested import UncopiedError, copies_of, map_example, tensors_in
from idfx.capture.recorder import Recorder, on_meta_device
from idfx.capture.running import run
from idfx.core.errors import CaptureError, ForwardError
from idfx.core.memory import check_room, size_of
from idfx.core.records import FACTS, Example, GraphFacts
from idfx.core.torch_private import is_transformed
from idfx.sharding.together import all_whole


def trace_calls(
    model: nn.Module, example: Example, materialize: Callable[[], object] | None = None
) -> torch.fx.GraphModule:
    """Return the graph of the operators that the model's forward calls on the example.

    Args:
        model: without wrappers.
        example: its inputs.
        materialize: called before real tensors are used, for example to give a model its values.

    Raises:
        ForwardError: the forward raised on the example, on meta tensors and on real ones.
        ResourceError: memory ran out in the forward, or a run on real tensors does not fit in it.
        CaptureError: the forward returns no tensor, needs values that the model does not have (meta device), or runs
            without idfx alone.
    """
    try:
        return one_pass(model, example, "meta")
    except UncopiedError:  # PackedSequence, say, refuses the meta device
        pass
    except ForwardError as error:
        if any(tensor.is_meta for tensor in model.parameters()):
            raise CaptureError(
                f"{error} The model is on the meta device and its forward needs values: build it on a real device."
            ) from error
        _check_room(model, error, materialize is not None)
    if materialize is not None:
        materialize()
    try:
        return one_pass(model, example, "real")
    except ForwardError as error:
        try:
            return one_pass(model, example, "real", grad=True)
        except ForwardError as other:
            raise at_fault(model, example, error, other) from error.__cause__


def _check_room(model: nn.Module, error: ForwardError, unwritten: bool) -> None:
    """Check that a run on real tensors fits in memory, as far as the one on meta tensors went."""
    values = size_of((*model.parameters(), *model.buffers())) if unwritten else 0
    what = f"it does not run on meta tensors ({error.raised}), and a run on real ones takes at least"
    check_room(type(model).__name__, values + error.made, what)


def one_pass(
    model: nn.Module, example: Example, how: str, grad: bool = False, training: bool = False
) -> torch.fx.GraphModule:
    """Return the graph of one forward pass on "meta" or on "real" tensors, in evaluation or in training mode."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    tensors: dict[str, torch.Tensor] = {**parameters, **buffers}
    if how == "meta":
        tensors, given = on_meta_device(tensors), map_example(example, on_meta_device)
    else:  # a forward may write to its buffers and inputs
        tensors, given = {**all_whole(parameters), **copies_of(buffers)}, map_example(example, torch.clone)
    args, kwargs = given.args, dict(given.kwargs)
    path = ModulePath(model)
    names = names_of_tensors(model, args, kwargs)
    device = next((tensor.device for tensor in (*parameters.values(), *buffers.values())), torch.device("cpu"))
    recorder = Recorder(path, _values(buffers, example, names) if how == "meta" else None, device)
    for name, tensor in tensors.items():
        recorder.know(name, tensor, name in parameters)
    for name, tensor in zip(names, tensors_in((args, kwargs)), strict=True):
        recorder.placeholder(name, tensor)
    try:
        with recorder.functions:
            result = run(model, tensors, args, kwargs, recorder.on_call, path, grad, training)
    except ForwardError as error:
        error.made = recorder.size()
        raise
    if next(tensors_in(result), None) is None:
        raise CaptureError(
            f"{type(model).__name__}: forward returned no tensor ({type(result).__name__}); expected at least one. "
            "Wrap the model so that its forward returns the tensors that a loss would use."
        )
    recorder.output(result)
    held = {attribute_name(name): tensor for name, tensor in (*parameters.items(), *buffers.items())}
    _note_zeros(recorder.graph, held | recorder.constants, frozenset(_running_means(model)))
    facts = GraphFacts(recorder.calls, how, grad)
    return assemble(recorder.graph, held | recorder.constants, type(model).__name__, facts)


def _note_zeros(graph: torch.fx.Graph, tensors: Mapping[str, torch.Tensor], means: frozenset[str]) -> None:
    """Note which buffers and constants are zero throughout; running means without values are as they start out."""
    for node in graph.nodes:
        facts = node.meta.get(FACTS)
        if node.op != "get_attr" or facts.kind == "parameter":
            continue
        tensor = tensors[str(node.target)]
        known = not tensor.is_meta and not is_transformed(tensor) and tensor.layout == torch.strided
        if not tensor.any() if known else facts.name in means:
            node.meta[FACTS] = facts._replace(zero=True)


def _values(buffers: Mapping[str, torch.Tensor], example: Example, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors that have values while a model runs on the meta device, by the targets of their nodes."""
    inputs = tensors_in((example.args, dict(example.kwargs)))
    named = {attribute_name(name): buffer for name, buffer in buffers.items()} | dict(zip(names, inputs, strict=True))
    return {name: tensor for name, tensor in named.items() if not tensor.is_meta}


def _running_means(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            yield f"{path}.running_mean".lstrip(".")
