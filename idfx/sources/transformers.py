"""Models of transformers (Hugging Face), from a configuration."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idfx.core.errors import SourceError, shortened
from idfx.core.records import Example
from idfx.sources import source, unknown_model
from idfx.sources._transformers_inputs import example
from idfx.sources._transformers_tiny import set_inside, tiny_values

if TYPE_CHECKING:
    from torch import nn


def names() -> list[str]:
    """Return every model type that AutoModel can build."""
    _library()
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


@source("transformers", names=names)
def build(name: str, arguments: Mapping[str, object]) -> tuple[nn.Module, Example | None]:
    """`transformers:TYPE` or `transformers:FOLDER` with a config.json: `AutoModel.from_config`, with matching inputs.

    The arguments override the configuration; a name such as `text_config.hidden_size` sets a nested value. `tiny=true`
    makes every configuration small, for tests. Inputs are a text of 8 tokens, an image or video of the size in the
    configuration, or a short sound, depending on the model, with the corresponding placeholder tokens in the text, and
    use_cache=False. Nothing is downloaded, and code next to a configuration is never run.
    """
    transformers = _library()
    with _quiet():
        config = _config(transformers, name, dict(arguments))
        if getattr(config, "architectures", None) is None:
            config.architectures = []  # AutoModel searches them if a type has two models
        try:
            model = transformers.AutoModel.from_config(config, trust_remote_code=False)
        except ImportError as error:
            named = re.search(r"requires the (\S+) library", str(error))
            package = named[1] if named else error.name or shortened(error)
            raise SourceError(
                f"transformers:{name}: {package} is not installed; expected the packages that this type of model"
                f" requires. Install {package}, or choose another type."
            ) from error
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise SourceError(
                f"transformers:{name}: AutoModel has no model for {type(config).__name__}; expected a type that"
                " it supports. Build the model with your own factory: path/to/file.py:factory."
            ) from error
        return model, example(model)


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SourceError(
            "transformers: it is not installed; expected the Python package. Run `pip install transformers`."
        ) from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's warnings about missing kernels and corrected values."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _written(folder: Path) -> dict[str, Any]:
    """Return the configuration in a folder; empty if it cannot be read."""
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(transformers: Any, name: str, overrides: dict[str, object]) -> Any:
    tiny = bool(overrides.pop("tiny", False))
    folder = Path(name)
    if folder.is_dir() or "/" in name:
        if not (folder / "config.json").is_file():
            raise SourceError(
                f"transformers:{name}: there is no {folder / 'config.json'}; expected a model type or a folder with a"
                " config.json. idfx opens no connection: fetch the file first."
            )
        try:
            config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except (ValueError, OSError, KeyError) as error:
            own_code = "auto_map" in _written(folder)
            told = "it needs its own code (trust_remote_code)" if own_code else shortened(error)
            raise SourceError(
                f"transformers:{name}: {told}; expected the configuration of a type that transformers supports."
                " idfx runs no code next to a configuration: build such a model with your own factory."
            ) from error
        values = config.to_dict()
        kind = type(config)
    else:
        if name not in (known := names()):
            raise unknown_model("transformers", name, known, "transformers.AutoModel")
        kind = type(transformers.AutoConfig.for_model(name))
        values = {}
    if tiny:
        values = {**tiny_values(kind()), **values}
    for path, value in overrides.items():
        set_inside(values, path, value)
    for key in ("transformers_version", "model_type"):
        values.pop(key, None)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise SourceError(
            f"transformers:{name}: {kind.__name__} raised {shortened(error)}; expected a configuration."
            " Check --model-arg."
        ) from error
