"""Constant factors: numbers by which a model multiplies a weight before its use, or its output behind it.

A scheme decides about the matrix that acts. Where the model multiplies a weight by c (an equalised learning rate, 1/√d,
LoRA's α/r), the entries are divided by c, so that the acting matrix is the identity, or has the size that was planned.
Behind a weight the factors up to the next weight, sum or normalisation count, through functions as for small values, so
that c · tanh(x / c) counts as 1.

Source: ours; Karras et al., "Progressive growing of GANs", ICLR 2018, arXiv 1710.10196, for equalised learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.queries import StructureQueries
from idfx.analysis.structure import analysis_of
from idfx.analysis.uses import How
from idfx.core.records import Decision
from idfx.fills import fills
from idfx.ops.kinds import Kind

SIZES = ("tau", "eps", "eps_tau", "gain", "scale", "std", "bound")  # arguments of fills that multiply entries


def acting(network: StructureQueries, decisions: Mapping[str, Decision]) -> dict[str, Decision]:
    """Return the decisions with the entries of each weight divided by the constant factor that multiplies it.

    Args:
        network: the structure of the model.
        decisions: of a scheme, by parameter.
    """
    factors = constant_factors(network)
    return {name: _divided(decision, factors.get(name, 1.0)) for name, decision in decisions.items()}


def constant_factors(network: StructureQueries) -> dict[str, float]:
    """Return the constant factor of each weight that has one; a weight that only steers other values has none.

    Args:
        network: the structure of the model.
    """
    structure, flow = network.structure, network.flow
    found: dict[str, float] = {}
    for parameter, uses in analysis_of(structure).uses.uses.items():
        role = structure.roles[structure.first_names[parameter]]
        if not role.name.is_weight or role.layout is None or "gating" in role.traits:
            continue
        factors = {_before(flow, use.term) * _behind(flow, use.term) for use in uses if use.how is How.WEIGHT}
        if len(factors) == 1 and not math.isclose(factor := factors.pop(), 1.0) and math.isfinite(1 / factor):
            found[structure.first_names[parameter]] = factor
    return found


def _before(flow: Dataflow, term: int) -> float:
    """The factor between a weight and the operator that uses it; 1 if anything else happens to it."""
    own = [operand for operand in flow.terms[term].operands if not flow.terms[operand].data]
    position, factor = own[0] if len(own) == 1 else term, 1.0
    while (found := flow.terms[position]).kind in (Kind.MOVE, Kind.SCALE) and len(found.operands) == 1:
        factor *= _number(found.kind, found.factor) or math.nan
        position = found.operands[0]
    return factor if found.kind is Kind.PARAMETER and not math.isnan(factor) else 1.0


def _behind(flow: Dataflow, position: int) -> float:
    """The factor between a weight's output and the next weight, sum or product; 1 if a normalisation comes first."""
    factor = 1.0
    while len(users := flow.users.get(position, ())) == 1:
        term = flow.terms[users[0]]
        added = term.kind is Kind.SUM and len(flow.addends(users[0])) == 1
        if term.kind not in (Kind.MOVE, Kind.SCALE, Kind.MAP, Kind.NORM) and not added:
            break
        if term.kind is Kind.NORM or (number := _number(term.kind, term.factor)) is None:
            return 1.0
        factor, position = factor * number, users[0]
    return factor


def _number(kind: Kind, factor: float | None) -> float | None:
    """The size of the factor of a term; None where it is not known, or 0."""
    return (abs(factor) or None if factor is not None else None) if kind is Kind.SCALE else 1.0


def _divided(decision: Decision, factor: float) -> Decision:
    known = {name: value for name, value in fills.arguments(decision).items() if name in SIZES} if factor != 1 else {}
    sizes = {name: value / factor for name, value in known.items() if isinstance(value, (int, float)) and value}
    if not sizes:
        return decision
    why = f"; the model multiplies it by {factor:.4g}, and its entries are divided by that (ours)"
    return replace(decision, arguments={**decision.arguments, **sizes}, reason=decision.reason + why)
