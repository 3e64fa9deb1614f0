"""Models of timm (PyTorch Image Models)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idfx.core.errors import SourceError
from idfx.core.records import Example
from idfx.sources import source, standard_normal, unknown_model

if TYPE_CHECKING:
    from torch import nn


def names() -> list[str]:
    """Return every architecture that timm lists."""
    import timm

    return list(timm.list_models())


@source("timm", names=names)
def build(name: str, arguments: Mapping[str, object]) -> tuple[nn.Module, Example | None]:
    """`timm:NAME`: `timm.create_model(NAME, pretrained=False)`, with one image of the size in its configuration.

    NAME is passed to timm unchanged (`resnet50`, `resnet50.a1_in1k`, `local-dir:FOLDER`). `hf-hub:OWNER/MODEL` works if
    its configuration is in the local Hugging Face cache: idfx opens no connection.
    """
    import timm

    keywords: dict[str, Any] = {"pretrained": False, **arguments}
    if keywords["pretrained"]:
        raise SourceError(
            f"timm:{name}: pretrained={keywords['pretrained']!r}; idfx initialises models from scratch and"
            " downloads no weights. Leave the argument out."
        )
    local = _cached(name) if name.startswith(("hf-hub:", "hf_hub:")) else name
    if ":" not in local and not timm.is_model(name.partition(".")[0]):
        raise unknown_model("timm", name, timm.list_models(), "timm.list_models()")
    model = timm.create_model(local, **keywords)
    return model, _example(model, arguments)


def _example(model: nn.Module, arguments: Mapping[str, object]) -> Example | None:
    """Return one image of the size in timm's configuration or the arguments."""
    settings = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    shape = settings.get("input_size")
    if not shape:
        return None
    channels, height, width = shape
    if isinstance(wanted := arguments.get("in_chans"), int):
        channels = wanted
    if isinstance(size := arguments.get("img_size"), int):
        height = width = size
    elif isinstance(size, (tuple, list)) and len(size) == 2:
        height, width = size
    return Example((standard_normal(1, channels, height, width),))


def _cached(name: str) -> str:
    """Return the name under which timm finds a Hugging Face model on this machine."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = name.partition(":")[2].partition("@")
    problem = "is not in the local Hugging Face cache"
    found: Iterable[str] | object = None
    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except ValueError as error:
        problem = f"is not a repository name ({str(error).splitlines()[0]})"
    if not isinstance(found, str):
        raise SourceError(
            f"timm:{name}: {repository!r} {problem}; idfx opens no connection. Fetch its config.json first"
            f" (`hf download {repository} config.json`), or name the architecture itself."
        )
    return f"local-dir:{Path(found).parent}"
