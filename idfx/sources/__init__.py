"""Sources of models: `prefix:rest` → model and example inputs, one file per source.

A source is a function `build(name, arguments)` in a module of this package, with the decorator `source`. `idfx list
sources` shows its docstring. It runs inside `DeferredDraws`, so it builds models in the usual way. It imports its
library itself. Sources never load pretrained weights or open a connection.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from idfx.core.errors import UsageError
from idfx.core.records import Example
from idfx.core.registry import Registry, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

Builder: TypeAlias = "Callable[[str, Mapping[str, object]], tuple[nn.Module, Example | None]]"


@dataclass(frozen=True)
class Source:
    """A way to build models.

    `build` takes the text after the prefix and the keyword arguments of the model. `names` lists the available models
    for suggestions. `matches` tells whether a specification without the prefix belongs to this source.
    """

    prefix: str
    build: Builder
    names: Callable[[], Iterable[str]] | None = None
    matches: Callable[[str], bool] | None = None

    @property
    def description(self) -> str:
        """The docstring of `build`."""
        return inspect.getdoc(self.build) or ""


SOURCES: Registry[Source] = Registry("source", "idfx.sources")


def source(
    prefix: str,
    *,
    names: Callable[[], Iterable[str]] | None = None,
    matches: Callable[[str], bool] | None = None,
) -> Callable[[Builder], Builder]:
    """Return a decorator that registers a `build` function as the source of this prefix."""

    def add(build: Builder) -> Builder:
        SOURCES.register(prefix, by=build.__module__)(Source(prefix, build, names, matches))
        return build

    return add


def resolve(spec: str) -> tuple[Source, str]:
    """Return the source of a specification, and the rest of the text.

    Args:
        spec: `prefix:rest`, `path/to/file.py:factory` or `package.module:factory`.

    Raises:
        UsageError: the source is unknown or missing.

    Example:
        >>> found, rest = resolve("timm:resnet50")
        >>> found.prefix, rest
        ('timm', 'resnet50')
    """
    prefix, colon, rest = spec.partition(":")
    if colon and prefix in SOURCES:
        if not rest:
            raise UsageError(f"{spec}: no model name; expected {prefix}:NAME. Add a name.")
        return SOURCES[prefix], rest
    for candidate in SOURCES.values():
        if candidate.matches is not None and candidate.matches(spec):
            return candidate, spec
    if colon:
        raise UsageError(
            f"{spec}: {prefix!r} is neither a source nor a module that can be imported; expected one of the"
            f" sources {', '.join(SOURCES)}, or package.module:factory.{did_you_mean(prefix, SOURCES)}"
        )
    spellings = _spellings(spec)
    hint = f"Did you mean {' or '.join(spellings)}?" if spellings else "See `idfx list sources`."
    raise UsageError(f"{spec}: no source; expected SOURCE:NAME. {hint}")


def _spellings(name: str) -> list[str]:
    """Return this name with each source that has it, or otherwise the most similar names of every source."""
    listed = {item.prefix: list(item.names()) for item in SOURCES.values() if item.names is not None}
    exact = [f"{prefix}:{name}" for prefix, names in listed.items() if name.partition(".")[0] in names]
    near = [
        f"{prefix}:{match}"
        for prefix, names in listed.items()
        for match in difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    ]
    return exact or near


def unknown_model(prefix: str, name: str, names: Iterable[str], listing: str) -> UsageError:
    """Return the error for a model that a source does not have, with the most similar names."""
    hint = did_you_mean(name, names)
    return UsageError(f"{prefix}:{name}: unknown model; expected a name of {listing}.{hint}")


def standard_normal(*shape: int) -> Tensor:
    """Return a fixed float32 CPU tensor of this shape, independent of the global random state."""
    import torch

    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
