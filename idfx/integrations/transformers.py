"""A callback of transformers' Trainer that initialises the model before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from idfx.api import init_
from idfx.capture.wrappers import unwrap
from idfx.core.errors import UsageError
from idfx.core.records import Report


class Initialise(TrainerCallback):
    """Initialises the model when training begins; a run that resumes from a checkpoint keeps its weights.

    Args:
        example_kwargs: inputs of the model by name; by default the first sample of the training data, as the trainer's
            collator makes it.
        options: of `idfx.init_`: scheme, seed, keep, set, plan and so on.

    Attributes:
        report: what was done, after training has begun; None if it resumed.

    Raises:
        UsageError: when training begins, if no example is given and the training data has no first sample.

    Example:
        >>> callback = Initialise(scheme="idinit", seed=0)  # Trainer(..., callbacks=[callback])
        >>> callback.report is None
        True
    """

    def __init__(self, example_kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.example_kwargs, self.options = example_kwargs, options
        self.report: Report | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Initialise the model; the trainer has made the optimiser, which holds the same parameters."""
        if state.global_step or self.report is not None:
            return
        model = unwrap(kwargs["model"])
        example = self.example_kwargs
        example = _first_sample(model, kwargs.get("train_dataloader")) if example is None else example
        self.report = init_(model, example_kwargs=example, **self.options)


def _first_sample(model: nn.Module, data: DataLoader[Any] | None) -> dict[str, Any]:
    """Return one sample as the collator makes it; asks no sampler, so that the order of training stays as it is."""
    collate = getattr(data, "collate_fn", None)
    if data is None or collate is None or isinstance(data.dataset, IterableDataset):
        raise UsageError(
            f"{type(model).__name__}: the training data has no first sample; expected example inputs. "
            "Write Initialise(example_kwargs={...})."
        )
    device = next(model.parameters()).device
    batch = collate([data.dataset[0]])
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
