"""The position of a weight and the resulting role: an ordered table of rules, each with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.traits import Traits
from idfx.analysis.uses import How, Use
from idfx.core.roles import RoleName
from idfx.ops.kinds import Kind


@dataclass(frozen=True)
class Surroundings:
    """The position of a weight: the join of its branch or shortcut, and the network before and after it."""

    flow: Dataflow
    stem: Mapping[int, int]
    shortcut: Mapping[int, int]
    names: Mapping[int, str]
    first: frozenset[int]
    last: frozenset[int]
    between: frozenset[int]
    signal: frozenset[int]
    traits: Mapping[int, Traits]

    def place(self, term: int) -> str:
        """Return the join at a term, or otherwise the module of its forward."""
        return self.names.get(term) or self.flow.module(term) or self.flow.capture.model


def _is_form(use: Use, around: Surroundings) -> str:
    """A weight that is, as it is, that of an operator with two data operands, (out, in1, in2)."""
    term = around.flow.terms[use.term]
    whole = term.tag == "bilinear" and around.flow.terms[term.operands[1]].kind is Kind.PARAMETER
    return "it multiplies two values with each other, with one matrix for each output" if whole else ""


def _is_not_read(use: Use, around: Surroundings) -> str:
    return "" if use.layout is not None else "it is a weight, but not a plain matrix"


def _is_on_shortcut(use: Use, around: Surroundings) -> str:
    join = around.shortcut.get(use.term)
    return "" if join is None else f"it is on the shortcut of the join {around.names[join]}"


def _is_in_branch(use: Use, around: Surroundings) -> str:
    join = around.stem.get(use.term)
    return "" if join is None else f"it is between fork and join in the branch of {around.names[join]}"


def _is_last(use: Use, around: Surroundings) -> str:
    return "there is no weight between it and the outputs" if use.term in around.last else ""


def _is_first(use: Use, around: Surroundings) -> str:
    return "there is no weight between the inputs and it" if use.term in around.first else ""


def _is_between(use: Use, around: Surroundings) -> str:
    between = use.term in around.between
    return "it is in no residual branch, but between residual joins" if between else ""


# The first that applies; a rule returns its evidence, or nothing.
RULES: tuple[tuple[RoleName, Callable[[Use, Surroundings], str]], ...] = (
    (RoleName.BILINEAR_FORM, _is_form),
    (RoleName.UNRESOLVED, _is_not_read),
    (RoleName.PROJECTION_SHORTCUT, _is_on_shortcut),
    (RoleName.INNER, _is_in_branch),
    (RoleName.HEAD, _is_last),
    (RoleName.INPUT_STEM, _is_first),
    (RoleName.TRANSITION, _is_between),
)


def weight_role(use: Use, around: Surroundings) -> tuple[RoleName, str]:
    """Return the role of a weight by one of its uses, and the evidence.

    Args:
        use: of the weight.
        around: the surroundings of its uses.
    """
    for name, rule in RULES:
        if evidence := rule(use, around):
            return name, evidence
    return How.WEIGHT.role, How.WEIGHT.evidence
