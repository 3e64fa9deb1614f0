"""Optional measurements of a run: the gradient of each weight, dead units, ranks, isometry."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from idfx.audits.run import audit
from idfx.bench.data import Samples, generator_of
from idfx.core.errors import IdfxError

BATCHES, SIZE = 4, 64


class Watch:
    """Measures a model through the gradients of the same few batches each time, without affecting training.

    A unit is a row of a weight. It is dead if its gradient is exactly 0 in every one of the batches: it has no effect
    on the loss, or gets no input.

    Args:
        samples: for training.
        device: of the model.
    """

    def __init__(self, samples: Samples, device: torch.device) -> None:
        order = torch.randperm(len(samples), generator=generator_of("watch"))[: BATCHES * SIZE]
        self._batches = [samples.take(numbers, None) for numbers in torch.split(order, SIZE)]
        self._device = device

    def look(self, model: nn.Module, ranks: bool = False) -> dict[str, Any]:
        """Return, by weight, the norm of the mean gradient, the number of units and the number of dead units.

        Args:
            model: during training; its gradients are cleared, its mode and buffers do not change.
            ranks: also the rank of each weight as a matrix (rows, the rest).
        """
        weights = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
        sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        alive = {
            name: torch.zeros(len(weight), dtype=torch.bool, device=weight.device) for name, weight in weights.items()
        }
        training = model.training
        model.eval()
        for x, y in self._batches:
            model.zero_grad(set_to_none=True)
            logits = model(x.to(self._device))
            target = y.to(self._device)
            loss = functional.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=-100)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, weight in weights.items():
                if weight.grad is not None:
                    sums[name] += weight.grad / len(self._batches)
                    alive[name] |= (weight.grad.flatten(1) != 0).any(1)
        model.zero_grad(set_to_none=True)
        model.train(training)
        found: dict[str, Any] = {}
        for name, weight in weights.items():
            norm = float(sums[name].norm())
            row: dict[str, Any] = {"gradient": _finite(norm), "units": len(weight)}
            row["dead"] = int((~alive[name]).sum())
            if ranks:
                row["rank"] = int(torch.linalg.matrix_rank(weight.detach().flatten(1).float()))
            found[name] = row
        return found

    def isometry(self, model: nn.Module) -> dict[str, Any]:
        """Return the audit's measurements of the Jacobian of the model, and of its blocks, at four samples.

        `chi`, `spread`, `largest` and `smallest` are for the whole model; `block_chi` and `block_spread` are medians
        over the residual blocks, None if there are none. If the audit cannot run, `error` gives the reason.

        Args:
            model: during training, which is not affected.
        """
        try:
            found = audit(model, (self._batches[0][0][:4].to(self._device),), only=["jacobian"])
        except IdfxError as error:
            return {"error": str(error)}
        if "jacobian" in found.left_out or not found.spectra:
            return {"error": found.left_out.get("jacobian", "it has no Jacobian")}
        whole, *blocks = found.spectra
        return {
            "chi": _finite(whole.mean_square),
            "spread": _finite(whole.spread),
            "largest": _finite(whole.largest),
            "smallest": _finite(whole.smallest),
            "block_chi": _finite(statistics.median(block.mean_square for block in blocks)) if blocks else None,
            "block_spread": _finite(statistics.median(block.spread for block in blocks)) if blocks else None,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
