"""The data of the suites: `name(key=value, ...)` → samples for training, validation and test; nothing is downloaded.

A loader is a function `load(path, **options)` with the decorator `dataset`. The test samples are always the same; the
validation samples and the order depend only on the seed, so every scheme of a seed gets the same batches.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from idfx.bench.models import Task
from idfx.core.errors import UsageError
from idfx.core.literals import parse_call
from idfx.core.registry import Registry, did_you_mean

TEST_SEED = 20250301  # of everything that is the same for all seeds


class Samples(Protocol):
    """Inputs and targets by number; augmented for training if a generator is given."""

    def __len__(self) -> int: ...

    def take(self, numbers: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of these samples."""
        ...


@dataclass(frozen=True)
class Data:
    """The result of a loader; without `validation`, part of `train` is held out; `facts` go into config.json."""

    task: Task
    train: Samples = field(repr=False)
    test: Samples = field(repr=False)
    validation: Samples | None = field(default=None, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)


Loader = Callable[..., Data]
DATA: Registry[Loader] = Registry("data", "idfx.bench.data")


def dataset(name: str) -> Callable[[Loader], Loader]:
    """Register the decorated function as the loader of a data set."""
    return DATA.register(name)


def load_data(text: str, path: Path | None = None) -> Data:
    """Return a data set.

    Args:
        text: `name` or `name(key=value, ...)`.
        path: the folder with its files, for data sets that need files.

    Raises:
        UsageError: an unknown name or option, or missing files.

    Example:
        >>> data = load_data("digits")
        >>> data.task.shape, len(data.train), len(data.test)
        ((1, 8, 8), 1347, 450)
    """
    name, options = parse_call(text, "data")
    loader = DATA.find(name)
    known = [key for key in inspect.signature(loader).parameters if key != "path"]
    for key in options:
        if key not in known:
            expected = f"expected {', '.join(known)}" if known else "it has none"
            raise UsageError(f"data {text!r}: unknown option {key!r}; {expected}.{did_you_mean(key, known)}")
    return loader(path, **options)


@dataclass(frozen=True)
class Tensors:
    """Samples in memory; `augment` "crop-flip" shifts images by up to `pad` pixels and mirrors half of them."""

    x: Tensor
    y: Tensor
    augment: str = "none"
    pad: int = 4

    def __len__(self) -> int:
        return len(self.x)

    def take(self, numbers: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of these samples."""
        x, y = self.x[numbers], self.y[numbers]
        if generator is not None and self.augment == "crop-flip":
            x = crop_flip(x, self.pad, generator)
        return x, y


def crop_flip(x: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Return images (N, C, H, W) randomly shifted by up to `pad` pixels, padded with zeros, and randomly mirrored."""
    n, _, height, width = x.shape
    padded = functional.pad(x, (pad, pad, pad, pad))
    dy, dx = (torch.randint(0, 2 * pad + 1, (n,), generator=generator) for _ in "yx")
    flip = torch.rand(n, generator=generator) < 0.5
    rows = dy[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + dx[:, None]
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Part:
    """A subset of the samples."""

    whole: Samples
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, numbers: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of these samples of the part."""
        return self.whole.take(self.numbers[numbers], generator)


def generator_of(*words: object) -> torch.Generator:
    """Return a generator that depends only on these arguments.

    Example:
        >>> first = torch.rand(1, generator=generator_of("order", 0, 1))
        >>> bool(first == torch.rand(1, generator=generator_of("order", 0, 1)))
        True
    """
    digest = hashlib.sha256(repr(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def split(data: Data, seed: int, share: float) -> tuple[Samples, Samples]:
    """Return the samples for training and for validation, which depend only on the data, the seed and the share."""
    if data.validation is not None:
        return data.train, data.validation
    order = torch.randperm(len(data.train), generator=generator_of("validation", seed))
    held = max(1, round(share * len(order)))
    return Part(data.train, order[held:]), Part(data.train, order[:held])


def digest_of(*tensors: Tensor) -> str:
    """Return the SHA-256 of the bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
