"""Layers that should be independent and start as copies of one another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding
from idfx.core.records import ParameterInfo, Role

LOOKED_AT = 64  # entries of a tensor by which copies are suspected

_LAYERS = (
    "Build each layer anew instead of copying one (copy.deepcopy, nn.TransformerEncoder), or draw again afterwards."
)
_EXPERTS = "Draw each expert by itself; if the copies are meant (upcycling), add noise to tell them apart."


@metric("clones")
def clones(subject: AuditContext) -> Iterator[Finding]:
    """Weights that start with exactly the random values of another weight, and experts that are equal.

    Definition: (a) two different trainable weights or embeddings of the same shape and dtype that are equal, bit for
    bit. (b) Equal matrices among the experts of one weight. Values count as random if more than half of 64 of them
    differ, so identities, zeros and constants are not meant, and a frozen weight may have a trainable copy.

    Unit: entries; experts. Threshold: 0 (warning): the layers are no independent draws, and copies that see the same
    input get the same gradient and stay copies.

    Source: Goodfellow, Bengio and Courville, "Deep learning", 2016, section 8.4, on breaking symmetry.
    """
    seen: dict[object, list[str]] = {}
    for info, role in (*subject.weights(), *subject.normalised(), *subject.recurrent(), *subject.embeddings()):
        if not info.requires_grad:
            continue
        yield from _experts(subject, info, role)
        tensor = subject.tensors[info.name]
        some = _some(tensor.reshape(1, -1))[0]
        if not _is_random(some):
            continue
        alike = seen.setdefault((info.shape, info.dtype, *some.tolist()), [])
        original = next((name for name in alike if torch.equal(subject.tensors[name], tensor)), None)
        if original is None:
            alike.append(info.name)
        else:
            told = f"it has exactly the values of {original}, a different parameter"
            yield subject.finding("warning", "clones", info.name, tensor.numel(), 0, told, _LAYERS)


def _experts(subject: AuditContext, info: ParameterInfo, role: Role) -> Iterator[Finding]:
    if role.layout is None or not role.layout.batch_axes or role.layout.groups * role.layout.parts > 1:
        return
    matrices = subject.matrices(info.name).flatten(1)
    some = _some(matrices)
    if matrices.shape[0] < 2 or not _is_random(some[0]):
        return
    copies = matrices.shape[0] - len(_distinct(some))
    if copies and len(_distinct(matrices)) == matrices.shape[0] - copies:
        told = f"{copies:,} of its {matrices.shape[0]:,} experts are exact copies of another one"
        yield subject.finding("warning", "clones", info.name, copies, 0, told, _EXPERTS)


def _some(rows: Tensor) -> Tensor:
    """Up to 64 evenly spaced entries of each row."""
    size = rows.shape[1]
    return rows[:, torch.linspace(0, size - 1, min(size, LOOKED_AT), dtype=torch.float64, device=rows.device).long()]


def _is_random(some: Tensor) -> bool:
    return some.numel() == LOOKED_AT and 2 * len(set(some.tolist())) > LOOKED_AT


def _distinct(rows: Tensor) -> Tensor:
    distinct: Tensor = torch.unique(rows, dim=0)
    return distinct
