"""Convnets for small images: residual ones after He et al., and plain ones."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from idfx.bench.models import Task, model, needs


def _norm(width: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(width) if norm else nn.Identity()


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the width changes."""

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
    """CIFAR-style ResNet of 6n + 2 layers in three stages, with BatchNorm or with none (He et al., 2016, section 4.2).

    Ours: where the width changes the shortcut is a projection; the weights are PyTorch's own.
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
    """A plain convnet: 3×3 convolutions and ReLU one after the other, no shortcut; three stages as in `resnet`."""
    needs(task, "convnet", "images")
    layers: list[nn.Module] = []
    c_in = task.shape[0]
    for number in range(depth - 1):
        c_out = width * 2 ** min(2, 3 * number // (depth - 1))
        stride = 2 if layers and c_out != c_in else 1
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=not norm), _norm(c_out, norm), nn.ReLU()]
        c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, task.classes))
