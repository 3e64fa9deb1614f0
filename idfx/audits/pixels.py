"""Weights whose outputs become neighbouring pixels, and may start as copies of one another."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from idfx.analysis.dataflow import Dataflow
from idfx.audits.subject import AuditContext

_ATTENDING = frozenset({"query", "key", "value"})  # their outputs are split into heads, which must differ


def distinct_pixels(subject: AuditContext, name: str) -> Tensor | None:
    """Return the different rows of a sub-pixel weight, as one matrix; None for any other weight.

    The rows of such a weight are all equally frequent, and its outputs are rearranged so that equal ones stand side by
    side as positions: C outputs at n positions become C / f channels at n · f positions. This is how a sub-pixel
    convolution starts as nearest-neighbour upsampling (Aitken et al., "Checkerboard artifact free sub-pixel
    convolution", 2017).

    Args:
        subject: of the audit.
        name: of a weight.
    """
    matrices = subject.matrices(name)
    if matrices.shape[0] != 1 or _ATTENDING & subject.structure.roles[name].traits.keys():
        return None
    rows, counts = torch.unique(matrices[0], dim=0, return_counts=True)
    times = int(counts[0])
    if times == 1 or bool((counts != times).any()):
        return None
    return rows[None] if _become_positions(subject, name, rows.shape[0], times) else None


def _become_positions(subject: AuditContext, name: str, channels: int, times: int) -> bool:
    """Whether each use of a weight is followed by moves that turn its outputs into positions."""
    flow, found = subject.flow, False
    for position, term in enumerate(flow.terms):
        if term.kind == "contract" and name in _weights(subject, position):
            whole = term.shape or ()
            found = any(_is_spread(whole, shape, channels, times) for shape in _moved(flow, position))
            if not found:
                return False
    return found


def _weights(subject: AuditContext, position: int) -> list[str]:
    flow = subject.flow
    leaves = (flow.terms[operand] for operand in flow.terms[position].operands)
    return [subject.first_name(flow.capture.parameters[leaf.node]) for leaf in leaves if leaf.kind == "parameter"]


def _moved(flow: Dataflow, position: int) -> Iterator[tuple[int, ...]]:
    """Yield the shapes that the output of a weight takes before anything mixes its entries."""
    while len(users := flow.users.get(position, ())) == 1:
        position = users[0]
        term = flow.terms[position]
        if term.kind.mixes or term.kind.multiplies or len(flow.addends(position)) > 1:
            return
        if term.shape is not None:
            yield term.shape


def _is_spread(whole: tuple[int, ...], shape: tuple[int, ...], channels: int, times: int) -> bool:
    """Whether a shape has as many axes, and entries, as the whole, fewer channels and more positions."""
    same = len(whole) == len(shape) and math.prod(whole) == math.prod(shape) and whole[0] == shape[0]
    return same and channels in shape and channels * times in whole and channels * times not in shape
