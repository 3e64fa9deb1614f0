"""The models of the suites: `name(key=value, ...)` → module for a task, one kind of model per file.

A builder is a function `build(task, **options)` with the decorator `model`; the values it draws are the model's own
initialisation, which `--schemes default` trains. Any SPEC of `idfx list sources` is also a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from idfx.building.build import load
from idfx.core.errors import UsageError
from idfx.core.literals import parse_call
from idfx.core.registry import Registry, did_you_mean


@dataclass(frozen=True)
class Task:
    """The task of a model.

    `kind`: "images" (N, C, H, W) and "signals" (N, C, T) → classes; "sequences" (N, T) of token numbers → classes;
    "language" and "masked", (N, T) → (N, T, vocabulary). `shape` is that of one input.
    """

    kind: str
    shape: tuple[int, ...]
    classes: int
    vocabulary: int = 0


Builder = Callable[..., nn.Module]
MODELS: Registry[Builder] = Registry("model", "idfx.bench.models")


def model(name: str) -> Callable[[Builder], Builder]:
    """Register the decorated function as the builder of a model."""
    return MODELS.register(name)


def build_model(text: str, task: Task) -> nn.Module:
    """Return a model for a task; its random values come from torch's global generator.

    Args:
        text: `name` or `name(key=value, ...)` of this package, or SPEC or `SPEC(key=value, ...)` of a source of idfx,
            which gets `num_classes` and, for timm, `in_chans`, unless the text sets them.
        task: of the model.

    Raises:
        UsageError: an unknown model or option, or one that is not for this kind of task.

    Example:
        >>> net = build_model("mlp(depth=3, width=8)", Task("images", (1, 8, 8), 10))
        >>> sum(p.numel() for p in net.parameters())
        682
    """
    head, bracket, rest = text.partition("(")
    if ":" in head:
        _, options = parse_call(f"model{bracket}{rest}", f"model {text}")
        own: dict[str, object] = {"num_classes": task.classes}
        if head.startswith("timm:"):
            own["in_chans"] = task.shape[0]
        import torch

        return load(head, arguments=own | options, seed=torch.initial_seed())[0]
    name, options = parse_call(text, "model")
    builder = MODELS.find(name)
    known = [key for key in inspect.signature(builder).parameters if key != "task"]
    for key in options:
        if key not in known:
            raise UsageError(
                f"model {text!r}: unknown option {key!r}; expected {', '.join(known)}.{did_you_mean(key, known)}"
            )
    return builder(task, **options)


def needs(task: Task, name: str, *kinds: str) -> None:
    """Check that a model is for this kind of task; raise UsageError otherwise."""
    if task.kind not in kinds:
        raise UsageError(
            f"model {name}: the data is of the kind {task.kind}; expected {' or '.join(kinds)}. "
            "Choose another model or other data."
        )


def entries(net: nn.Module) -> int:
    """Return the number of trainable parameters of a model."""
    return sum(parameter.numel() for parameter in net.parameters())


def draw_(net: nn.Module, std: float) -> Any:
    """Draw linear weights and embeddings from N(0, std²), truncated at 2, biases 0, as usual for transformers."""
    for part in net.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std, a=-2.0, b=2.0)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
