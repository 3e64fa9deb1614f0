"""Models of the user: a factory in a file or a module."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from idfx.core.errors import IdfxError, SourceError, out_of_memory, shortened
from idfx.core.records import Example
from idfx.core.registry import did_you_mean
from idfx.sources import source

if TYPE_CHECKING:
    from torch import nn


def matches(spec: str) -> bool:
    """Return whether a specification looks like a Python file or starts with an installed module."""
    place, _, factory = spec.rpartition(":")
    if not place:
        return factory.endswith(".py")
    if place.endswith(".py") or "/" in place:
        return True
    with _importing_from(Path.cwd()):
        try:
            return importlib.util.find_spec(place.partition(".")[0]) is not None
        except (ImportError, ValueError):
            return False


@source("python", matches=matches)
def build(name: str, arguments: Mapping[str, object]) -> tuple[nn.Module, Example | None]:
    """`path/to/file.py:factory` or `package.module:factory`: the return value of the factory.

    The factory is a function or an nn.Module class, called with the arguments, or an nn.Module instance. Example inputs
    come from `example_inputs` in the same file or in the model (a tensor, a tuple, a mapping of keyword arguments, or a
    function without arguments that returns one of these), or from the model's `example_input_array` or `dummy_inputs`.
    The prefix `python:` is optional.
    """
    from torch import nn

    place, _, attribute = name.rpartition(":")
    if not place:
        raise SourceError(f"{name}: no factory; expected path/to/file.py:factory. Add the name of the factory.")
    is_file = place.endswith(".py") or "/" in place
    with _importing_from(Path(place).resolve().parent if is_file else Path.cwd()):
        module = _load_file(name, Path(place)) if is_file else _load_module(name, place)
        factory = _attribute(name, module, attribute)
        model = factory if isinstance(factory, nn.Module) else _call(name, factory, arguments)
        if not isinstance(model, nn.Module):
            raise SourceError(
                f"{name}: the factory returned an object of type {type(model).__name__}; "
                "expected a torch.nn.Module. Return the model."
            )
        return model, _example(name, module, model)


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, because a console script has no folder of the user on the path."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _load_file(name: str, path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        nearby = [item.name for item in folder.glob("*.py")] if folder.is_dir() else []
        raise SourceError(
            f"{name}: there is no file {path}; expected path/to/file.py:factory.{did_you_mean(path.name, nearby)}"
        )
    digest = hashlib.blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()
    # A unique name, so that a file called `torch.py` or `model.py` does not shadow another module.
    title = f"idfx_source_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(title, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{name}: {path} is not a Python file; expected path/to/file.py:factory. Rename it to .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[title]
        raise _failed_import(name, str(path), error) from error
    return module


def _load_module(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise _failed_import(name, place, error) from error


def _failed_import(name: str, what: str, error: BaseException) -> SourceError:
    return SourceError(
        f"{name}: importing {what} raised {shortened(error)}; expected it to import. "
        f"Try `python -c 'import {Path(what).stem}'` in its folder, or --debug."
    )


def _attribute(name: str, module: ModuleType, attribute: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            offered = [key for key, value in vars(found).items() if callable(value) and key[0] != "_"]
            raise SourceError(
                f"{name}: there is no {part!r} in {getattr(found, '__file__', None) or found.__name__};"
                f" expected a function or class that returns the model.{did_you_mean(part, offered)}"
            )
        found = getattr(found, part)
    return found


def _call(name: str, factory: Any, arguments: Mapping[str, object]) -> Any:
    if not callable(factory):
        raise SourceError(
            f"{name}: this is a {type(factory).__name__}; expected a function or class that returns the model."
            " Name the factory."
        )
    try:
        return factory(**arguments)
    except (IdfxError, MemoryError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        endless = isinstance(error, RecursionError)
        advice = "See whether it calls itself" if endless else "Check --model-arg"
        raise SourceError(
            f"{name}: the factory raised {shortened(error)}; expected a model from {_signature(factory)}."
            f" {advice}, or see --debug."
        ) from error


def _signature(factory: Any) -> str:
    title = getattr(factory, "__name__", "factory")
    try:
        return f"{title}{inspect.signature(factory)}"
    except (TypeError, ValueError):
        return f"{title}(...)"


def _example(name: str, module: ModuleType, model: nn.Module) -> Example | None:
    """Return the example inputs of the file or the model, or None."""
    candidates = (
        (module, "example_inputs"),
        (model, "example_inputs"),
        (model, "example_input_array"),
        (model, "dummy_inputs"),
    )
    for owner, attribute in candidates:
        try:
            found = getattr(owner, attribute, None)
            if callable(found) and not isinstance(found, Mapping):
                found = found()
        except Exception as error:
            raise SourceError(
                f"{name}: {attribute} raised {shortened(error)}; expected example inputs. Correct it, or set"
                " --input-shape."
            ) from error
        if found is not None:
            return as_example(found)
    return None


def as_example(inputs: Any) -> Example:
    """Return example inputs as a record: a mapping has keyword arguments, a tuple positional ones.

    Example:
        >>> as_example({"x": 1}).kwargs
        {'x': 1}
        >>> as_example([1, 2]).args
        ([1, 2],)
    """
    if isinstance(inputs, Example):
        return inputs
    if isinstance(inputs, Mapping):
        return Example(kwargs=dict(inputs))
    return Example(tuple(inputs) if isinstance(inputs, tuple) else (inputs,))
