"""Texts of the command line → devices, dtypes, arguments and example inputs."""

from __future__ import annotations

import ast
from collections.abc import Sequence

import torch
from torch import Tensor

from idfx.errors import UsageError
from idfx.registry import did_you_mean

FLOATS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DTYPES = {**FLOATS, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}
WORDS = {"true": True, "false": False, "none": None}


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
