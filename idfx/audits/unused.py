"""Parameters that reach no output."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding, Measure

_TRAINED = "Nothing, if training uses this path; it is initialised and judged like the rest."
_REMEDY = "Remove it, or use it in the forward; DistributedDataParallel needs find_unused_parameters for it."


@metric("unused")
def unused(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Parameters that reach no output of the forward pass of the example.

    Definition: the captured graph has no path from the parameter to an output, in evaluation mode and, if that can be
    captured, in training mode. Another input may take a different path. The weights that only training mode uses are
    judged on that path by the metrics of weights and structure. If values are computed outside torch's operators,
    paths through them cannot be followed, and the metric reports nothing.

    Unit: entries. Threshold: 0 (warning): it is stored and updated by weight decay, but never learns; info for
    parameters that training mode uses, such as auxiliary heads.
    """
    if subject.structure.capture.out_of_sight:
        yield Measure("unused", "not judged", "some values are computed outside torch's operators")
        return
    trained = trained_only(subject)
    for name in subject.unreached:
        size = subject.tensors[name].numel()
        if name in trained:
            message = "no path leads from it to an output in evaluation mode; training mode uses it"
            yield subject.finding("info", "unused", name, size, 0, message, _TRAINED)
        else:
            yield subject.finding("warning", "unused", name, size, 0, _message(subject), _REMEDY)


def trained_only(subject: AuditContext) -> frozenset[str]:
    """Return the parameters that reach an output in training mode alone.

    Args:
        subject: of the audit; if every parameter reaches an output, training mode is not captured.
    """
    if not subject.unreached or subject.structure.capture.out_of_sight or subject.training is None:
        return frozenset()
    return frozenset(subject.unreached).difference(subject.training.unreached)


def _message(subject: AuditContext) -> str:
    message = "no path leads from it to an output of the model"
    return message if subject.training is not None else f"{message} in evaluation mode; training mode cannot be read"
