"""Models of torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from idfx.core.errors import SourceError
from idfx.core.records import Example
from idfx.sources import source, standard_normal, unknown_model

if TYPE_CHECKING:
    from torch import nn

# The input of a family, by the suffix of the module of its builder; the first match counts.
SHAPES = (
    ("inception", (1, 3, 299, 299)),
    ("video.resnet", (1, 3, 16, 112, 112)),
    ("video.", (1, 3, 16, 224, 224)),
)


def names() -> list[str]:
    """Return every model that torchvision lists."""
    from torchvision import models

    return list(models.list_models())


@source("torchvision", names=names)
def build(name: str, arguments: Mapping[str, object]) -> tuple[nn.Module, Example | None]:
    """`torchvision:NAME`: `torchvision.models.get_model(NAME, weights=None)`, with an input for its family.

    One image of 224 × 224 (Inception: 299), or of the model's own size; a clip of 16 frames for video models, two
    frames for optical flow, a list with one image for detection. Backbones are never pretrained.
    """
    from torchvision import models

    if name.lower() not in models.list_models():
        raise unknown_model("torchvision", name, models.list_models(), "torchvision.models.list_models()")
    for key in ("weights", "weights_backbone", "pretrained", "pretrained_backbone"):
        if arguments.get(key):
            raise SourceError(
                f"torchvision:{name}: {key}={arguments[key]!r}; idfx initialises models from scratch and"
                " downloads no weights. Leave the argument out."
            )
    builder = models.get_model_builder(name)
    model = models.get_model(name, **{**_defaults(builder), **arguments})
    return model, _example(builder.__module__, model, arguments)


def _defaults(builder: Callable[..., Any]) -> dict[str, object]:
    """Return the arguments that prevent a builder from downloading, and from warning about its defaults."""
    defaults: dict[str, object] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        defaults["weights_backbone"] = None
    if builder.__module__.endswith(("googlenet", "inception")):
        # The current meaning of None; passing it avoids the warning that it may change.
        defaults["init_weights"] = True
    return defaults


def _example(module: str, model: nn.Module, arguments: Mapping[str, object]) -> Example:
    family = module.removeprefix("torchvision.models.")
    if family.startswith("detection."):
        return Example(([standard_normal(3, 224, 224)],))
    if family.startswith("optical_flow."):
        first, second = standard_normal(2, 3, 128, 128).chunk(2)
        return Example((first, second))
    size = arguments.get("image_size") or arguments.get("input_size") or getattr(model, "image_size", 224)
    shape = next((shape for key, shape in SHAPES if key in family), None)
    if shape is None:
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        shape = (1, 3, height, width)
    return Example((standard_normal(*shape),))
