"""Command-line texts → devices, dtypes, arguments and example inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idfx.core.errors import UsageError, shortened
from idfx.core.literals import read_value
from idfx.core.records import Example
from idfx.core.registry import did_you_mean

FLOATS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DTYPES = {**FLOATS, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}


def parse_device(device: str | torch.device) -> torch.device:
    """Return the device, with its index if it is a CUDA device.

    Raises:
        UsageError: the device is unknown or not available.
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
    """Return a floating-point dtype by its name.

    Raises:
        UsageError: it is unknown or not a floating-point dtype.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in FLOATS:
        raise UsageError(
            f"--dtype {name}: not a dtype for weights; expected one of {', '.join(FLOATS)}.{did_you_mean(name, FLOATS)}"
        )
    return FLOATS[name]


def parse_arguments(pairs: Sequence[str]) -> dict[str, object]:
    """Return the values of `key=value` texts: Python literals, true, false and none; anything else is text.

    Raises:
        UsageError: a text without a key or "=", or a key given twice.

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
            raise UsageError(f"--model-arg {pair}: {key} is given twice; expected once. Leave one out.")
        values[key] = read_value(text)
    return values


def parse_shapes(texts: Sequence[str], seed: int = 0) -> tuple[Tensor, ...]:
    """Return one example input for each `1,3,224,224` or `1,16:int64`, on the CPU.

    Floating-point inputs are standard normal. int64, int32 and bool inputs are drawn from {0, 1}, which are valid in
    every vocabulary and mask; each row of two or more contains both, so no mask hides a whole row. The draws depend
    only on the seed and the position of the input.

    Args:
        texts: comma-separated sizes, batch first, then optionally `:dtype` (default float32).
        seed: of the draws.

    Raises:
        UsageError: a text that is not of this form.

    Example:
        >>> image, tokens = parse_shapes(("1,3,8,8", "1,16:int64"))
        >>> image.shape, tokens.dtype, int(tokens.max())
        (torch.Size([1, 3, 8, 8]), torch.int64, 1)
    """
    return tuple(_drawn(text, text, (seed + place) % 2**63) for place, text in enumerate(texts))


def parse_inputs(shapes: Sequence[str], inputs: Sequence[str], seed: int = 0) -> Example:
    """Return the inputs given on the command line: those without a name in order, the others by name.

    Args:
        shapes: as in `parse_shapes`, or with the name of the argument: `mask=1,16:bool`.
        inputs: values by name, as in `use_cache=false`, or .safetensors files with tensors by name.
        seed: of the draws.

    Raises:
        UsageError: a malformed text, a name given twice, or a file that cannot be read.

    Example:
        >>> found = parse_inputs(("1,3", "mask=1,8:bool"), ("use_cache=false", "mode=fast"))
        >>> [list(tensor.shape) for tensor in found.args], {name: type(value) for name, value in found.kwargs.items()}
        ([[1, 3]], {'mask': <class 'torch.Tensor'>, 'use_cache': <class 'bool'>, 'mode': <class 'str'>})
    """
    args: list[Tensor] = []
    kwargs: dict[str, object] = {}

    def name_it(option: str, name: str, value: object) -> None:
        if name in kwargs:
            raise UsageError(f"{option}: {name} is given twice; expected once. Leave one out.")
        kwargs[name] = value

    for place, text in enumerate(shapes):
        name, equals, sizes = (part.strip() for part in text.partition("="))
        if equals and not name.isidentifier():
            raise UsageError(
                f"--input-shape {text}: {name!r} is not a name; expected an argument of the forward. "
                "Write, for example, mask=1,16:bool."
            )
        value = _drawn(text, sizes if equals else text, (seed + place) % 2**63)
        if equals:
            name_it(f"--input-shape {text}", name, value)
        else:
            args.append(value)
    for text in inputs:
        name, equals, word = (part.strip() for part in text.partition("="))
        if equals and name.isidentifier():
            if word.endswith(".safetensors"):
                raise UsageError(
                    f"--input {text}: a file for one argument; expected only the file, with tensors named like the "
                    f"arguments of the forward. Write --input {word}."
                )
            name_it(f"--input {text}", name, read_value(word))
        else:
            for key, tensor in _tensors_of(text).items():
                name_it(f"--input {text}", key, tensor)
    return Example(tuple(args), kwargs)


def _drawn(text: str, shape: str, seed: int) -> Tensor:
    sizes, colon, kind = shape.partition(":")
    numbers = [part.strip() for part in sizes.split(",")]
    dtype = DTYPES.get(kind.strip()) if colon else torch.float32
    if dtype is None or not all(part.isdecimal() and int(part) > 0 for part in numbers):
        raise UsageError(
            f"--input-shape {text}: not a shape; expected positive sizes, batch first, then optionally"
            f" :dtype ({', '.join(DTYPES)}). Write, for example, 1,3,224,224 or 1,16:int64."
        )
    lengths = [int(part) for part in numbers]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(lengths, generator=generator).to(dtype)
    drawn = torch.randint(2, lengths, generator=generator)
    if lengths[-1] > 1:
        last = drawn[..., -1]
        last.copy_(torch.where(drawn.amin(-1) == drawn.amax(-1), 1 - last, last))
    return drawn.to(dtype)


def _tensors_of(path: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file; no other format is read, and nothing is unpickled."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.endswith(".safetensors"):
        raise UsageError(
            f"--input {path}: neither NAME=VALUE nor a .safetensors file; expected one of them. Write the tensors"
            " with safetensors.torch.save_file({'x': x}, 'inputs.safetensors')."
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        found = "there is no such file" if isinstance(error, FileNotFoundError) else shortened(error)
        raise UsageError(
            f"--input {path}: {found}; expected a file of tensors named like the arguments of the forward. Write it"
            " with safetensors.torch.save_file."
        ) from error
