"""Memory that no initialiser wrote."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding

_REMEDY = "Initialise it in the constructor: torch.nn.init, zeros or ones instead of torch.empty."


@metric("uninitialised")
def uninitialised(subject: AuditContext) -> Iterator[Finding]:
    """Uninitialised memory: parameters and buffers left as torch.empty returned them.

    Definition: the number of entries that still hold the fill value of the allocation after the constructor. The model
    is built while torch fills new memory with NaN (integers: the largest value; booleans: True). Entries with this
    value are compared with a second build, in which new memory is zero, so a NaN that the model itself writes is not a
    finding here.

    Unit: entries. Threshold: 0, because such values differ from run to run. For a model that idfx did not build, the
    number is unknown and the metric is left out.

    Source: torch.utils.deterministic.fill_uninitialized_memory.
    """
    for name, count in (subject.unwritten or {}).items():
        total = subject.tensors[name].numel()
        message = f"{count:,} of its {total:,} entries are uninitialised memory"
        yield subject.finding("error", "uninitialised", name, count, 0, message, _REMEDY)
