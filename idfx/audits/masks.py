"""Masks that leave a position nothing to attend to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
from torch import Tensor

from idfx.audits.folding import Folding
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding
from idfx.ops.semantics import operator_name

MASKED = -1e4

_REMEDY = "Check its axis and its meaning: True keeps in scaled_dot_product_attention, and hides in masked_fill."


@metric("masks")
def masks(subject: AuditContext) -> Iterator[Finding]:
    """Masks that hide every entry of a row from a softmax.

    Definition: computes the masks that depend on buffers and constants only, and that the forward adds to, fills into
    or selects for the operand of a softmax (or passes to scaled_dot_product_attention). An entry is hidden if it gets
    −10⁴ or less, including −Inf. The metric counts rows with every entry hidden. Masks that depend on an input are not
    checked.

    Unit: rows. Threshold: 0 (error): with −Inf the row becomes NaN, and with a finite number it becomes an average over
    what should be hidden. −10⁴ is the smallest mask value that half-precision models use.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.3.
    """
    folding = Folding(subject)
    for node in subject.flow.nodes.values():
        if node.op != "call_function":
            continue
        for hidden, source, dim in _hidden(folding, node, subject):
            rows = hidden.all(dim)
            if count := int(rows.sum()):
                names = folding.leaves(source)
                name = next((name for name in names if name not in subject.structure.parameters), (*names, "")[0])
                message = f"{count:,} of {rows.numel():,} rows of the mask hide every entry"
                if name:
                    yield subject.finding("error", "masks", name, count, 0, message, _REMEDY)
                else:
                    where = subject.structure.capture.modules.get(node.name) or subject.structure.model
                    yield Finding("error", "masks", "", where, count, 0, message, _REMEDY)


def _hidden(
    folding: Folding, node: torch.fx.Node, subject: AuditContext
) -> Iterator[tuple[Tensor, torch.fx.Node, int]]:
    """Yield the hidden entries of a softmax as booleans, with the mask they come from and the axis of the softmax."""
    name = operator_name(node.target).removeprefix("aten.")
    if name == "scaled_dot_product_attention":
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if folding.is_fixed(mask) and (value := folding.value(mask)) is not None:  # type: ignore[arg-type]
            yield (~value if value.dtype == torch.bool else value <= MASKED), mask, -1  # type: ignore[misc]
    elif name in ("softmax", "_softmax", "log_softmax", "_log_softmax") and folding.is_fixed(node.args[0]) is False:
        first: Any = node.args[0]
        shape = subject.structure.capture.shapes.get(first.name)
        if shape:
            dim: Any = node.args[1]
            for hidden, source in _before(folding, first):
                if hidden.dim() <= len(shape):
                    yield hidden.expand(shape), source, dim


def _before(folding: Folding, node: Any) -> Iterator[tuple[Tensor, torch.fx.Node]]:
    """Yield the masks that were applied to a value, ignoring changes of dtype."""
    while isinstance(node, torch.fx.Node) and node.op == "call_function" and node.args:
        name = operator_name(node.target).removeprefix("aten.").removesuffix("_")
        given: Any = node.args
        following: Any = None
        if name in ("to", "_to_copy", "clone", "contiguous", "dropout", "div", "float", "type_as"):
            following = given[0]
        elif name == "add" and len(given) > 1:
            both = given[:2] if folding.is_fixed(given[1]) else given[1::-1]
            following = both[0]
            if folding.is_fixed(both[1]) and (value := folding.value(both[1])) is not None:
                yield value <= MASKED, both[1]
        elif name == "masked_fill":
            following = given[0]
            value = folding.value(given[1]) if folding.is_fixed(given[1]) and _is_low(folding, given[2]) else None
            if value is not None:
                yield value.bool(), given[1]
        elif name == "where" and len(given) == 3:
            kept, dropped = (given[1], given[2]) if _is_low(folding, given[2]) else (given[2], given[1])
            following = kept
            value = folding.value(given[0]) if folding.is_fixed(given[0]) and _is_low(folding, dropped) else None
            if value is not None:
                yield (~value.bool() if dropped is given[2] else value.bool()), given[0]
        node = following


def _is_low(folding: Folding, value: Any) -> bool:
    """Whether a number, or every entry of a fixed value, hides an entry."""
    if isinstance(value, (int, float)):
        return value <= MASKED
    found = folding.value(value) if folding.is_fixed(value) else None
    return found is not None and found.numel() > 0 and bool((found <= MASKED).all())
