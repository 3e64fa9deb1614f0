"""How the data flow directly uses the output of each weight."""

from __future__ import annotations

from collections.abc import Callable

from idfx.analysis.dataflow import Dataflow


def behind(flow: Dataflow, first: Callable[[str], str]) -> tuple[dict[str, float], dict[str, set[str]]]:
    """Return the constant below 1 that multiplies the output of each weight, and the parameters added to it.

    For a weight with several uses it is the largest constant; an unscaled output has 1.

    Args:
        flow: the data flow of one forward pass.
        first: from a name of a parameter to its first name.
    """
    terms = flow.terms
    factors: dict[str, float] = {}
    added: dict[str, set[str]] = {}
    outputs: dict[int, str] = {}  # by term: the weight whose output it is, possibly moved
    for position, term in enumerate(terms):
        leaves = [terms[operand].node for operand in term.operands if terms[operand].kind == "parameter"]
        names = [first(flow.capture.parameters[leaf]) for leaf in leaves]
        before = [outputs[operand] for operand in term.operands if operand in outputs]
        if term.kind == "contract" and names:
            outputs[position] = names[0]
            factors[names[0]] = max(factors.get(names[0], 0.0), factor_behind(flow, position))
        elif term.kind.is_proportional and before:
            outputs[position] = before[0]
        elif term.kind == "sum":
            for name in before:
                added.setdefault(name, set()).update(names)
    return factors, added


def factor_behind(flow: Dataflow, position: int) -> float:
    """Return the constant below 1 by which the only user of a term multiplies it, otherwise 1.

    Args:
        flow: the data flow of one forward pass.
        position: of a term.
    """
    users = flow.users.get(position, ())
    user = flow.terms[users[0]] if len(users) == 1 else None
    return min(1.0, abs(user.factor)) if user is not None and user.kind == "scale" and user.factor else 1.0


def factor_before(flow: Dataflow, position: int) -> float:
    """Return the product of the constants that multiply the data of a weight site directly before it.

    Args:
        flow: the data flow of one forward pass.
        position: of the weight site.
    """
    factor, term = 1.0, flow.terms[flow.terms[position].operands[0]]
    while term.kind.is_proportional and term.eps is None:
        factor *= abs(term.factor) if term.kind == "scale" and term.factor else 1.0
        term = flow.terms[term.operands[0]]
    return factor
