"""Classifiers of token sequences: TextCNN, TextRNN and a transformer encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idfx.bench.models import Task, draw_, model, needs
from idfx.bench.models.transformers import Block


class _TextCnn(nn.Module):
    def __init__(self, task: Task, width: int, filters: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(task.vocabulary, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, filters, size, padding=size // 2) for size in (3, 4, 5))
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)
        self.head = nn.Linear(3 * filters, task.classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x).transpose(1, 2)
        found = [self.relu(conv(y)).amax(2) for conv in self.convs]
        out: Tensor = self.head(self.dropout(torch.cat(found, 1)))
        return out


@model("textcnn")
def textcnn(task: Task, *, width: int = 64, filters: int = 64, dropout: float = 0.0) -> nn.Module:
    """TextCNN: convolutions over 3, 4 and 5 tokens, their maxima over time, a head (Kim, 2014)."""
    needs(task, "textcnn", "sequences")
    return _TextCnn(task, width, filters, dropout)


class _TextRnn(nn.Module):
    def __init__(self, task: Task, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(task.vocabulary, width)
        self.rnn = nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, task.classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(self.tokens(x))
        out: Tensor = self.head(states.mean(1))
        return out


@model("textrnn")
def textrnn(task: Task, *, width: int = 64, hidden: int = 64, layers: int = 1) -> nn.Module:
    """TextRNN: a bidirectional LSTM, the mean of its states, a head."""
    needs(task, "textrnn", "sequences")
    return _TextRnn(task, width, hidden, layers)


class _Encoder(nn.Module):
    def __init__(self, task: Task, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(task.vocabulary, width)
        self.positions = nn.Embedding(task.shape[0], width)
        self.blocks = nn.ModuleList(Block(width, heads, 4, post=True) for _ in range(depth))
        self.head = nn.Linear(width, task.classes)
        draw_(self, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            y = block(y)
        out: Tensor = self.head(y.mean(1))
        return out


@model("encoder")
def encoder(task: Task, *, depth: int = 2, width: int = 64, heads: int = 4) -> nn.Module:
    """A transformer encoder with a norm after each sum, and a head on the mean of its tokens."""
    needs(task, "encoder", "sequences")
    return _Encoder(task, depth, width, heads)
