"""Learned values that start equal and stay equal."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding

_REMEDY = "Draw them at random (deviation 0.02), or add a different position to each."


@metric("symmetry", batch=True)
def symmetry(subject: AuditContext) -> Iterator[Finding]:
    """Learned queries, tokens and positions that start with the same numbers and that nothing tells apart.

    Definition: a parameter that is no weight, consists of equal parts of several entries along one of its axes, and
    whose gradient from the batch has equal parts, too (`Observation.symmetric`): attention treats queries alike, so
    copies stay copies. The gradient at the outputs is random, so parts that lead to different outputs are told apart,
    as are queries with a position. A constant batch is not judged.

    Unit: entries. Threshold: 0 (warning): all steps of training change the parts alike, so they act as one; dropout may
    tell them apart by chance.

    Source: Goodfellow, Bengio and Courville, "Deep learning", 2016, section 8.4, on breaking symmetry.
    """
    if subject.trial is not None and subject.trial.uniform:
        return
    for name in subject.observation.symmetric:
        first = subject.alias(name)
        role = subject.structure.roles[first]
        if first and role.layout is None and not role.name.is_weight:
            size = subject.tensors[first].numel()
            told = "its parts start with the same numbers, and get the same gradient: nothing tells them apart"
            yield subject.finding("warning", "symmetry", first, size, 0, told, _REMEDY)
