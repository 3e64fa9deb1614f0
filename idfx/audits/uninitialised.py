"""Memory that no initialiser wrote."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding

_REMEDY = "Write it in the constructor: torch.nn.init, zeros or ones instead of torch.empty."


@metric("uninitialised")
def uninitialised(subject: AuditContext) -> Iterator[Finding]:
    """Memory that no initialiser wrote: parameters and buffers left as torch.empty gave them.

    Definition: the number of entries that hold, after the constructor is done, what the allocation was filled with. The
    model is built while torch fills new memory with NaN (whole numbers: with the largest one; booleans: with True);
    entries that hold that are compared with a second build, in which new memory is zero, so that a NaN of the author's
    own is no finding here.

    Unit: entries. Threshold: 0, since such values differ from run to run. For a model that was not built by idfx the
    number is not known, and the metric is left out.

    Source: torch.utils.deterministic.fill_uninitialized_memory.
    """
    for name, count in (subject.unwritten or {}).items():
        total = subject.tensors[name].numel()
        message = f"{count:,} of its {total:,} entries were never written: they hold whatever the memory held"
        yield subject.finding("error", "uninitialised", name, count, 0, message, _REMEDY)
