"""Images: scikit-learn's digits, CIFAR and folders of images."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idfx.bench.data import TEST_SEED, Data, Tensors, dataset, digest_of
from idfx.bench.models import Task
from idfx.core.errors import UsageError

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@dataset("digits")
def digits(path: Path | None) -> Data:
    """The 1,797 digits of scikit-learn, 8 × 8 pixels, one channel; a quarter is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            "data digits: scikit-learn is not installed; expected it. Install it with pip install 'idfx[bench]'."
        ) from error
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(TEST_SEED))
    test, train = order[:450], order[450:]
    return Data(
        Task("images", (1, 8, 8), 10),
        Tensors(images[train], labels[train]),
        Tensors(images[test], labels[test]),
        facts={"sha256": digest_of(images, labels)},
    )


def _cifar(path: Path | None, name: str, folder: str, classes: int, augment: str) -> Data:
    from torchvision import datasets

    where = f"data {name.lower()}"
    if path is None:
        raise UsageError(
            f"{where}: no --data; expected the folder that contains {folder}. "
            "Get it from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it; nothing is downloaded."
        )
    root = path.parent if path.name == folder else path
    try:
        parts = [getattr(datasets, name)(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise UsageError(
            f"{where}: {root / folder} is missing or incomplete; expected the files of CIFAR for Python. "
            f"Unpack https://www.cs.toronto.edu/~kriz/cifar.html into {root}."
        ) from error
    images, labels = [], []
    for part in parts:
        x = torch.from_numpy(part.data).permute(0, 3, 1, 2).float() / 255
        images.append((x - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1))
        labels.append(torch.tensor(part.targets, dtype=torch.int64))
    return Data(
        Task("images", (3, 32, 32), classes),
        Tensors(images[0], labels[0], augment),
        Tensors(images[1], labels[1]),
        facts={"sha256": digest_of(*images, *labels)},
    )


@dataset("cifar10")
def cifar10(path: Path | None, *, augment: str = "crop-flip") -> Data:
    """CIFAR-10 from `--data`, shifted by up to 4 pixels and mirrored in training."""
    return _cifar(path, "CIFAR10", "cifar-10-batches-py", 10, augment)


@dataset("cifar100")
def cifar100(path: Path | None, *, augment: str = "crop-flip") -> Data:
    """CIFAR-100 from `--data`, shifted by up to 4 pixels and mirrored in training."""
    return _cifar(path, "CIFAR100", "cifar-100-python", 100, augment)


@dataclass(frozen=True)
class Folder:
    """Images in files, decoded on demand: a random crop in training, the centre crop for evaluation."""

    files: list[tuple[str, int]] = field(repr=False)
    size: int
    threads: int

    def __len__(self) -> int:
        return len(self.files)

    def take(self, numbers: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of these samples."""
        chosen = [self.files[number] for number in numbers.tolist()]
        draws = [None if generator is None else torch.rand(5, generator=generator).tolist() for _ in chosen]
        with ThreadPoolExecutor(self.threads) as pool:
            images = list(pool.map(self._read, [file for file, _ in chosen], draws))
        return torch.stack(images), torch.tensor([label for _, label in chosen])

    def _read(self, file: str, draws: list[float] | None) -> Tensor:
        from PIL import Image
        from torchvision.transforms.functional import pil_to_tensor

        with Image.open(file) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        if draws is None:
            side = min(width, height) * 0.875
            w = h = side
            left, top = (width - side) / 2, (height - side) / 2
        else:
            area = width * height * (0.08 + 0.92 * draws[0])
            ratio = math.exp(math.log(4 / 3) * (2 * draws[1] - 1))
            w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
            left, top = draws[2] * (width - w), draws[3] * (height - h)
        box = (left, top, left + w, top + h)
        pixels: Any = pil_to_tensor(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box))
        x: Tensor = (pixels.float() / 255 - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1)
        return x.flip(2) if draws is not None and draws[4] < 0.5 else x


@dataset("imagefolder")
def imagefolder(path: Path | None, *, size: int = 224, threads: int = 8) -> Data:
    """Images of any number of classes in `--data`: train/CLASS/FILE and val/CLASS/FILE, the layout of ImageNet."""
    from torchvision.datasets import ImageFolder

    if path is None or not (path / "train").is_dir() or not (path / "val").is_dir():
        raise UsageError(
            f"data imagefolder: {path or 'no --data'}; expected a folder with train/CLASS/FILE and val/CLASS/FILE. "
            "Give it with --data."
        )
    parts = []
    for name in ("train", "val"):
        try:
            parts.append(ImageFolder(str(path / name)))
        except FileNotFoundError as error:
            raise UsageError(f"data imagefolder: {error}; expected images in {path / name}/CLASS/.") from error
    if parts[0].classes != parts[1].classes:
        raise UsageError(
            f"data imagefolder: {path}: val and train have different classes; expected equal ones. Fix it."
        )
    train, test = (Folder(part.samples, size, threads) for part in parts)
    facts = {"files": [len(train), len(test)], "classes": len(parts[0].classes)}
    return Data(Task("images", (3, size, size), len(parts[0].classes)), train, test, facts=facts)
