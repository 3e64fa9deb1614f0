"""A diffusion transformer, whose blocks start closed by zero modulation (Peebles and Xie, 2023: adaLN-Zero)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.zoo import Learner
from idfx.bench.zoo.problems import diffusion
from idfx.bench.zoo.small import small
from idfx.core.records import Example


class Block(nn.Module):
    """Attention and an MLP; shifts, scales and gates come from the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts = self.modulation(functional.silu(condition)).unsqueeze(1).chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        batch, length, width = x.shape
        y = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + gate1 * self.proj(y)
        y = self.norm2(x) * (1 + scale2) + shift2
        out: Tensor = x + gate2 * self.fc2(functional.gelu(self.fc1(y)))
        return out


class DiT(nn.Module):
    """Patches of 2 × 2, sine positions of time, a final layer that starts at zero."""

    def __init__(self, channels: int, side: int, width: int, depth: int) -> None:
        super().__init__()
        self.side, self.channels = side // 2, channels
        self.patch = nn.Conv2d(channels, width, 2, 2)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.side**2, width))
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.final = nn.Linear(width, 2 * width), nn.Linear(width, 4 * channels)
        for layer in (self.modulation, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        waves = time.unsqueeze(1) * 2 ** torch.linspace(0, 8, 16, device=x.device) * math.pi
        condition = self.time(torch.cat([waves.sin(), waves.cos()], 1))
        y = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            y = block(y, condition)
        shift, scale = self.modulation(functional.silu(condition)).unsqueeze(1).chunk(2, -1)
        y = self.final(self.norm(y) * (1 + scale) + shift)
        y = y.view(len(x), self.side, self.side, 2, 2, self.channels).permute(0, 5, 1, 3, 2, 4)
        out: Tensor = y.reshape(x.shape)
        return out


@small("dit")
def dit(seed: int) -> Learner:
    """A diffusion transformer that predicts noise."""
    shape = (3, 16, 16)
    example = Example((torch.randn(2, *shape), torch.rand(2)))
    return Learner(DiT(3, 16, 64, 3), example, diffusion(shape, 16, seed))
