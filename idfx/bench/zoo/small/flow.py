"""A normalising flow of affine couplings that start as the identity (RealNVP; Kingma and Dhariwal, 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from idfx.bench.zoo import Batch, Learner, Problem
from idfx.bench.zoo.problems import ring
from idfx.bench.zoo.small import small
from idfx.core.records import Example


class Coupling(nn.Module):
    """One half scales and shifts the other; the last layer starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.last = nn.Linear(width, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x.chunk(2, 1)
        scale, shift = self.last(self.net(kept)).chunk(2, 1)
        scale = torch.tanh(scale)
        return torch.cat([moved * scale.exp() + shift, kept], 1), scale.sum(1)


class Flow(nn.Module):
    """Couplings whose halves take turns; returns the point and the logarithm of the volume."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(width) for _ in range(depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = x.new_zeros(len(x))
        for coupling in self.couplings:
            x, grown = coupling(x)
            volume = volume + grown
        return x, volume


def _loss(model: nn.Module, given: Batch) -> Tensor:
    point, volume = model(given)
    missed: Tensor = (point.square().sum(1) / 2 + math.log(2 * math.pi) - volume).mean()
    return missed


@small("flow")
def flow(seed: int) -> Learner:
    """A flow of a ring of variance 1; chance is the standard normal density, in nats."""
    radius = math.sqrt(2 / (1 + 2 * 0.05**2))  # E|x|² = 2
    problem = Problem(lambda generator: ring(256, generator, radius), _loss, math.log(2 * math.pi * math.e))
    return Learner(Flow(6, 32), Example((torch.randn(2, 2),)), problem)
