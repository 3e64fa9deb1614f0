"""Parameters that reach no output."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.audits.gradient_flow import reaching
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding, Measure
from idfx.core.records import FACTS, Capture

_REMEDY = "Remove it, or use it in the forward; DistributedDataParallel needs find_unused_parameters for it."


@metric("unused")
def unused(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Parameters that reach no output of the forward pass of the example.

    Definition: the captured graph has no path from the parameter to an output. Another input, or training mode, may
    take a different path. If values are computed outside torch's operators (torch.func.vmap), paths through them cannot
    be followed, and the metric reports nothing.

    Unit: entries. Threshold: 0 (warning): it is stored and updated by weight decay, but never learns.
    """
    if _out_of_sight(subject.structure.capture):
        yield Measure("unused", "not judged", "some values are computed outside torch's operators")
        return
    reached = {subject.first_name(name) for name in reaching(subject.flow)}
    for name, info in subject.structure.parameters.items():
        hidden = subject.structure.roles[name].name == "unresolved" and not subject.structure.roles[name].sites
        if name not in reached and not hidden:
            message = "no path leads from it to an output of the model"
            size = subject.tensors[name].numel()
            if size and info:
                yield subject.finding("warning", "unused", name, size, 0, message, _REMEDY)


def _out_of_sight(capture: Capture) -> bool:
    """Whether the graph reads a tensor that is not a parameter, a buffer, or a constant with known values."""
    leaves = (node for node in capture.graph.nodes if node.op == "get_attr" and node.meta[FACTS].kind == "constant")
    return any(node.name not in capture.constants for node in leaves)
