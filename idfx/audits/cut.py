"""Parameters that the forward cuts off from every gradient."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.capture.gradients import connected
from idfx.capture.nested import UncopiedError
from idfx.core.errors import ForwardError
from idfx.core.findings import Finding, Measure

_REMEDY = (
    "Remove the no_grad, detach or .data around it, or freeze it (requires_grad_(False)) if that is what is meant."
)


@metric("cut")
def cut(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Trainable parameters that act on the outputs, but are cut off from every gradient by no_grad, detach or .data.

    Definition: the parameters with a path to an output in the captured graph, but none in the graph that autograd
    records, neither in evaluation nor in training mode. The forward runs on meta tensors with gradients on, or on the
    example if it needs values; no gradient is computed. A path through integers (an argmax, an index) has no gradient
    either.

    Unit: entries. Threshold: 0 (warning): the optimiser has it, and it never changes. Some models train such a part by
    a loss that is no output of the example (codebooks).

    Source: torch.autograd.
    """
    parameters, unreached = subject.structure.parameters, set(subject.unreached)
    names = [name for name, info in parameters.items() if info.requires_grad and name not in unreached]
    names = [name for name in names if subject.tensors[name].numel()]
    left = names
    for training in (False, True):
        found = _connected(subject, training) if left else frozenset()
        if found is None:
            yield Measure("cut", "not judged", "the forward cannot be run with gradients")
            return
        left = [name for name in left if name not in found]
    for name in left:
        told = "it acts on the outputs, but the forward cuts it off from every gradient"
        yield subject.finding("warning", "cut", name, subject.tensors[name].numel(), 0, told, _REMEDY)


def _connected(subject: AuditContext, training: bool) -> frozenset[str] | None:
    """The parameters that gradients get to; in training mode none more if it cannot be run, else None for that."""
    for how in ("meta", "real"):
        try:
            return connected(subject.model, subject.structure.capture.example, how, training)
        except (ForwardError, UncopiedError):
            continue
    return frozenset() if training else None
