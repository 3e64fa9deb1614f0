"""A Kolmogorov-Arnold network: a learned function on every edge (Liu et al., 2024), from Gaussian bumps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.zoo import Learner
from idfx.bench.zoo.problems import fitting
from idfx.bench.zoo.small import small
from idfx.core.records import Example


class Edges(nn.Module):
    """The sum over the inputs of SiLU times a weight and of a learned mixture of bumps."""

    centres: Tensor

    def __init__(self, inputs: int, outputs: int, bumps: int = 8) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.empty(outputs, inputs))
        self.spline = nn.Parameter(0.1 / bumps * torch.randn(outputs, inputs, bumps))
        nn.init.kaiming_uniform_(self.base, math.sqrt(5))
        self.register_buffer("centres", torch.linspace(-1.5, 1.5, bumps))

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-(((x.unsqueeze(-1) - self.centres) * 2.5) ** 2))
        return functional.silu(x) @ self.base.T + torch.einsum("bik,oik->bo", bumps, self.spline)


@small("kan")
def kan(seed: int) -> Learner:
    """A KAN that fits exp(sin(πx) + y²), the example of its paper."""
    problem = fitting(lambda x: torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2), 2, 256)
    return Learner(nn.Sequential(Edges(2, 8), Edges(8, 8), Edges(8, 1)), Example((torch.rand(2, 2),)), problem)
