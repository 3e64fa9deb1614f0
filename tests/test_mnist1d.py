"""MNIST-1D is the data of its package, the random states are left alone, and every model of the suite trains on it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn import functional

import idfx
from idfx.bench.data import load_data
from idfx.bench.models import build_model
from idfx.bench.suites import read_suite

data = pytest.importorskip("mnist1d.data")


def test_the_data_is_that_of_the_package() -> None:
    found, made = load_data("mnist1d"), data.make_dataset()
    x, y = found.train.take(torch.arange(4000), None)
    assert (found.task.kind, found.task.shape, found.task.classes) == ("signals", (1, 40), 10)
    assert x.shape == (4000, 1, 40) and len(found.test) == 1000
    assert torch.equal(x[:, 0], torch.tensor(made["x"], dtype=torch.float32)) and y.tolist() == made["y"].tolist()


def test_random_states_are_left_alone() -> None:
    draws = []
    for load in (False, True):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if load:
            load_data("mnist1d")
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("name", sorted(read_suite("mnist1d").models))
def test_a_model_of_the_suite_learns_from_idinit(name: str) -> None:
    found = load_data("mnist1d")
    torch.manual_seed(0)
    model = build_model(read_suite("mnist1d").models[name].build, found.task)
    x, y = found.train.take(torch.arange(64), None)
    report = idfx.init_(model, (x,))
    assert report.certificate is not None and report.certificate.passed
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):  # the same samples: whether it can learn at all
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
