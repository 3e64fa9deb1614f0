"""Tables whose rows tell nothing apart, and padding rows that are not empty."""

from __future__ import annotations

from collections.abc import Iterator

import torch.fx

from idfx.audits.gradient_flow import lost_inputs
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding, Severity

_DRAW = "Draw the table with a deviation of 0.02 to 1; if one row is to be zero, index that row alone (padding_idx)."
_PADDING = "Set the row to zero after the draw: nn.Embedding does so only with its own initialisation."


@metric("lookups")
def lookups(subject: AuditContext) -> Iterator[Finding]:
    """Embeddings of zeros, and padding rows that are not zero.

    Definition: (a) a trainable table whose entries are all 0 and whose index depends on inputs alone (not on a router),
    unless another table, which is not, is looked up by the same index (the low-rank part of an adapter). (b) The row of
    a trainable table that the look-up itself names as padding (`padding_idx` of torch's embedding) and that is not
    zero.

    Unit: rows; entries. Threshold: 0. (a) is an error if an input of the model acts on the outputs through such tables
    alone, so that all its values give the same outputs, and a warning otherwise. (b) is a warning: no gradient ever
    reaches that row, so padding adds the same noise for good.

    Source: the definition; torch.nn.Embedding, for `padding_idx`.
    """
    for name in _empty(subject):
        lost = lost_inputs(subject.flow, {name}, subject.first_name)
        severity: Severity = "error" if lost else "warning"
        rows = subject.tensors[name].shape[0]
        told = f"all its {rows:,} rows are zero, so every index gives the same value"
        told += f"; the input {lost[0]} has no effect on the outputs" if lost else ""
        yield subject.finding(severity, "lookups", name, rows, 0, told, _DRAW)
    for info, _ in subject.embeddings():
        for row in subject.padding(info.name).tolist():
            count = int((subject.tensors[info.name][row] != 0).sum())
            if count and not subject.is_zero(info.name):
                told = f"row {row} is the padding row and is not zero; no gradient ever reaches it"
                yield subject.finding("warning", "lookups", info.name, count, 0, told, _PADDING)


def _empty(subject: AuditContext) -> list[str]:
    """The tables of zeros whose index looks up no other table that has values."""
    flow = subject.flow

    def given(index: torch.fx.Node) -> bool:
        term = flow.terms[flow.positions[index.name]]
        return term.data and not term.parametric

    indices: dict[str, set[torch.fx.Node]] = {}
    for node in flow.nodes.values():
        name = subject.alias(flow.capture.parameters.get(node.name, ""))
        if name and subject.structure.roles[name].name == "embedding":
            for user in node.users:
                indices.setdefault(name, set()).update(other for other in user.all_input_nodes if other is not node)
    full = {index for name, found in indices.items() if not subject.is_zero(name) for index in found}
    tables = [info.name for info, _ in subject.embeddings() if subject.is_zero(info.name)]
    return [name for name in tables if not full & (found := indices.get(name, set())) and any(map(given, found))]
