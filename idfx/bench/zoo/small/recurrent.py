"""Recurrent networks that name the topic of a text at its end: an LSTM and a GRU of two layers, and a plain one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idfx.bench.zoo import Learner
from idfx.bench.zoo.problems import classes, logits_of, topics
from idfx.bench.zoo.small import small
from idfx.core.records import Example

VOCABULARY, LENGTH, TOPICS = 65, 12, 8


class Reader(nn.Module):
    """An embedding, a recurrent network, and a head on its last output."""

    def __init__(self, kind: type[nn.RNNBase], width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.cells: nn.Module = kind(width, width, layers, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(width, TOPICS)

    def forward(self, text: Tensor) -> Tensor:
        out: Tensor = self.head(self.cells(self.embed(text))[0][:, -1])
        return out


def _learner(kind: type[nn.RNNBase], layers: int, seed: int) -> Learner:
    draw = topics(range(VOCABULARY), LENGTH, TOPICS, seed)
    problem = classes(lambda labels, generator: ((draw(labels, generator),), {}), TOPICS, 32, logits_of(TOPICS))
    example = Example((torch.arange(2 * LENGTH).view(2, LENGTH),))
    return Learner(Reader(kind, 64, layers), example, problem)


@small("lstm")
def lstm(seed: int) -> Learner:
    """An LSTM of two layers."""
    return _learner(nn.LSTM, 2, seed)


@small("gru")
def gru(seed: int) -> Learner:
    """A GRU of two layers."""
    return _learner(nn.GRU, 2, seed)


@small("rnn")
def rnn(seed: int) -> Learner:
    """A plain recurrent network of one layer."""
    return _learner(nn.RNN, 1, seed)
