"""Signals: short sequences of numbers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from idfx.bench.data import Data, Tensors, dataset, digest_of
from idfx.bench.models import Task
from idfx.core.errors import UsageError


@dataset("mnist1d")
def mnist1d(path: Path | None) -> Data:
    """MNIST-1D: 5,000 signals of 40 numbers in 10 classes, made by a formula; a fifth is for testing.

    Source: Greydanus and Kobak, "Scaling down deep learning with MNIST-1D", ICML 2024, arXiv 2011.14439; the package's
    own settings and seed.
    """
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise UsageError(
            "data mnist1d: the package mnist1d is not installed; expected it. Install it with pip install mnist1d."
        ) from error
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # it seeds all three
    try:
        made = make_dataset(get_dataset_args())
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
    x, x_test = (torch.tensor(made[name], dtype=torch.float32).unsqueeze(1) for name in ("x", "x_test"))
    y, y_test = (torch.tensor(made[name], dtype=torch.int64) for name in ("y", "y_test"))
    return Data(Task("signals", (1, 40), 10), Tensors(x, y), Tensors(x_test, y_test), facts={"sha256": digest_of(x, y)})
