"""What determines the example inputs of a transformers model: its forward, its configuration, the inputs so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

LENGTH = 8  # of a text
FRAMES = 4  # of a video, if the configuration does not say
SAMPLES = 4000  # of a sound
STEPS = 64  # of a spectrum, if the configuration does not say
REGIONS = 4  # of an image that a detector has processed before


@dataclass
class Form:
    """The model, its configuration, the names of the arguments of its forward, and the inputs made so far."""

    model: nn.Module
    config: Any
    names: tuple[str, ...]
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The type of the model."""
        return str(self.config.model_type)

    @property
    def vision(self) -> Any:
        """The configuration of the image encoder."""
        return self._inside("vision", "vit_config", "image_config", "backbone_config", "vq_config")

    @property
    def audio(self) -> Any:
        """The configuration of the sound encoder."""
        return self._inside("audio", "speech", "encoder_config")

    def first(self, kind: str, word: str = "") -> Any:
        """The first module of a kind whose name contains this word, or None.

        Its input is that of the model if the configuration does not say so.
        """
        modules = self.model.named_modules()
        return next((module for name, module in modules if type(module).__name__ == kind and word in name), None)

    def _inside(self, *words: str) -> Any:
        """The first nested configuration whose name contains one of these words, otherwise the whole configuration."""
        return next((part for name, part in _parts(self.config) if any(word in name for word in words)), self.config)


def _parts(config: Any) -> Iterator[tuple[str, Any]]:
    """The nested configurations, with their names, outermost first."""
    inner = [(key, value) for key, value in vars(config).items() if hasattr(value, "to_dict")]
    yield from inner
    for _, value in inner:
        yield from _parts(value)


def configs(config: Any) -> Iterator[Any]:
    """The configuration and all nested ones, outermost first."""
    yield config
    yield from (part for _, part in _parts(config))


def found(config: Any, *keys: str, default: Any = None) -> Any:
    """Return the first of these attributes that a configuration, or a nested one, has."""
    for part in configs(config):
        for key in keys:
            value = getattr(part, key, None)
            if value is not None:
                return value
    return default


def size(value: Any) -> tuple[int, int]:
    """Return height and width, in whatever form a configuration has them."""
    if isinstance(value, Mapping):
        side = value.get("longest_edge", value.get("shortest_edge", 224))
        return int(value.get("height", side)), int(value.get("width", side))
    if isinstance(value, (list, tuple)):
        return (int(value[0]), int(value[1])) if len(value) > 1 else (int(value[0]), int(value[0]))
    return int(value), int(value)


# The sources import torch when something is built, not before.


def whole(values: Any) -> Tensor:
    """Return a tensor of these integers."""
    import torch

    return torch.tensor(values)


def ones(*shape: int) -> Tensor:
    """Return an integer tensor of ones."""
    import torch

    return torch.ones(shape, dtype=torch.int64)


def true(*shape: int) -> Tensor:
    """Return a boolean tensor of true."""
    import torch

    return torch.ones(shape, dtype=torch.bool)
