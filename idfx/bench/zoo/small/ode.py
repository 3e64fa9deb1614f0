"""A residual network in continuous time, integrated by Runge and Kutta's method (Chen et al., 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.zoo import Batch, Learner, Problem
from idfx.bench.zoo.problems import ring
from idfx.bench.zoo.small import small
from idfx.core.records import Example


class ODE(nn.Module):
    """x′ = f(x) from 0 to 1 in four steps of order 4, between a layer in and a layer out."""

    def __init__(self, width: int, steps: int = 4) -> None:
        super().__init__()
        self.steps = steps
        self.stem, self.head = nn.Linear(2, width), nn.Linear(width, 2)
        self.field = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        x, h = self.stem(x), 1 / self.steps
        for _ in range(self.steps):
            k1 = self.field(x)
            k2 = self.field(x + h / 2 * k1)
            k3 = self.field(x + h / 2 * k2)
            k4 = self.field(x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        out: Tensor = self.head(x)
        return out


@small("ode")
def ode(seed: int) -> Learner:
    """Which of two rings, one inside of the other, a point is on."""

    def draw(generator: torch.Generator) -> Batch:
        label = torch.randint(2, (256,), generator=generator)
        return ring(256, generator) * (1 + label.unsqueeze(1)), label

    problem = Problem(draw, lambda m, given: functional.cross_entropy(m(given[0]), given[1]), math.log(2))
    return Learner(ODE(32), Example((torch.randn(2, 2),)), problem)
