"""A generator and a discriminator, trained against each other (Goodfellow et al., 2014).

Without a penalty on the discriminator's gradient at the data (Mescheder et al., 2018), the two go round in circles: in
40 steps the author's start ended beyond chance with one seed in three, with it never.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from idfx.bench.zoo import Batch, Learner, Problem
from idfx.bench.zoo.problems import ring
from idfx.bench.zoo.small import small
from idfx.core.records import Example

NOISE = 8
PENALTY = 3.0


class GAN(nn.Module):
    """Both, one behind the other."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def stack(inputs: int, outputs: int) -> nn.Sequential:
            layers = (nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2))
            return nn.Sequential(*layers, nn.Linear(width, outputs))

        self.generator, self.discriminator = stack(NOISE, 2), stack(2, 1)

    def forward(self, noise: Tensor) -> Tensor:
        out: Tensor = self.discriminator(self.generator(noise))
        return out


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return 2 E|x − y| − E|x − x′| − E|y − y′| of two samples; 0 for equal distributions (Székely, 2003)."""

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return 2 * torch.cdist(x, y).mean() - within(x) - within(y)


def _loss(model: nn.Module, given: Batch) -> tuple[Tensor, Tensor]:
    """What both minimise, and the distance of what is generated from the data."""
    assert isinstance(model, GAN)
    real, noise = given
    made, real = model.generator(noise), real.requires_grad_()
    fixed = {name: value.detach() for name, value in model.discriminator.named_parameters()}
    true, false = model.discriminator(real), model.discriminator(made.detach())
    (slope,) = torch.autograd.grad(true.sum(), real, create_graph=True)
    told_apart = functional.softplus(-true).mean() + functional.softplus(false).mean()
    fooled = functional.softplus(-functional_call(model.discriminator, fixed, (made,))).mean()
    penalty = PENALTY / 2 * slope.square().sum(1).mean()
    return told_apart + penalty + fooled, energy_distance(real.detach(), made.detach())


@small("gan")
def gan(seed: int) -> Learner:
    """A GAN of a ring; chance is the distance of its centre."""

    def draw(generator: torch.Generator) -> Batch:
        return ring(256, generator), torch.randn(256, NOISE, generator=generator)

    return Learner(GAN(64), Example((torch.randn(2, NOISE),)), Problem(draw, _loss, 2 - 4 / math.pi))
