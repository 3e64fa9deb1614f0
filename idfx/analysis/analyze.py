"""Model → structure: example, capture and analysis in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from idfx.analysis.role_overrides import override_roles
from idfx.analysis.structure import build_structure
from idfx.analysis.training import with_training
from idfx.capture.inputs import check as check_inputs
from idfx.capture.inputs import no_example, takes_nothing
from idfx.capture.tracing import capture
from idfx.capture.wrappers import is_exported, unwrap
from idfx.core.errors import UsageError
from idfx.core.records import Example, Structure


def _derived_example(model: nn.Module) -> Example:
    """The example that a model itself defines: timm's input size, or that of Lightning or transformers."""
    if is_exported(model) and (own := getattr(model, "example_inputs", None)) is not None:
        args, kwargs = own
        return Example(tuple(args), dict(kwargs))
    model = unwrap(model)
    floating = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    device = floating[0].device if floating else torch.device("cpu")
    dtype = floating[0].dtype if floating else torch.float32

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if size:
            generator = torch.Generator().manual_seed(0)
            return Example((placed(torch.randn((1, *size), generator=generator)),))
    for attribute in ("example_input_array", "dummy_inputs"):
        value = getattr(model, attribute, None)
        if isinstance(value, Mapping):
            return Example((), {key: placed(item) for key, item in value.items()})
        if isinstance(value, (tuple, list)):
            return Example(tuple(placed(item) for item in value))
        if isinstance(value, torch.Tensor):
            return Example((placed(value),))
    if takes_nothing(model):
        return Example()
    raise no_example(type(model).__name__, model, "python")


def analyze(
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    roles: Mapping[str, str] | None = None,
    tracer: str | None = None,
) -> Structure:
    """Return the structure of a model: joins, weight uses, and the role of every parameter.

    The model is run once, usually on meta tensors, and does not change; if parameters are unused, once more in training
    mode.

    Args:
        model: any module, in any mode, dtype and on any device, wrapped or not, including a torch.fx.GraphModule; or a
            torch.export.ExportedProgram with its own example inputs.
        example_inputs: positional inputs of its forward; a single tensor counts as a list of one. They are optional if
            the model defines its own (timm's input size, `example_input_array`, `dummy_inputs`).
        example_kwargs: keyword inputs.
        roles: roles by parameter name or pattern, which override those that idfx finds; "end" closes the block.
        tracer: how to obtain the graph: "record" (the default) records the operators of one forward pass, "export" uses
            the graph of torch.export.

    Raises:
        UsageError: a role or a parameter that does not exist.
        SourceError: no example input, or one that does not fit the signature of the forward.
        ForwardError: the model raised on it.
        ResourceError: it ran out of memory.
        CaptureError: the model ran but cannot be captured.

    Example:
        >>> import torch
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = torch.nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return x + self.fc(x).relu()
        >>> structure = analyze(Block(), (torch.ones(1, 4),))
        >>> structure.joins[0].kind, structure.joins[0].ends[0].parameter
        ('identity', 'fc.weight')
        >>> structure.roles["fc.weight"].name
        'end'
    """
    if example_kwargs is not None and not isinstance(example_kwargs, Mapping):
        found = type(example_kwargs).__name__
        raise UsageError(f"example_kwargs: a {found}; expected inputs by name. Write example_kwargs={{'name': value}}.")
    if example_inputs is None and not example_kwargs:
        example = _derived_example(model)
    else:
        given = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs or ())
        example = Example(given, dict(example_kwargs or {}))
    check_inputs(unwrap(model), example, type(unwrap(model)).__name__, "python")
    found = with_training(model, build_structure(capture(model, example, tracer=tracer)))
    return override_roles(found, roles or {})
