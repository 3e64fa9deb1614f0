"""A loss on the outputs of a batch → its Hessian, by products with vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.errors import AuditError
from idfx.measuring.operators import LinearMap
from idfx.measuring.replay import Replay
from idfx.records import Structure


def hessian(
    model: nn.Module, structure: Structure, seed: int = 0, out_of_time: Callable[[], bool] = lambda: False
) -> tuple[LinearMap, str]:
    """Return the Hessian of a loss with respect to all trainable parameters, and the loss in words.

    A first output of shape (samples, classes) with at least two classes gets the cross-entropy against random classes;
    any other the mean squared error against standard normal targets.

    Args:
        model: with its values.
        structure: of this model, on a capture of the batch.
        seed: of the targets.
        out_of_time: ends the pass where it says so.

    Raises:
        AuditError: the graph cannot be run or differentiated twice, or no parameter has a say in its output.
    """
    run = Replay(model, structure.capture, seed, out_of_time)
    outputs = run.run(structure.capture.example, wanted="parameters", twice=True)
    if not outputs or not outputs[0].numel():
        raise AuditError(f"{structure.model}: no floating output; expected one. Leave out the metric curvature.")
    for name, leaf in run.parameters.items():
        if leaf.is_complex() and leaf.requires_grad:
            raise AuditError(
                f"{structure.model}: {name} is complex; expected real parameters. Leave out the metric curvature."
            )
    loss, words = _loss(outputs[0], seed)
    leaves = [leaf for leaf in run.parameters.values() if leaf.requires_grad]
    gradients = _grad(structure.model, [loss], leaves, None, create_graph=True)
    used = [(leaf, gradient) for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None]
    if not used:
        raise AuditError(f"{structure.model}: no parameter has a say in its output; expected one. Nothing is curved.")
    kept, slopes = [leaf for leaf, _ in used], [gradient for _, gradient in used]

    def times(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [leaf.numel() for leaf in kept])
        seeds = [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, kept, strict=True)]
        found = _grad(structure.model, slopes, kept, seeds)
        whole = (torch.zeros_like(leaf) if one is None else one for one, leaf in zip(found, kept, strict=True))
        return torch.cat([one.detach().reshape(-1).to(vector.dtype) for one in whole])

    count = sum(leaf.numel() for leaf in kept)
    dtype = torch.float64 if any(leaf.dtype == torch.float64 for leaf in kept) else torch.float32
    return LinearMap(count, count, times, times, dtype, kept[0].device), words


def _loss(output: Tensor, seed: int) -> tuple[Tensor, str]:
    generator = torch.Generator().manual_seed(seed)
    if output.dim() == 2 and output.shape[1] > 1:
        classes = torch.randint(output.shape[1], (len(output),), generator=generator).to(output.device)
        return functional.cross_entropy(output, classes), "cross-entropy against random classes"
    target = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
    return functional.mse_loss(output, target), "mean squared error against standard normal targets"


def _grad(
    name: str, outputs: list[Tensor], inputs: list[Tensor], seeds: list[Tensor] | None, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    wanted = [number for number, output in enumerate(outputs) if output.requires_grad]
    if not wanted:
        return (None,) * len(inputs)
    try:
        return torch.autograd.grad(
            [outputs[number] for number in wanted],
            inputs,
            None if seeds is None else [seeds[number] for number in wanted],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
    except (RuntimeError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0]
        raise AuditError(
            f"{name}: differentiating it twice raised {first}; expected operators that have a second derivative. "
            "Leave out the metric curvature."
        ) from error
