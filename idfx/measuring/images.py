"""The user's images → a batch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idfx.capture.nested import map_example, tensors_in
from idfx.core.errors import UsageError
from idfx.core.records import Example

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"})
LOOKED_AT = 100_000  # files
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision normalises


def images(path: Path, example: Example, samples: int) -> tuple[Example, str]:
    """Return images as a batch, scaled to the size of the example and normalised as torchvision's models expect.

    Args:
        path: an image, or a folder with images at any depth; the first ones by name are used, each folder before its
            subfolders.
        example: one floating-point tensor (1, channels, height, width) with 1 or 3 channels.
        samples: the maximum number of images.

    Raises:
        UsageError: no such file, no image in the folder, or a model whose input is not an image.
    """
    tensors = list(tensors_in((example.args, dict(example.kwargs))))
    wanted = tensors[0] if len(tensors) == 1 else None
    if wanted is None or wanted.dim() != 4 or wanted.shape[1] not in (1, 3) or not wanted.is_floating_point():
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors) or "no tensor"
        raise UsageError(
            f"--batch {path}: the model takes {shapes}; expected one image. Give --input FILE.safetensors."
        )
    found = [path] if path.is_file() else list(itertools.islice(_within(path), samples))
    if not found:
        raise UsageError(
            f"--batch {path}: no images in it; expected a file or a folder with {', '.join(sorted(IMAGES))}."
        )
    batch, number = torch.cat([_image(one, wanted) for one in found]), len(found)
    name = str(path) if path.is_dir() else path.name
    words = f"{number} image{'s' if number > 1 else ''} of {name}, normalised with ImageNet's mean and deviation"

    def place(tensor: Tensor) -> Tensor:
        return batch.to(tensor.device, tensor.dtype)

    return map_example(example, place), words


def _within(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder by name, then those of its subfolders; raise UsageError if there are too few."""
    looked = 0
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            looked += 1
            if looked > LOOKED_AT:
                raise UsageError(
                    f"--batch {folder}: too few images among its first {LOOKED_AT:,} files; expected a folder of "
                    "images. Name a subfolder that contains them."
                )
            if Path(name).suffix.lower() in IMAGES:
                yield Path(place, name)


def _image(path: Path, wanted: Tensor) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import functional

    channels, height, width = wanted.shape[1:]
    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    try:
        read: Any = decode_image(str(path), mode)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--batch {path}: it cannot be decoded; expected an image. Leave it out.") from error
    short = max(height, width)
    scaled = functional.center_crop(functional.resize(read, [short], antialias=True), [height, width])
    values = functional.to_dtype(scaled, torch.float32, scale=True)
    mean, deviation = (MEAN, DEVIATION) if channels == 3 else ((sum(MEAN) / 3,), (sum(DEVIATION) / 3,))
    normalised: Tensor = functional.normalize(values, list(mean), list(deviation)).unsqueeze(0)
    return normalised
