"""The structure of the path that a forward takes in training mode, for what evaluation mode leaves out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from idfx.analysis.structure import build_structure
from idfx.capture.nested import map_example, tensors_in
from idfx.capture.tracing import record
from idfx.capture.wrappers import unwrap
from idfx.core.errors import CaptureError, ForwardError
from idfx.core.records import Example, Structure
from idfx.core.roles import RoleName


def with_training(model: nn.Module, structure: Structure) -> Structure:
    """Return the structure together with that of training mode, if that uses parameters that evaluation mode does not.

    The forward runs once more on meta tensors, and only if there are unused parameters. A forward that cannot be read
    there in training mode leaves the structure as it is.

    Args:
        model: any module; it is unwrapped.
        structure: of the model in evaluation mode.

    Example:
        >>> from idfx.analysis.analyze import analyze
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head, self.aux = nn.Linear(3, 2), nn.Linear(3, 2)
        ...     def forward(self, x):
        ...         return (self.head(x), self.aux(x)) if self.training else self.head(x)
        >>> found = analyze(Net(), (torch.ones(1, 3),))
        >>> found.roles["aux.weight"].name, found.training.roles["aux.weight"].name
        ('unused', 'head')
    """
    unused = [name for name, role in structure.roles.items() if role.name is RoleName.UNUSED]
    if not unused or structure.capture.how == "export":
        return structure
    for example in _examples(structure.capture.example):
        try:
            found = record(unwrap(model), example, "meta", structure.capture.grad, training=True)
        except (ForwardError, CaptureError):
            continue
        training = build_structure(found)
        used = any(training.roles[name].name is not RoleName.UNUSED for name in unused)
        return replace(structure, training=training) if used else structure
    return structure


def _examples(example: Example) -> tuple[Example, ...]:
    """The example, and one with each sample twice, because a normalisation in training mode takes more than one."""
    tensors = tuple(tensors_in((example.args, dict(example.kwargs))))
    if not tensors or any(not tensor.dim() or tensor.shape[0] != 1 for tensor in tensors):
        return (example,)
    return example, map_example(example, lambda tensor: torch.cat([tensor, tensor]))
