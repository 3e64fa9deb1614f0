"""Graph networks on random graphs with communities: convolutions (Kipf and Welling, 2017) and attention (2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.data import generator_of
from idfx.bench.zoo import Batch, Learner, Problem
from idfx.bench.zoo.small import small
from idfx.core.records import Example

NODES, KINDS, FEATURES = 64, 4, 16


class Convolution(nn.Module):
    """Averages over neighbours, with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(functional.relu(self.fc1(edges / edges.sum(-1, keepdim=True) @ self.norm(x))))
        return out


class Attention(nn.Module):
    """Attends to neighbours: scores are a sum of a vector of each end; with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.source, self.target = nn.Linear(width, 1, bias=False), nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        v = self.value(x)
        score = functional.leaky_relu(self.target(v) + self.source(v).transpose(-1, -2), 0.2)
        weight = score.masked_fill(edges == 0, -1e9).softmax(-1)
        out: Tensor = x + self.out(functional.elu(weight @ v))
        return out


class GNN(nn.Module):
    """Layers between an embedding of the features and a head."""

    def __init__(self, layer: type[Convolution] | type[Attention], depth: int, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, width), nn.Linear(width, KINDS)
        self.layers = nn.ModuleList(layer(width) for _ in range(depth))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, edges)
        out: Tensor = self.head(x)
        return out


def _problem(seed: int) -> Problem:
    """The community of each node, from weak features and from edges that are three times as likely inside."""
    centres = torch.randn(KINDS, FEATURES, generator=generator_of("communities", seed)) / 2

    def draw(generator: torch.Generator) -> Batch:
        kind = torch.randint(KINDS, (8, NODES), generator=generator)
        chance = torch.where(kind.unsqueeze(1) == kind.unsqueeze(2), 0.3, 0.1)
        upper = (torch.rand(8, NODES, NODES, generator=generator) < chance).float().triu(1)
        edges = upper + upper.transpose(1, 2) + torch.eye(NODES)
        return centres[kind] + torch.randn(8, NODES, FEATURES, generator=generator), edges, kind

    def loss(model: nn.Module, given: Batch) -> Tensor:
        x, edges, kind = given
        return functional.cross_entropy(model(x, edges).flatten(0, 1), kind.flatten())

    return Problem(draw, loss, math.log(KINDS))


def _learner(layer: type[Convolution] | type[Attention], seed: int) -> Learner:
    example = Example((torch.randn(2, NODES, FEATURES), torch.ones(2, NODES, NODES)))
    return Learner(GNN(layer, 4, 32), example, _problem(seed))


@small("gcn")
def gcn(seed: int) -> Learner:
    """Graph convolutions that name communities."""
    return _learner(Convolution, seed)


@small("gat")
def gat(seed: int) -> Learner:
    """Graph attention that names communities."""
    return _learner(Attention, seed)
