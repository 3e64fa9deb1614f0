"""Specification → model and example inputs, with the random initialisation deferred.

The model is built on the CPU, where a pending weight takes no time and no memory, and then moved. Values that the
constructor computes (position tables, masks) have the same bytes on every device, and a pending weight is allocated on
the target without a copy. Nothing is downloaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from idfx.building.deferral import DeferredDraws
from idfx.building.parsing import parse_device, parse_dtype, parse_inputs
from idfx.capture.inputs import laid_over
from idfx.capture.nested import map_example
from idfx.capture.wrappers import unwrap
from idfx.core.errors import IdfxError, ResourceError, SourceError, out_of_memory, shortened
from idfx.core.records import Example
from idfx.sources import resolve


@dataclass(frozen=True)
class Built:
    """A model as built by its source, an example input, and the pending draws.

    `example` is None if none could be derived. Before the model is run or saved, every pending weight must be
    overwritten (`pending.discard`) or drawn (`pending.materialize`). `suspects` are the parameters and buffers that may
    hold memory which nobody wrote, and `unwritten` the number of such entries of each, once
    `idfx.building.unwritten.left` has found it.
    """

    model: nn.Module = field(repr=False)
    example: Example | None = field(repr=False)
    pending: DeferredDraws = field(repr=False)
    spec: str
    suspects: frozenset[str] = frozenset()
    unwritten: Mapping[str, int] = field(default_factory=dict)

    def drawn(self) -> nn.Module:
        """Make the pending draws, and return the model with its author's values."""
        self.pending.materialize(self.model)
        return self.model


def build(
    spec: str,
    *,
    arguments: Mapping[str, object] | None = None,
    input_shapes: Sequence[str] = (),
    inputs: Sequence[str] = (),
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
) -> Built:
    """Return the model of a specification, without computing random values that are never read.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, `path/to/file.py:factory` or `package.module:factory`.
        arguments: keyword arguments for the model.
        input_shapes: shapes of the example inputs, batch included, which replace those of the source; with a name, as
            in `mask=1,16:bool`, they replace only this argument.
        inputs: values by name, as in `use_cache=false`, or .safetensors files with tensors by name; they also replace
            single arguments.
        device: "auto" (CUDA if available), "cpu", "cuda" or "cuda:n".
        dtype: of the floating-point parameters, buffers and inputs; None leaves them as built.
        seed: of every draw. The global random states do not change.

    Raises:
        UsageError: an unknown source, model, device or dtype, or a malformed input.
        SourceError: the model could not be built.
        ResourceError: memory ran out.

    Example:
        >>> built = build("torchvision:squeezenet1_1", device="cpu")
        >>> built.example.args[0].shape
        torch.Size([1, 3, 224, 224])
        >>> "classifier.1.weight" in built.pending.names(built.model)
        True
    """
    place, kind = parse_device(device), parse_dtype(dtype)
    given = parse_inputs(input_shapes, inputs, seed)
    found, rest = resolve(spec)
    pending = DeferredDraws(seed)
    with _reporting(spec, place):
        with _seeded(seed), pending:
            model, example = found.build(rest, dict(arguments or {}))
            pending.materialize_unregistered(model)
        suspects = pending.suspects(unwrap(model))
        pending.move_(model, place, kind)
        pending.attach(model)
        if given.args:
            example = given
        elif given.kwargs:
            example = laid_over(unwrap(model), example or Example(), given.kwargs)
        if example is not None:
            example = map_example(example, lambda one: one.to(place, kind if one.is_floating_point() else None))
    return Built(model, example, pending, spec, suspects)


def load(
    spec: str,
    *,
    arguments: Mapping[str, object] | None = None,
    input_shapes: Sequence[str] = (),
    inputs: Sequence[str] = (),
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the model of a specification with its own random initialisation, and example inputs.

    Arguments and errors are those of `build`. The inputs are an empty tuple if none could be derived; keyword inputs
    are in `build(spec).example.kwargs`.

    Example:
        >>> model, inputs = load("torchvision:squeezenet1_1")
        >>> model.eval()(*inputs).shape
        torch.Size([1, 1000])
    """
    built = build(
        spec, arguments=arguments, input_shapes=input_shapes, inputs=inputs, device=device, dtype=dtype, seed=seed
    )
    with _reporting(spec, parse_device(device)):
        built.pending.materialize(built.model)
    return built.model, built.example.args if built.example is not None else ()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random states of the CPU inside the block, and restore them afterwards."""
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
    """Turn any error of a library during building into one line about the specification."""
    try:
        yield
    except IdfxError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise ResourceError(
                f"{spec}: out of memory on {device}, {_free(device)} ({shortened(error)}); expected the"
                " weights to fit. Use a smaller --dtype, another --device, or a smaller model."
            ) from error
        raise SourceError(
            f"{spec}: building it raised {shortened(error)}; expected a model. Check --model-arg, or see --debug."
        ) from error


def _free(device: torch.device) -> str:
    if device.type != "cuda":
        return "which has too little"
    free, total = torch.cuda.mem_get_info(device)
    return f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f} GiB"
