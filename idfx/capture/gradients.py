"""Which parameters autograd connects with the outputs of a forward: neither no_grad nor detach leaves an operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from idfx.capture.interpreter import apply
from idfx.capture.module_path import ModulePath
from idfx.capture.nested import copies_of, map_example, tensors_in
from idfx.capture.recorder import on_meta_device
from idfx.capture.running import run
from idfx.core.records import Example


def connected(model: nn.Module, example: Example, how: str, training: bool = False) -> frozenset[str]:
    """Return the parameters that a gradient of the outputs can get to, by every name; no gradient is computed.

    Args:
        model: without wrappers.
        example: its inputs.
        how: run on "meta" or on "real" tensors.
        training: in training mode instead of evaluation mode.

    Raises:
        ForwardError: the forward raised.
        UncopiedError: an input cannot be copied.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> sorted(connected(layer, Example((torch.ones(1, 2),)), "meta"))
        ['bias', 'weight']
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    if how == "meta":
        wanted = {name: parameter.requires_grad for name, parameter in parameters.items()}
        tensors, given = on_meta_device({**parameters, **buffers}), map_example(example, on_meta_device)
        for name in parameters:
            tensors[name].requires_grad_(wanted[name])
    else:
        tensors, given = {**parameters, **copies_of(buffers)}, map_example(example, torch.clone)
    result = run(model, tensors, given.args, dict(given.kwargs), apply, ModulePath(model), True, training)
    return _leaves(tensors_in(result), {name: tensors[name] for name in parameters})


def _leaves(outputs: Iterable[torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """The parameters among the leaves of the autograd graph of some outputs."""
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen, found = set(stack), set[int]()
    while stack:
        function = stack.pop()
        found.add(id(getattr(function, "variable", None)))
        fresh = {other for other, _ in function.next_functions if other is not None} - seen
        seen |= fresh
        stack.extend(fresh)
    return frozenset(name for name, tensor in parameters.items() if id(tensor) in found)
