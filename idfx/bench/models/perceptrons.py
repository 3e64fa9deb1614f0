"""Multi-layer perceptrons, plain and residual."""

from __future__ import annotations

import math

from torch import Tensor, nn

from idfx.bench.models import Task, model, needs


@model("mlp")
def mlp(task: Task, *, depth: int = 50, width: int = 64) -> nn.Module:
    """A plain perceptron of `depth` linear layers with ReLUs between them; the weights are PyTorch's own."""
    needs(task, "mlp", "images", "signals")
    layers: list[nn.Module] = [nn.Flatten()]
    c_in = math.prod(task.shape)
    for _ in range(depth - 1):
        layers += [nn.Linear(c_in, width), nn.ReLU()]
        c_in = width
    return nn.Sequential(*layers, nn.Linear(c_in, task.classes))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.relu, self.fc2 = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(self.relu(self.fc1(x)))
        return out


@model("resmlp")
def resmlp(task: Task, *, depth: int = 50, width: int = 64) -> nn.Module:
    """A residual perceptron: an input layer, blocks of two linear layers, a head; no normalisation."""
    needs(task, "resmlp", "images", "signals")
    blocks = (_Block(width) for _ in range((depth - 2) // 2))
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(task.shape), width), *blocks, nn.Linear(width, task.classes))
