"""NaN, Inf and denormal numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext, sample
from idfx.core.findings import Finding
from idfx.core.records import FACTS
from idfx.ops.semantics import operator_name

DENORMAL = 0.01  # of the entries that are not zero

_BOUNDING = ("aten.clamp", "aten.clip", "aten.minimum", "aten.maximum")

_REPAIR = "Find the initialiser or the training step that produced it, and start again before it."
_FLUSH = "Use larger values or float32: many devices flush such numbers to 0, and others handle them slowly."


@metric("finite")
def finite(subject: AuditContext) -> Iterator[Finding]:
    """NaN or Inf in parameters and buffers; numbers too small for their dtype.

    Definition: the number of entries that are NaN or infinite. Two kinds of buffers are not findings: those that
    contain only 0 and −Inf (additive attention masks), and those that only bound other values (clamp), which may be
    infinite. Also the share of denormal numbers (0 < |w| < the smallest normal number of the dtype) among the non-zero
    entries, from a sample of up to 16,384 evenly spaced entries.

    Unit: entries; a share. Thresholds: 0 entries (error), because one NaN reaches every output; 0.01 of the entries
    (warning): a few denormals occur in any large half-precision draw, but not a hundredth at a usual spread.

    Source: IEEE 754-2019, section 3.4, for denormal numbers.
    """
    for name, tensor in subject.tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()) or name in (subject.unwritten or {}):
            continue
        if not subject.is_finite(name):
            if name in subject.structure.parameters or not (_is_mask(tensor) or only_bounds(subject, name)):
                count = int((~torch.isfinite(tensor)).sum())
                message = f"{count:,} of its {tensor.numel():,} entries are NaN or Inf"
                yield subject.finding("error", "finite", name, count, 0, message, _REPAIR)
        elif tensor.is_floating_point() and (share := _denormal(tensor)) > DENORMAL:
            message = f"{share:.0%} of its non-zero entries are denormal in {str(tensor.dtype)[6:]}"
            yield subject.finding("warning", "finite", name, share, DENORMAL, message, _FLUSH)


def _is_mask(tensor: Tensor) -> bool:
    """Whether a tensor contains only 0 and −Inf."""
    return bool(((tensor == 0) | torch.isneginf(tensor)).all()) if tensor.is_floating_point() else False


def only_bounds(subject: AuditContext, name: str) -> bool:
    """Return whether a buffer has no NaN, and it and what is computed from it are used as bounds of clamp alone.

    Args:
        subject: of the audit.
        name: of a buffer.
    """
    flow = subject.flow
    stack = [node for node in flow.nodes.values() if node.op == "get_attr" and node.meta[FACTS].name == name]
    bounds = False
    while stack:
        node = stack.pop()
        for user in node.users:
            if user.op != "output" and not flow.terms[flow.positions[user.name]].data:
                stack.append(user)
            elif not operator_name(user.target).startswith(_BOUNDING) or user.args[0] is node:
                return False
            else:
                bounds = True
    return bounds and not bool(subject.tensors[name].isnan().any())


def _denormal(tensor: Tensor) -> float:
    """The share of denormal numbers among the non-zero entries."""
    sizes = sample(tensor).abs()
    some = int((sizes > 0).sum())
    return 1 - int((sizes >= torch.finfo(tensor.dtype).tiny).sum()) / some if some else 0.0
