"""Convnets for small images: residual ones after He et al., and plain ones."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from idfx.bench.models import Task, draw_, model, needs


def _norm(width: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(width) if norm else nn.Identity()


class _Block(nn.Module):
    """Two 3×3 convolutions with a shortcut, which is a 1×1 convolution if the width changes."""

    def __init__(self, c_in: int, c_out: int, norm: bool) -> None:
        super().__init__()
        stride = 1 if c_in == c_out else 2
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=not norm)
        self.norm1 = _norm(c_out, norm)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=not norm)
        self.norm2 = _norm(c_out, norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=not norm), _norm(c_out, norm))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        out: Tensor = self.relu2(self.shortcut(x) + y)
        return out


@model("resnet")
def resnet(task: Task, *, depth: int = 20, norm: bool = True, width: int = 16) -> nn.Module:
    """CIFAR-style ResNet of 6n + 2 layers in three stages, with or without BatchNorm (He et al., 2016, section 4.2).

    Ours: the shortcut is a projection if the width changes; the weights are PyTorch's own.
    """
    needs(task, "resnet", "images")
    blocks = (depth - 2) // 6
    widths = [width] * blocks + [2 * width] * blocks + [4 * width] * blocks
    return nn.Sequential(
        nn.Conv2d(task.shape[0], width, 3, 1, 1, bias=not norm),
        _norm(width, norm),
        nn.ReLU(),
        *(_Block(a, b, norm) for a, b in pairwise([width, *widths])),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, task.classes),
    )


@model("convnet")
def convnet(task: Task, *, depth: int = 20, norm: bool = False, width: int = 16) -> nn.Module:
    """A plain convnet: alternating 3×3 convolutions and ReLUs without shortcuts; three stages as in `resnet`."""
    needs(task, "convnet", "images")
    layers: list[nn.Module] = []
    c_in = task.shape[0]
    for number in range(depth - 1):
        c_out = width * 2 ** min(2, 3 * number // (depth - 1))
        stride = 2 if layers and c_out != c_in else 1
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=not norm), _norm(c_out, norm), nn.ReLU()]
        c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, task.classes))


class _Mixer(nn.Module):
    """A depthwise convolution, a norm, an MLP over channels and a scale per channel, with a shortcut."""

    def __init__(self, width: int, kernel: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out: Tensor = x + (self.scale * self.fc2(self.act(self.fc1(y)))).permute(0, 3, 1, 2)
        return out


@model("convnext")
def convnext(
    task: Task, *, depth: int = 4, width: int = 64, patch: int = 2, kernel: int = 3, scale: float = 1e-6
) -> nn.Module:
    """A ConvNeXt of one resolution: depthwise convolutions, and LayerScale at `scale` (Liu et al., 2022, section 3.3).

    Linear weights are drawn with standard deviation 0.02, as there; ours: convolutions are PyTorch's own.
    """
    needs(task, "convnext", "images")
    net = nn.Sequential(
        nn.Conv2d(task.shape[0], width, patch, patch),
        *(_Mixer(width, kernel, scale) for _ in range(depth)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(width),
        nn.Linear(width, task.classes),
    )
    draw_(net, 0.02)
    return net
