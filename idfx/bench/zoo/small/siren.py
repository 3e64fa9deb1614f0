"""A network of sines for functions of coordinates, with its own first values (Sitzmann et al., 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from idfx.bench.data import generator_of
from idfx.bench.zoo import Learner
from idfx.bench.zoo.problems import fitting
from idfx.bench.zoo.small import small
from idfx.core.records import Example

OMEGA = 30.0


class Sine(nn.Module):
    """sin(30 (W x + b)); the first layer is drawn from ±1/inputs, others from ±√(6/inputs)/30."""

    def __init__(self, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / OMEGA
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(OMEGA * self.linear(x))


@small("siren")
def siren(seed: int) -> Learner:
    """A SIREN that fits a picture of waves."""
    generator = generator_of("waves", seed)
    direction, phase = 4 * torch.randn(2, 6, generator=generator), 6 * torch.rand(6, generator=generator)
    width = 64
    last = nn.Linear(width, 1)
    bound = math.sqrt(6 / width) / OMEGA
    nn.init.uniform_(last.weight, -bound, bound)
    model = nn.Sequential(Sine(2, width, True), Sine(width, width, False), Sine(width, width, False), last)
    problem = fitting(lambda x: torch.sin(x @ direction + phase).sum(1, keepdim=True), 2, 512)
    return Learner(model, Example((torch.rand(2, 2),)), problem)
