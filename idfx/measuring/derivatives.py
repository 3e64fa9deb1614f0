"""Gradients between values of a replayed graph, and vectors as the tensors that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from idfx.core.errors import AuditError


def gradients(
    model: str,
    metric: str,
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    seeds: Sequence[Tensor] | None,
    *,
    twice: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return the derivatives of outputs, each along its seed, by each of the inputs; None where there is none.

    Args:
        model: its name.
        metric: the one that needs them; errors name it.
        outputs, inputs: tensors, or gradient edges of them.
        seeds: of the shapes of the outputs; None for one number.
        twice: whether the graph is one that is differentiated again; it is then kept.
        create_graph: whether the derivatives are to be differentiated themselves.

    Raises:
        AuditError: an operator has no derivative.
    """
    try:
        return torch.autograd.grad(
            outputs, inputs, seeds, retain_graph=twice, create_graph=create_graph, allow_unused=True
        )
    except (RuntimeError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0]
        what, expected = ("differentiating it twice", "a second derivative") if twice else ("its backward pass", "one")
        raise AuditError(
            f"{model}: {what} raised {first}; expected operators that have {expected}. Leave out the metric {metric}."
        ) from error


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return a vector cut into tensors of the shapes and dtypes of others.

    Example:
        >>> split(torch.arange(3.0), [torch.zeros(1), torch.zeros(2, 1)])
        [tensor([0.]), tensor([[1.],
                [2.]])]
    """
    parts = torch.split(vector, [value.numel() for value in like])
    return [part.reshape(value.shape).to(value.dtype) for part, value in zip(parts, like, strict=True)]


def joined(values: Sequence[Tensor | None], like: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return tensors as one vector, zeros of the shape of another where there is none.

    Example:
        >>> joined([None, torch.ones(2, 1)], [torch.zeros(1), torch.zeros(2, 1)], torch.device("cpu"))
        tensor([0., 1., 1.])
    """
    pairs = zip(values, like, strict=True)
    whole = (torch.zeros_like(other, device=device) if value is None else value for value, other in pairs)
    return torch.cat([value.detach().reshape(-1) for value in whole])
