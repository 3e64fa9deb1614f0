"""A loss on the outputs of a batch → its Hessian, through products with vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.core.errors import AuditError
from idfx.core.records import Structure
from idfx.measuring.derivatives import gradients, joined, split
from idfx.measuring.operators import LinearMap
from idfx.measuring.replay import Replay


def hessian(
    model: nn.Module, structure: Structure, seed: int = 0, out_of_time: Callable[[], bool] = lambda: False
) -> tuple[LinearMap, str]:
    """Return the Hessian of a loss with respect to all trainable parameters, and the loss in words.

    The loss is the cross-entropy with random classes if the first output has the shape (samples, classes) with at least
    two classes, otherwise the mean squared error to standard normal targets.

    Args:
        model: with its values.
        structure: of this model, on a capture of the batch.
        seed: of the targets.
        out_of_time: ends the pass when it returns True.

    Raises:
        AuditError: the graph cannot be run or differentiated twice, or no parameter affects its output.
    """
    run = Replay(model, structure.capture, seed, out_of_time)
    outputs = run.run(structure.capture.example, wanted="parameters", twice=True)
    if not outputs or not outputs[0].numel():
        raise AuditError(f"{structure.model}: no floating-point output; expected one. Leave out the metric curvature.")
    for name, leaf in run.parameters.items():
        if leaf.is_complex() and leaf.requires_grad:
            raise AuditError(
                f"{structure.model}: {name} is complex; expected real parameters. Leave out the metric curvature."
            )
    loss, words = _loss(outputs[0], seed)
    leaves = [leaf for leaf in run.parameters.values() if leaf.requires_grad]
    if not loss.requires_grad:
        raise AuditError(f"{structure.model}: no parameter affects its output; expected one. Leave out curvature.")
    differentiated = functools.partial(gradients, structure.model, "curvature", twice=True)
    slopes = differentiated([loss], leaves, None, create_graph=True)
    used = [(leaf, slope) for leaf, slope in zip(leaves, slopes, strict=True) if slope is not None]
    kept, curved = [leaf for leaf, _ in used], [number for number, (_, slope) in enumerate(used) if slope.requires_grad]

    def times(vector: Tensor) -> Tensor:
        if not curved:  # the loss is linear in the parameters
            return torch.zeros_like(vector)
        seeds = split(vector, kept)
        found = differentiated([used[number][1] for number in curved], kept, [seeds[number] for number in curved])
        return joined(found, kept, kept[0].device).to(vector.dtype)

    count = sum(leaf.numel() for leaf in kept)
    dtype = torch.float64 if any(leaf.dtype == torch.float64 for leaf in kept) else torch.float32
    return LinearMap(count, count, times, times, dtype, kept[0].device), words


def _loss(output: Tensor, seed: int) -> tuple[Tensor, str]:
    generator = torch.Generator().manual_seed(seed)
    if output.dim() == 2 and output.shape[1] > 1:
        classes = torch.randint(output.shape[1], (len(output),), generator=generator).to(output.device)
        return functional.cross_entropy(output, classes), "cross-entropy with random classes"
    target = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
    return functional.mse_loss(output, target), "mean squared error to standard normal targets"
