"""Specification → model and example inputs, the random initialisation put off.

The model is built on the CPU, where a pending weight takes no time and no memory, and then moved: what an
author computes (position tables, masks) has the same bytes on every device, and a weight that nobody drew is
allocated on the target without ever having been copied. Nothing is downloaded.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idfx.deferral import DeferredDraws
from idfx.errors import IdfxError, SourceError, UsageError
from idfx.records import Example
from idfx.registry import did_you_mean
from idfx.sources import resolve, shortened

FLOATS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DTYPES = {**FLOATS, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}
WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Built:
    """A model as its source builds it, an example input for it, and the draws that are still pending.

    `example` is None where none could be derived. Before the model is run or saved, every pending weight has
    to be overwritten (`pending.discard`) or drawn (`pending.settle`).
    """

    model: nn.Module = field(repr=False)
    example: Example | None = field(repr=False)
    pending: DeferredDraws = field(repr=False)
    spec: str


def build(
    spec: str,
    *,
    arguments: Mapping[str, object] | None = None,
    input_shapes: Sequence[str] = (),
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
) -> Built:
    """Return the model of a specification, without computing the random values that nobody has read.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, `path/to/file.py:factory` or `package.module:factory`.
        arguments: keyword arguments for the model.
        input_shapes: shapes of the example inputs, batch included, instead of what the source offers.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:n".
        dtype: of the floating parameters, buffers and inputs; None leaves them as built.
        seed: of every draw. The global random states are left as they were.

    Raises:
        UsageError: an unknown source, model, device or dtype, or a malformed shape.
        SourceError: the model could not be built.

    Example:
        >>> built = build("torchvision:squeezenet1_1", device="cpu")
        >>> built.example.args[0].shape
        torch.Size([1, 3, 224, 224])
        >>> "classifier.1.weight" in built.pending.names(built.model)
        True
    """
    place, kind = parse_device(device), parse_dtype(dtype)
    inputs = parse_shapes(input_shapes, seed)
    found, rest = resolve(spec)
    pending = DeferredDraws(seed)
    with _reporting(spec, place):
        with _seeded(seed), pending:
            model, example = found.build(rest, dict(arguments or {}))
            pending.settle_strays(model)
        pending.move_(model, place, kind)
        if inputs:
            example = Example(inputs)
        if example is not None:
            example = Example(_placed(example.args, place, kind), _placed(dict(example.kwargs), place, kind))
    return Built(model, example, pending, spec)


def load(
    spec: str,
    *,
    arguments: Mapping[str, object] | None = None,
    input_shapes: Sequence[str] = (),
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the model of a specification with its author's own random initialisation, and example inputs.

    The arguments are those of `build`, which also says what is raised. The inputs are an empty tuple where
    none could be derived; keyword inputs are in `build(spec).example.kwargs`.

    Example:
        >>> model, inputs = load("torchvision:squeezenet1_1")
        >>> model.eval()(*inputs).shape
        torch.Size([1, 1000])
    """
    built = build(spec, arguments=arguments, input_shapes=input_shapes, device=device, dtype=dtype, seed=seed)
    with _reporting(spec, parse_device(device)):
        built.pending.settle(built.model)
    return built.model, built.example.args if built.example is not None else ()


def parse_device(device: str | torch.device) -> torch.device:
    """Return the device, with its index if it is a CUDA device.

    Raises:
        UsageError: no such device, here or at all.
    """
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise UsageError(f"--device {name}: unknown device; expected auto, cpu, cuda or cuda:n. Choose one.")
    if not torch.cuda.is_available():
        raise UsageError(f"--device {name}: there is no CUDA device here; expected one. Use --device cpu.")
    count = torch.cuda.device_count()
    number = int(index) if index else torch.cuda.current_device()
    if number >= count:
        raise UsageError(
            f"--device {name}: there are {count} CUDA devices; expected cuda:0 to cuda:{count - 1}. Choose one of them."
        )
    return torch.device("cuda", number)


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a floating dtype by its name.

    Raises:
        UsageError: it is unknown, or no floating dtype.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in FLOATS:
        raise UsageError(
            f"--dtype {name}: no dtype for weights; expected one of {', '.join(FLOATS)}.{did_you_mean(name, FLOATS)}"
        )
    return FLOATS[name]


