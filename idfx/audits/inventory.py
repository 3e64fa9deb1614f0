"""What a model is made of, for those who want to see more than findings: its parameters and its residual blocks."""

from __future__ import annotations

from collections.abc import Mapping

from idfx.audits.branches import is_closed
from idfx.audits.subject import Subject
from idfx.findings import Block, ParameterState


def parameters(subject: Subject, gradients: Mapping[str, float]) -> tuple[ParameterState, ...]:
    """Return the parameters, in the model's own order, each with its role, its place and its root mean square.

    Args:
        subject: what is audited.
        gradients: the norms of those that were measured, by parameter.
    """
    roles = subject.structure.roles
    found = []
    for name, info in subject.structure.parameters.items():
        place, block, rms = subject.place(name), _block(subject, name), subject.rms(name)
        found.append(ParameterState(name, info.shape, roles[name].name, place, block, rms, gradients.get(name)))
    return tuple(found)


def _block(subject: Subject, name: str) -> str | None:
    join = subject.network.around(name)
    return join.name if join is not None else None


def blocks(subject: Subject) -> tuple[Block, ...]:
    """Return the residual blocks in the order of execution, inner ones before those around them."""
    return tuple(
        Block(join.name, join.kind, join.parent, is_closed(subject, join), join.branch)
        for join in subject.structure.joins
    )
