"""Structure → the weights and phases of oscillating functions, for which no scheme has a rule.

Identities, orthogonal matrices and fans assume that a function passes on what enters it: nearly as it is, or a share of
it at any size. A function that turns back again and again does not: it makes the same of many values, and an identity
before it passes nothing on. What leads into it are frequencies and phases, which the author chose for the signals to be
fitted, and what reads from it mixes these frequencies.

Source: ours; Sitzmann et al., "Implicit neural representations with periodic activation functions", NeurIPS 2020, arXiv
2006.09661, for how much depends on their distribution.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from idfx.analysis.queries import StructureQueries
from idfx.analysis.structure import analysis_of
from idfx.analysis.uses import How, Use
from idfx.core.records import FACTS
from idfx.ops.kinds import Kind

_TURNS = 8  # of a function from −50 to 50; GELU and other activations have one or two
_LED_INTO = "it leads into {}, which turns back again and again, so that no matrix passes a signal on through it"
_READS = "it mixes the frequencies that {} makes"
_KEPT = "; its author's values are kept"


def frequencies(network: StructureQueries) -> dict[str, str]:
    """Return the parameters that lead into an oscillating function or read from it, each with the reason to keep it.

    Args:
        network: the structure of the model.
    """
    names = network.structure.first_names
    found: dict[str, str] = {}
    into: dict[str, str] = {}
    for use in _weights(network):
        if oscillates(use.activation):
            into[names[use.parameter]] = use.activation
            found |= {name: _LED_INTO.format(use.activation) + _KEPT for name in _phases(network, use)}
    found |= {name: _LED_INTO.format(function) + _KEPT for name, function in into.items()}
    for name in network.structure.roles if into else ():
        before = network.before(name)
        if before and into.keys() >= {*before}:
            found.setdefault(name, _READS.format(into[before[0]]) + _KEPT)
    return found


@functools.cache
def oscillates(operator: str) -> bool:
    """Return whether an elementwise operator turns back again and again.

    Example:
        >>> [oscillates(f"aten.{name}") for name in ("sin", "cos", "gelu", "silu", "relu", "tanh", "softplus")]
        [True, True, False, False, False, False, False]
        >>> oscillates("aten.argmin")
        False
    """
    function = getattr(torch.ops.aten, operator.removeprefix("aten."), None) if operator else None
    if function is None:
        return False
    try:
        values = function(torch.linspace(-50, 50, 10_001, dtype=torch.float64))
    except (RuntimeError, TypeError, NotImplementedError):  # it takes more than the value
        return False
    if not isinstance(values, torch.Tensor) or values.dim() != 1 or not values.is_floating_point():  # a reduction, say
        return False
    steps = values.mul(1e6).round().diff()  # without the rounding of its tails
    steps = steps[steps != 0]
    return int((steps[1:] * steps[:-1] < 0).sum()) >= _TURNS


def _weights(network: StructureQueries) -> Iterator[Use]:
    uses = analysis_of(network.structure).uses.uses
    return (use for found in uses.values() for use in found if use.how is How.WEIGHT)


def _phases(network: StructureQueries, use: Use) -> Iterator[str]:
    """The shifts that are added between a weight and the function that follows."""
    flow, position, nodes = network.flow, use.term, {network.flow.terms[use.term].node}
    while len(users := flow.users.get(position, ())) == 1 and not flow.terms[users[0]].kind.is_function:
        position = users[0]
        if flow.terms[position].kind is Kind.SUM:
            nodes.add(flow.terms[position].node)
    roles, names = network.structure.roles, network.structure.first_names
    for node in network.structure.capture.graph.nodes:
        if node.op == "get_attr" and node.meta[FACTS].kind == "parameter" and nodes & {u.name for u in node.users}:
            name = names[node.meta[FACTS].name]
            if roles[name].name.is_shift:
                yield name