def parse_arguments(pairs: Sequence[str]) -> dict[str, object]:
    """Return the values of `key=value` texts: Python literals, true, false and none; anything else is text.

    Raises:
        UsageError: a text without key or "=", or a key given twice.

    Example:
        >>> parse_arguments(("a=1", "b=true", "c=[1, 2]", "d=avg"))
        {'a': 1, 'b': True, 'c': [1, 2], 'd': 'avg'}
    """
    values: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key.isidentifier():
            raise UsageError(
                f"--model-arg {pair}: not of the form key=value; expected for example drop_rate=0.1. Correct it."
            )
        if key in values:
            raise UsageError(f"--model-arg {pair}: {key} is given twice; expected it once. Leave one out.")
        values[key] = WORDS[text.lower()] if text.lower() in WORDS else _literal(text)
    return values


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def parse_shapes(texts: Sequence[str], seed: int = 0) -> tuple[Tensor, ...]:
    """Return one example input for each `1,3,224,224` or `1,16:int64`, on the CPU.

    Floating inputs are standard normal; int64, int32 and bool inputs are drawn from {0, 1}, which every
    vocabulary and every mask has. The draws follow the seed and the place of the input alone.

    Args:
        texts: comma-separated sizes, batch first, then optionally `:dtype` (float32 if left out).
        seed: of the draws.

    Raises:
        UsageError: a text that is not of this form.

    Example:
        >>> image, tokens = parse_shapes(("1,3,8,8", "1,16:int64"))
        >>> image.shape, tokens.dtype, int(tokens.max())
        (torch.Size([1, 3, 8, 8]), torch.int64, 1)
    """
    inputs = []
    for place, text in enumerate(texts):
        sizes, colon, name = text.partition(":")
        numbers = [part.strip() for part in sizes.split(",")]
        dtype = DTYPES.get(name.strip()) if colon else torch.float32
        if dtype is None or not all(part.isdecimal() and int(part) > 0 for part in numbers):
            raise UsageError(
                f"--input-shape {text}: not a shape; expected positive sizes, batch first, then optionally"
                f" :dtype ({', '.join(DTYPES)}). Write for example 1,3,224,224 or 1,16:int64."
            )
        shape = [int(part) for part in numbers]
        generator = torch.Generator(device="cpu").manual_seed((seed + place) % 2**63)
        if dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            inputs.append(torch.randint(2, shape, generator=generator).to(dtype))
    return tuple(inputs)


def _placed(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Return the same nest of lists, tuples and mappings, its tensors moved."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_placed(item, device, dtype) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_placed(item, device, dtype) for item in value)
    if type(value) is dict:
        return {key: _placed(item, device, dtype) for key, item in value.items()}
    return value


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random states of the CPU inside the block, and put them back as they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed % 2**63)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


@contextmanager
def _reporting(spec: str, device: torch.device) -> Iterator[None]:
    """Turn what a library raises while building into one line about the specification."""
    try:
        yield
    except IdfxError:
        raise
    except Exception as error:
        if _out_of_memory(error):
            raise IdfxError(
                f"{spec}: out of memory on {device}, {_free(device)} ({shortened(error)}); expected the"
                " weights to fit. Use a smaller --dtype, another --device, or a smaller model."
            ) from error
        raise SourceError(
            f"{spec}: building it raised {shortened(error)}; expected a model. Check --model-arg, or see --debug."
        ) from error


def _out_of_memory(error: Exception) -> bool:
    told = str(error)
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "out of memory" in told
        or "can't allocate memory" in told
        or "not enough memory" in told
    )


def _free(device: torch.device) -> str:
    if device.type != "cuda":
        return "which has too little"
    free, total = torch.cuda.mem_get_info(device)
    return f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f} GiB"
