"""What a model is made of, for those who want to see more than findings: its parameters and its residual blocks."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from idfx.analysis.dataflow import Dataflow
from idfx.audits.branches import is_closed
from idfx.audits.subject import AuditContext
from idfx.core.findings import Block, ParameterState, WeightFingerprint
from idfx.core.records import Join


def parameters(
    subject: AuditContext, gradients: Mapping[str, float], likenesses: Mapping[str, WeightFingerprint]
) -> tuple[ParameterState, ...]:
    """Return the parameters, in the model's own order, each with its role, its place and its root mean square.

    Args:
        subject: what is audited.
        gradients: the norms of those that were measured, by parameter.
        likenesses: what weights look like, by parameter.
    """
    roles, homes = subject.structure.roles, _homes(subject)
    found = []
    for name, info in subject.structure.parameters.items():
        place, block, rms = subject.place(name), homes.get(name), subject.rms(name)
        measured = gradients.get(name), likenesses.get(name)
        found.append(ParameterState(name, info.shape, roles[name].name, place, block, rms, *measured))
    return tuple(found)


def blocks(subject: AuditContext) -> tuple[Block, ...]:
    """Return the residual blocks in the order of execution, inner ones before those around them."""
    return tuple(
        Block(join.name, join.kind, join.parent, is_closed(subject, join), join.branch)
        for join in subject.structure.joins
    )


def _homes(subject: AuditContext) -> dict[str, str]:
    """The innermost block in whose branch each parameter acts: its weights, and all else between fork and join."""
    flow, found = subject.flow, dict[str, str]()
    sums = {flow.step(n): n for n, term in enumerate(flow.terms) if term.data and term.kind == "sum" and not term.tag}
    for join in subject.structure.joins:  # inner ones come first
        position = sums.get(join.step)
        for term in _branch(flow, join, position) if position is not None else ():
            for name in _read(flow, term):
                found.setdefault(subject.first_name(name), join.name)
    around = ((name, subject.network.around(name)) for name in subject.structure.parameters)
    return {**{name: join.name for name, join in around if join is not None}, **found}


def _branch(flow: Dataflow, join: Join, position: int) -> Iterator[int]:
    """Yield the terms between the fork and the join that the shortcut does not pass, the last first."""
    term = flow.terms[position]
    if join.part is not None:
        shortcut = term.operands[join.part[1][0]]
    elif join.operand >= 0:
        shortcut = flow.positions.get(getattr(flow.nodes[term.node].args[join.operand], "name", ""), -1)
    else:
        shortcut = -1
    if shortcut < 0:
        return
    direct, reached = {shortcut}, set(flow.sources[position]) - {shortcut}
    heap = [-one for one in direct | reached]
    heapq.heapify(heap)
    while heap and reached:
        here = -heapq.heappop(heap)
        if here in direct and here in reached:  # the fork
            return
        side = direct if here in direct else reached
        if side is reached:
            yield here
        for source in flow.sources[here]:
            if source not in direct and source not in reached:
                heapq.heappush(heap, -source)
            side.add(source)


def _read(flow: Dataflow, position: int) -> Iterator[str]:
    """Yield the parameters that a term reads, as they are or in an expression of fixed values."""
    term = flow.terms[position]
    stack = [one for one in (*term.operands, *term.gates) if not flow.terms[one].data]
    seen = set(stack)
    while stack:
        here = flow.terms[stack.pop()]
        if here.kind == "parameter":
            yield flow.capture.parameters[here.node]
        fresh = {*here.operands, *here.gates} - seen
        seen |= fresh
        stack += fresh
