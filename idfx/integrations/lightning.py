"""A Lightning callback that initialises the module before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch

from idfx.api import init_
from idfx.core.errors import UsageError
from idfx.core.records import Report


class Initialise(L.Callback):
    """Initialises a LightningModule once, before its first fit; a checkpoint given to `fit` is loaded afterwards.

    Args:
        example_inputs, example_kwargs: as in `idfx.init_`; by default the module's `example_input_array`.
        options: of `idfx.init_`: scheme, seed, keep, set, plan and so on.

    Attributes:
        report: what was done, after the fit has begun.

    Raises:
        UsageError: when the fit begins, if the module makes its layers in `configure_model`, which Lightning calls
            later: call `idfx.init_(self)` at the end of that method instead.

    Example:
        >>> callback = Initialise(scheme="idinit", seed=0)
        >>> trainer = L.Trainer(max_steps=1, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        example_inputs: Sequence[Any] | torch.Tensor | None = None,
        example_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.example_inputs, self.example_kwargs, self.options = example_inputs, example_kwargs, options
        self.report: Report | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Initialise the module; Lightning calls this before it loads a checkpoint and makes the optimiser."""
        if stage != "fit" or self.report is not None:
            return
        if type(pl_module).configure_model is not L.LightningModule.configure_model:
            raise UsageError(
                f"{type(pl_module).__name__}: it makes layers in configure_model, which runs after this callback; "
                "expected them in __init__. Call idfx.init_(self) at the end of configure_model instead."
            )
        self.report = init_(pl_module, self.example_inputs, self.example_kwargs, **self.options)
