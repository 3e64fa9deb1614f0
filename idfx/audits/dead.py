"""Zeros that follow zeros, which no gradient can change."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.audits.folding import Folding
from idfx.audits.gradient_flow import starved
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding, Severity

_REMEDY = "Make one of the factors here non-zero; a zero gets a gradient only if what it multiplies is not zero."


@metric("dead")
def dead(subject: AuditContext) -> Iterator[Finding]:
    """Zeros after zeros, or before a ReLU, that no gradient reaches at the first step or later.

    Definition: the parameters that no gradient ever reaches because others are zero. Values propagate through the data
    flow as "zero" or "not zero", and gradients backwards. A zero that a gradient reaches is non-zero after one step, so
    the propagation is repeated until nothing changes. The remaining parameters starve: two zero factors of a product (a
    zero scale after a zero weight), everything before them, and a weight that gives a ReLU only zeros. Only tensors
    that are entirely zero count; everything else is assumed to pass a gradient; frozen zeros stay zero. Each zero
    factor that starves gets a finding. A buffer of zeros that multiplies data elementwise, and so blocks gradients of
    parameters, is also a zero factor (a warning if it is first multiplied by further buffers, as in a frozen
    normalisation before a checkpoint is loaded).

    Unit: trainable parameters without a gradient. Threshold: 0 (error): they never change.

    Source: the product rule; for ReLU, torch's derivative at 0, which is 0. Zhang, Dauphin and Ma, "Fixup
    initialization", ICLR 2019, close each branch with a single zero.
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
        message = f"{stays}; such zeros keep gradients from {len(hungry)} trainable parameters of the model"
        yield subject.finding("error", "dead", name, len(hungry), 0, message, _REMEDY)


def _by_buffers(subject: AuditContext) -> Iterator[Finding]:
    """Yield findings for buffers of zeros that multiply data and block gradients of parameters."""
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
            message = f"a buffer of zeros multiplies data and keeps gradients from {len(hungry)} trainable parameters"
            severity: Severity = "warning" if name in scaled else "error"
            yield subject.finding(severity, "dead", name, len(hungry), 0, message, _REMEDY)


def _starved(subject: AuditContext, zeros: set[str], frozen: set[str]) -> frozenset[str]:
    return starved(subject.flow, zeros, frozen, subject.first_name)
