"""Detection, segmentation and video of torchvision, with their own losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.zoo import Batch, Learner, Problem, zoo_set
from idfx.bench.zoo.problems import CLASSES, patterns, pictures
from idfx.building.build import build
from idfx.core.errors import SourceError
from idfx.core.records import Example
from idfx.sources import standard_normal

SIDE = 64
KINDS = 4  # of things to find, or of areas
DETECTION: Mapping[str, dict[str, Any]] = {
    "ssdlite320_mobilenet_v3_large": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"min_size": SIDE, "max_size": SIDE},
    "fcos_resnet50_fpn": {"min_size": SIDE, "max_size": SIDE},
    "retinanet_resnet50_fpn": {"min_size": SIDE, "max_size": SIDE},
}
SEGMENTATION = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
VIDEO = ("mc3_18", "r2plus1d_18", "r3d_18", "swin3d_t")
CLIP = (3, 4, 32, 32)


def names() -> list[str]:
    """Return models of each of the three."""
    return [*DETECTION, *SEGMENTATION, *VIDEO]


@zoo_set("torchvision", names)
def learner(name: str, seed: int) -> Learner:
    """Detection, segmentation and video of torchvision with their own losses; other names on patterns in noise."""
    if name in DETECTION:
        return _detector(name, seed)
    if name in SEGMENTATION:
        return _segmenter(name, seed)
    shape, batch = (CLIP if name in VIDEO else (3, SIDE, SIDE)), 8
    model = _built(name, {"num_classes": CLASSES}, seed)
    example = Example((standard_normal(2, *shape),))
    return Learner(model, example, pictures(shape, batch, seed), {"input": [batch, *shape]})


def _built(name: str, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    built = build(f"torchvision:{name}", arguments=dict(arguments), device="cpu", seed=seed)
    built.pending.materialize(built.model)
    return built.model


def _scene(known: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """An image of noise with two things in it, one in each half: its boxes and its kinds, from 1."""
    image = torch.randn(3, SIDE, SIDE, generator=generator)
    boxes, kinds = [], torch.randint(1, KINDS, (2,), generator=generator)
    for half, kind in enumerate(kinds.tolist()):
        width, height = torch.randint(14, 29, (2,), generator=generator).tolist()
        left = half * SIDE // 2 + int(torch.randint(0, SIDE // 2 - width + 1, (1,), generator=generator))
        top = int(torch.randint(0, SIDE - height + 1, (1,), generator=generator))
        image[:, top : top + height, left : left + width] += 2 * known[kind, :, :height, :width]
        boxes.append([left, top, left + width, top + height])
    return image, torch.tensor(boxes, dtype=torch.float32), kinds


def _detector(name: str, seed: int, batch: int = 2) -> Learner:
    """The sum of the losses that the model itself returns; no formula gives that of chance."""
    model = _built(name, {"num_classes": KINDS, **DETECTION[name]}, seed)
    known = patterns((3, 32, 32), KINDS, seed)

    def draw(generator: torch.Generator) -> Batch:
        scenes = [_scene(known, generator) for _ in range(batch)]
        targets = [{"boxes": boxes, "labels": kinds} for _, boxes, kinds in scenes]
        return [image for image, _, _ in scenes], targets

    def loss(model: nn.Module, given: Batch) -> Tensor:
        losses = model(*given)
        if not isinstance(losses, dict):
            raise SourceError(f"torchvision:{name}: it returned no losses; expected a dict of them in training.")
        return torch.stack([*losses.values()]).sum()

    example = Example(([standard_normal(3, SIDE, SIDE), standard_normal(3, SIDE, SIDE)],))
    return Learner(model, example, Problem(draw, loss, None), {"input": [batch, 3, SIDE, SIDE]})


def _segmenter(name: str, seed: int, batch: int = 4) -> Learner:
    """Each quarter of an image has a pattern of one of four kinds: cross-entropy of its pixels, ln 4 by chance."""
    model = _built(name, {"num_classes": KINDS}, seed)
    known = patterns((3, SIDE // 2, SIDE // 2), KINDS, seed)

    def draw(generator: torch.Generator) -> Batch:
        kinds = torch.randint(KINDS, (batch, 2, 2), generator=generator)
        rows = [torch.cat([known[kinds[:, row, column]] for column in range(2)], 3) for row in range(2)]
        image = torch.cat(rows, 2)
        labels = kinds.repeat_interleave(SIDE // 2, 1).repeat_interleave(SIDE // 2, 2)
        return image + torch.randn(image.shape, generator=generator), labels

    def loss(model: nn.Module, given: Batch) -> Tensor:
        return functional.cross_entropy(model(given[0])["out"], given[1])

    example = Example((standard_normal(2, 3, SIDE, SIDE),))
    return Learner(model, example, Problem(draw, loss, math.log(KINDS)), {"input": [batch, 3, SIDE, SIDE]})
