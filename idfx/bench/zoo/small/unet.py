"""A U-Net: skips that are concatenated, residual blocks inside (Ronneberger et al., 2015; blocks as in DDPM, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.zoo import Learner
from idfx.bench.zoo.problems import denoising
from idfx.bench.zoo.small import small
from idfx.core.records import Example


class Block(nn.Module):
    """Two convolutions behind group norms, with a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        out: Tensor = self.shortcut(x) + self.conv2(functional.silu(self.norm2(y)))
        return out


class UNet(nn.Module):
    """Three resolutions."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down1, self.pool1 = Block(width, width), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.down2, self.pool2 = Block(2 * width, 2 * width), nn.Conv2d(2 * width, 2 * width, 3, 2, 1)
        self.middle = Block(2 * width, 2 * width)
        self.up2 = nn.ConvTranspose2d(2 * width, 2 * width, 2, 2)
        self.join2 = Block(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join1 = Block(2 * width, width)
        self.norm, self.head = nn.GroupNorm(4, width), nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(self.stem(x))
        low = self.down2(self.pool1(high))
        y = self.middle(self.pool2(low))
        y = self.join2(torch.cat([self.up2(y), low], 1))
        y = self.join1(torch.cat([self.up1(y), high], 1))
        out: Tensor = self.head(functional.silu(self.norm(y)))
        return out


@small("unet")
def unet(seed: int) -> Learner:
    """A U-Net that takes noise away."""
    shape = (3, 16, 16)
    return Learner(UNet(3, 16), Example((torch.randn(2, *shape),)), denoising(shape, 16, seed))
