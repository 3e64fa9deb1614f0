"""Adapters on a frozen base: low-rank ones (Hu et al., 2022), and with a direction and a size (Liu et al., 2024)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.data import generator_of
from idfx.bench.zoo import Batch, Learner, Problem
from idfx.bench.zoo.small import small
from idfx.core.records import Example

RANK, WIDTH = 4, 32


class LoRA(nn.Module):
    """W x + B A x · α/r with a frozen W, and a B that starts at zero."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = nn.Linear(base.in_features, RANK, False), nn.Linear(RANK, base.out_features, False)
        nn.init.kaiming_uniform_(self.a.weight, math.sqrt(5))
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + 2.0 * self.b(self.a(x))
        return out


class DoRA(nn.Module):
    """m · V / |V| with V = W + B A; m starts as the norm of the rows of W."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.empty(RANK, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK))
        nn.init.kaiming_uniform_(self.a, math.sqrt(5))
        self.size = nn.Parameter(base.weight.detach().norm(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + 2.0 * self.b @ self.a
        return functional.linear(x, self.size * weight / weight.norm(dim=1, keepdim=True), self.base.bias)


class Block(nn.Module):
    """A residual MLP whose linear layers can be wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fc1: nn.Module = nn.Linear(WIDTH, 2 * WIDTH)
        self.fc2: nn.Module = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm(x))))
        return out


def _learner(adapter: type[LoRA] | type[DoRA], seed: int) -> Learner:
    """A base, and what it is to become: the same with another matrix of rank 2 added to every weight."""
    base = nn.Sequential(*(Block() for _ in range(3)))
    teacher = copy.deepcopy(base)
    generator = generator_of("teacher", seed)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.dim() == 2:
                left, right = (torch.randn(n, 2, generator=generator) for n in parameter.shape)
                parameter.add_(left @ right.T / WIDTH)
        sample = torch.randn(4096, WIDTH, generator=generator)
        gap = (teacher(sample) - base(sample)).square().mean()
    model = copy.deepcopy(base).requires_grad_(False)
    for block in model:
        assert isinstance(block, Block) and isinstance(block.fc1, nn.Linear) and isinstance(block.fc2, nn.Linear)
        block.fc1, block.fc2 = adapter(block.fc1), adapter(block.fc2)

    def draw(generator: torch.Generator) -> Batch:
        x = torch.randn(128, WIDTH, generator=generator)
        with torch.no_grad():
            return x, teacher(x)

    def loss(model: nn.Module, given: Batch) -> Tensor:
        wrong: Tensor = functional.mse_loss(model(given[0]), given[1]) / gap
        return wrong

    return Learner(model, Example((torch.randn(2, WIDTH),)), Problem(draw, loss, 1.0))


@small("lora")
def lora(seed: int) -> Learner:
    """Low-rank adapters that follow a change of their base; chance is the base unchanged."""
    return _learner(LoRA, seed)


@small("dora")
def dora(seed: int) -> Learner:
    """The same with directions and sizes."""
    return _learner(DoRA, seed)
