"""Zeros behind zeros, that no gradient can open."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.audits.folding import Folding
from idfx.audits.gradient_flow import starved
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding, Severity

_REMEDY = "Make one of the factors in this place other than zero; a zero opens only if what it multiplies is not zero."


@metric("dead")
def dead(subject: AuditContext) -> Iterator[Finding]:
    """A zero behind a zero, or before a ReLU: no gradient arrives, at the first step or later.

    Definition: the parameters that no gradient ever reaches because others are zero. The data flow is followed with
    "zero" and "not zero" for values, backwards for gradients; a zero that a gradient reaches is open after one step,
    and the flow is followed again, until nothing changes. What is left starves: both factors of a product that are zero
    (a zero scale behind a zero weight), all that stands before them, and a weight that gives a ReLU zeros alone. Only
    whole tensors of zeros count, all else is taken to let a gradient through; frozen zeros stay. A finding is placed at
    each zero factor that starves. A buffer of zeros that multiplies data entry by entry, and with that keeps the
    gradient from parameters, is a zero factor too (a warning where it is multiplied by further buffers first, as in a
    frozen normalisation, which waits for a checkpoint).

    Unit: trainable parameters without a gradient. Threshold: 0 (error): they stay as they are for ever.

    Source: the product rule; for ReLU, torch's derivative at 0, which is 0. Zhang, Dauphin and Ma, "Fixup
    initialization", ICLR 2019, close each branch by one zero alone.
    """
    yield from _by_buffers(subject)
    infos, roles = subject.structure.parameters, subject.structure.roles
    zeros = {name for name in infos if subject.sound(name) and subject.is_zero(name)}
    if not zeros:
        return
    frozen = {name for name, info in infos.items() if not info.requires_grad}
    without = _starved(subject, zeros, frozen)
    hungry = without - _starved(subject, set(), frozen) - frozen
    if not hungry:
        return
    factors = [name for name in infos if name in zeros and roles[name].name.multiplies]
    roots = [name for name in factors if name in hungry]
    for name in factors:
        if name in frozen and len(_starved(subject, zeros - {name}, frozen)) < len(without):
            roots.append(name)
    for name in roots or sorted(hungry):
        stays = "it is frozen at zero" if name in frozen else "it is zero, and no gradient ever reaches it"
        message = f"{stays}; {len(hungry)} trainable parameters of the model get none for such zeros"
        yield subject.finding("error", "dead", name, len(hungry), 0, message, _REMEDY)


def _by_buffers(subject: AuditContext) -> Iterator[Finding]:
    """Buffers of zeros that multiply data, and keep the gradient from parameters."""
    flow, folding = subject.flow, Folding(subject)
    frozen = {name for name, info in subject.structure.parameters.items() if not info.requires_grad}
    factors: dict[str, set[int]] = {}
    scaled: set[str] = set()  # those that act through a product with further buffers
    for term in flow.terms:
        if term.kind == "product" and term.data:
            for operand in term.operands:
                if flow.terms[operand].kind == "zero":
                    leaves = folding.leaves(flow.nodes[flow.terms[operand].node])
                    scaled.update(leaves if len(leaves) > 1 else ())
                    for name in leaves:
                        if name not in subject.structure.parameters and not bool(subject.tensors[name].any()):
                            factors.setdefault(name, set()).add(operand)
    for name, terms in factors.items():
        without = starved(flow, (), frozen, subject.first_name)
        hungry = without - starved(flow, (), frozen, subject.first_name, terms) - frozen
        if hungry:
            message = f"a buffer of zeros multiplies data; {len(hungry)} trainable parameters get no gradient for it"
            severity: Severity = "warning" if name in scaled else "error"
            yield subject.finding(severity, "dead", name, len(hungry), 0, message, _REMEDY)


def _starved(subject: AuditContext, zeros: set[str], frozen: set[str]) -> frozenset[str]:
    return starved(subject.flow, zeros, frozen, subject.first_name)
