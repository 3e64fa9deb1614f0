"""Which parameters a gradient can ever reach, given which are zero: the data flow evaluated as "zero" and "not zero".

Forwards, the terms determine whether a value is zero (docs/structure.md, "Terms"). Backwards, no gradient passes a
factor of a product whose other factor is zero, or a function whose derivative at 0 is 0 if its operand is zero (ReLU).
Everything else is assumed to pass gradients, so every parameter reported as starved is.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.fx

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.graph import before
from idfx.analysis.terms import DataflowNode
from idfx.ops.kinds import Kind, Zero


def reaching(flow: Dataflow) -> frozenset[str]:
    """Return the parameters that have a path to an output.

    Args:
        flow: the data flow of one forward pass.
    """
    found = before(flow.term_graph, flow.outputs).union(flow.outputs)
    return frozenset(name for position, name in _leaves(flow) if position in found)


def starved(
    flow: Dataflow, zeros: Collection[str], frozen: Collection[str], first: Callable[[str], str],
    filled: Collection[int] = (),
) -> frozenset[str]:  # fmt: skip
    """Return the parameters that no gradient ever reaches, by first name.

    A parameter that a gradient reaches is non-zero after one step, which may let a gradient reach others; this is
    repeated until nothing changes.

    Args:
        flow: the data flow of one forward pass; every output is assumed to have a gradient.
        zeros: the parameters that are zero, by first name.
        frozen: those that are never updated.
        first: from a name of a parameter to its first name.
        filled: terms that are zero but should be treated as non-zero.
    """
    leaves = {position: first(name) for position, name in _leaves(flow)}
    zeros = set(zeros)
    while True:
        reached = _reached(flow, {position for position, name in leaves.items() if name in zeros}, filled)
        fed = {name for position, name in leaves.items() if reached[position]}
        opened = (zeros & fed).difference(frozen)
        if not opened:
            return frozenset(leaves.values()) - fed
        zeros -= opened


def carried(flow: Dataflow, zeros: Collection[str], first: Callable[[str], str]) -> tuple[frozenset[int], bool]:
    """Return the outputs that depend on an input, given the parameters that are zero, and whether a weight sees zeros.

    Args:
        flow, zeros, first: as in `starved`.
    """
    zero = _zero_terms(flow, {position for position, name in _leaves(flow) if first(name) in zeros})
    depends = _depending(flow, zero)
    behind = any(term.kind is Kind.CONTRACT and zero[term.operands[0]] for term in flow.terms)
    return frozenset(output for output in flow.outputs if depends[output]), behind


def lost_inputs(flow: Dataflow, zeros: Collection[str], first: Callable[[str], str]) -> tuple[str, ...]:
    """Return the inputs that no output depends on, although some would if none of these parameters were zero.

    Args:
        flow, zeros, first: as in `starved`.
    """

    def acting(names: Collection[str]) -> int:
        depends = _depending(flow, _zero_terms(flow, {at for at, name in _leaves(flow) if first(name) in names}))
        return functools.reduce(operator.or_, (depends[output] for output in flow.outputs), 0)

    lost = acting(()) & ~acting(zeros)
    inputs = [term.node for term in flow.terms if term.kind is Kind.INPUT]
    return tuple(name for number, name in enumerate(inputs) if lost >> number & 1)


def _depending(flow: Dataflow, zero: list[bool]) -> list[int]:
    """Of each term the inputs that it depends on, one bit each, given which terms are zero."""
    depends: list[int] = []
    inputs = 0
    for position, term in enumerate(flow.terms):
        found = 1 << inputs if term.kind is Kind.INPUT else 0
        inputs += term.kind is Kind.INPUT
        for other in (*term.operands, *term.gates):
            found |= depends[other]
        depends.append(0 if zero[position] else found)
    return depends


def fed(flow: Dataflow, zeros: Collection[str], first: Callable[[str], str]) -> frozenset[str]:
    """Return the parameters that a gradient reaches in the first step, by first name.

    Args:
        flow, zeros, first: as in `starved`.
    """
    leaves = {position: first(name) for position, name in _leaves(flow)}
    reached = _reached(flow, {position for position, name in leaves.items() if name in zeros})
    return frozenset(name for position, name in leaves.items() if reached[position])


def _leaves(flow: Dataflow) -> Iterator[tuple[int, str]]:
    for position, term in enumerate(flow.terms):
        if term.kind == "parameter":
            yield position, flow.capture.parameters[term.node]


def _reached(flow: Dataflow, zeros: Collection[int], filled: Collection[int] = ()) -> list[bool]:
    """Which terms a gradient reaches at one step, given the parameter terms that are zero.

    By hand, as is `starved`: which edges a gradient passes depends on values, and these on the last round.
    """
    zero = _zero_terms(flow, zeros, filled)
    reached = [False] * len(flow.terms)
    for output in flow.outputs:
        reached[output] = True
    for position in range(len(flow.terms) - 1, -1, -1):
        if reached[position]:
            for operand in _passed_on(flow, position, zero):
                reached[operand] = True
    return reached


def _zero_terms(flow: Dataflow, zeros: Collection[int], filled: Collection[int] = ()) -> list[bool]:
    """Which terms are zero for every input."""
    zero: list[bool] = []
    for position, term in enumerate(flow.terms):
        operands = [zero[operand] for operand in term.operands]
        if term.kind == "parameter":
            zero.append(position in zeros)
        elif position in filled:
            zero.append(False)
        else:
            zero.append(term.kind.vanishes(operands) or _is_nothing(term))
    return zero


def _passed_on(flow: Dataflow, position: int, zero: list[bool]) -> Iterator[int]:
    """The terms that receive a gradient if this one does."""
    term = flow.terms[position]
    yield from term.gates
    if term.kind.multiplies:
        for index, operand in enumerate(term.operands):
            if not any(zero[other] for at, other in enumerate(term.operands) if at != index):
                yield operand
    elif not _is_nothing(term) and not _is_flat(flow, position, zero):
        yield from term.operands


def _is_nothing(term: DataflowNode) -> bool:
    """Whether a term is zero whatever its operands are."""
    return term.kind.zero is Zero.ALWAYS or (term.kind is Kind.SCALE and term.factor == 0)


def _is_flat(flow: Dataflow, position: int, zero: list[bool]) -> bool:
    """Whether a term is a function of a single zero value, where its torch derivative is 0."""
    term = flow.terms[position]
    if term.kind is not Kind.MAP or not all(zero[operand] for operand in term.operands):
        return False
    node = flow.nodes[flow.terms[position].node]
    inputs = node.all_input_nodes
    whole = flow.positions[node.name] == position and len(inputs) == 1 and not isinstance(node.target, str)
    if not whole or flow.terms[position].operands != (flow.positions[inputs[0].name],):
        return False
    words = tuple(_Zero if argument is inputs[0] else argument for argument in node.args)
    if any(isinstance(word, (list, torch.fx.Node)) for word in words):
        return False
    try:
        return _derivative(node.target, words, tuple(sorted(node.kwargs.items()))) == 0
    except TypeError:  # an argument that cannot be looked up
        return False


class _Zero:
    """Stands for a tensor of one zero."""


@functools.lru_cache(4096)
def _derivative(target: Any, words: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> float | None:
    """The derivative of an operator at 0; None where it cannot be taken."""
    with torch.enable_grad():
        start = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        try:
            result = target(*[start.clone() if word is _Zero else word for word in words], **dict(options))
            (found,) = torch.autograd.grad(result.sum(), start)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
            return None
    return float(found)
