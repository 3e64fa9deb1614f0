"""Classifiers of signals (N, 1, T): a convnet, a residual one, a transformer, a recurrent one; `mlp` takes them too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idfx.bench.models import Task, draw_, model, needs
from idfx.bench.models.transformers import Block


@model("conv1d")
def conv1d(task: Task, *, width: int = 32, depth: int = 4) -> nn.Module:
    """A plain convnet: kernels of 5 with stride 2, ReLUs, the mean over time, a head; PyTorch's own weights."""
    needs(task, "conv1d", "signals")
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Conv1d(width if number else task.shape[0], width, 5, 2, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, task.classes))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(width, width, 5, 1, 2, bias=False), nn.BatchNorm1d(width)
        self.conv2, self.norm2 = nn.Conv1d(width, width, 5, 1, 2, bias=False), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inner)))


@model("resnet1d")
def resnet1d(task: Task, *, width: int = 32, depth: int = 3) -> nn.Module:
    """A residual convnet with BatchNorm: a stem, blocks of two convolutions, the mean over time, a head."""
    needs(task, "resnet1d", "signals")
    stem = (nn.Conv1d(task.shape[0], width, 5, 2, 2, bias=False), nn.BatchNorm1d(width), nn.ReLU())
    blocks = (_Residual(width) for _ in range(depth))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, task.classes))


class _Transformer(nn.Module):
    def __init__(self, task: Task, depth: int, width: int, heads: int, patch: int) -> None:
        super().__init__()
        self.embed = nn.Conv1d(task.shape[0], width, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + task.shape[1] // patch, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, task.classes)
        draw_(self, 0.02)
        for values in (self.token, self.position):
            nn.init.trunc_normal_(values, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.position
        for block in self.blocks:
            y = block(y)
        out: Tensor = self.head(self.norm(y)[:, 0])
        return out


@model("transformer1d")
def transformer1d(task: Task, *, depth: int = 4, width: int = 64, heads: int = 4, patch: int = 4) -> nn.Module:
    """A vision transformer for signals: patches, a class token, a norm before each branch, weights as in timm."""
    needs(task, "transformer1d", "signals")
    return _Transformer(task, depth, width, heads, patch)


class _Rnn(nn.Module):
    def __init__(self, task: Task, width: int, cell: str) -> None:
        super().__init__()
        self.rnn = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}[cell](task.shape[0], width, batch_first=True)
        self.head = nn.Linear(width, task.classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x.transpose(1, 2))
        out: Tensor = self.head(states[:, -1])
        return out


@model("rnn1d")
def rnn1d(task: Task, *, width: int = 64, cell: str = "gru") -> nn.Module:
    """A recurrent network (gru, lstm or rnn) over the numbers of a signal, and a head on its last state."""
    needs(task, "rnn1d", "signals")
    return _Rnn(task, width, cell)
