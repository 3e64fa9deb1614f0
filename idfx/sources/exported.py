"""Models that torch.export has saved: `model.pt2`.

Such a file comes from elsewhere, and torch's own reader would unpickle parts of it and evaluate expressions in it. Here
only tensors are unpickled, and a file that needs more is refused.
"""

from __future__ import annotations

import json
import operator
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idfx.core.errors import SourceError, UsageError, out_of_memory, shortened
from idfx.core.records import Example
from idfx.sources import source

if TYPE_CHECKING:
    from torch import nn

_LARGEST = 1 << 30  # bytes of the graph in such a file; one of 100,000 nodes has some 100 MB


def matches(spec: str) -> bool:
    """Return whether a specification is the name of an exported program."""
    return spec.endswith(".pt2")


@source("pt2", matches=matches)
def build(name: str, arguments: Mapping[str, object]) -> tuple[nn.Module, Example | None]:
    """`path/to/model.pt2`: the program that torch.export.save wrote, with the example inputs in it.

    Its weights are those of the file until they are initialised, and the state dict has the names of the model that was
    exported. The prefix `pt2:` may be left out.
    """
    import torch

    from idfx.capture.wrappers import module_of

    if arguments:
        raise UsageError(
            f"{name}: --model-arg {next(iter(arguments))}; an exported program takes no arguments. Leave it out."
        )
    path = Path(name)
    _inspect(path)
    try:
        with _tensors_only():
            program = torch.export.load(path)
    except SourceError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise SourceError(
            f"{name}: torch.export.load refuses it ({shortened(error)}); expected a file that torch.export.save of "
            f"torch {torch.__version__} can read. Export the model again with this release."
        ) from error
    _check_operators(name, program)
    given = program.example_inputs
    return module_of(program), None if given is None else Example(tuple(given[0]), dict(given[1]))


def _inspect(path: Path) -> None:
    """Refuse a file that is not such an archive, or that has expressions or objects besides tensors and operators."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            graphs = [name for name in names if name.endswith(".json") and ("model" in name or "program" in name)]
            if sum(archive.getinfo(name).file_size for name in graphs) > _LARGEST:
                raise SourceError(
                    f"{path}: its graph is larger than 1 GiB; expected one that fits. Export a smaller model."
                )
            read = [json.loads(archive.read(name)) for name in graphs if "config" not in name]
    except OSError as error:
        raise SourceError(
            f"{path}: {error.strerror or error}; expected an exported program. Check the path."
        ) from error
    except (zipfile.BadZipFile, ValueError, RecursionError) as error:
        raise SourceError(
            f"{path}: it is no exported program ({shortened(error)}); expected what torch.export.save writes. "
            "Export the model again."
        ) from error
    if not read:
        raise SourceError(f"{path}: no graph in it; expected what torch.export.save writes. Export the model again.")
    if objects := [name for name in names if "custom_obj" in name]:
        raise SourceError(
            f"{path}: it holds an object ({objects[0]}) that only unpickling would restore; expected tensors alone. "
            "Give the model itself."
        )
    if any(_expressions(graph) for graph in read):
        raise SourceError(
            f"{path}: sizes in it are expressions, which torch would evaluate as code; expected fixed sizes. "
            "Export the model without dynamic_shapes, or give the model itself."
        )


def _expressions(value: Any) -> bool:
    """Whether a serialised graph holds symbolic sizes or guards, which its reader evaluates."""
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, dict):
            if top.get("expr_str") or top.get("guards_code"):
                return True
            stack.extend(top.values())
        elif isinstance(top, list):
            stack.extend(top)
    return False


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Let torch.load inside the block take tensors alone, whatever it is asked for."""
    import torch

    own = torch.load

    def load(*args: Any, **kwargs: Any) -> Any:
        try:
            return own(*args, **{**kwargs, "weights_only": True})
        except Exception as error:
            raise SourceError(
                f"exported program: a part of it is more than tensors ({shortened(error)}); expected tensors alone, as "
                "nothing else is unpickled. Give the model itself."
            ) from error

    torch.load = load
    try:
        yield
    finally:
        torch.load = own


def _check_operators(name: str, program: Any) -> None:
    """Refuse a graph that calls anything but operators of torch and arithmetic."""
    import math

    from idfx.core.torch_private import is_operator

    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            home = getattr(node.target, "__module__", "")
            known = is_operator(node.target) or home in (operator.__name__, "_operator", math.__name__)
            if node.op == "call_function" and not known:
                raise SourceError(
                    f"{name}: its graph calls {node.target}; expected operators of torch. Give the model itself."
                )
