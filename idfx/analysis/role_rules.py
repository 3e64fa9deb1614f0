"""The rules by which a parameter gets its role, each with its evidence.

`RULES` decide for a parameter by all its uses, the first that applies; `SHARPER` give a use that is no weight's a
narrower name. `idfx.analysis.surroundings` determines the position of a weight.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from idfx.analysis.recurrence import recurrent_role
from idfx.analysis.rows import Ranges, ranges
from idfx.analysis.surroundings import Surroundings, weight_role
from idfx.analysis.traits import Traits, layout_traits, together
from idfx.analysis.uses import How, Use
from idfx.core.records import Join, Layout, Role
from idfx.core.roles import RoleName


@dataclass(frozen=True)
class Parts:
    """The joins that a parameter ends, scales or is added in, by parameter."""

    ends: Mapping[str, list[Join]]
    scales: Mapping[str, list[Join]]
    zeroed_biases: Mapping[str, list[Join]]

    @classmethod
    def of(cls, joins: Sequence[Join]) -> Parts:
        """Sort the joins by the parameters that they name."""
        found: tuple[dict[str, list[Join]], ...] = ({}, {}, {})
        for join in joins:
            named = (dict.fromkeys(end.parameter for end in join.ends), join.scales, join.zeroed_biases)
            for by_name, parameters in zip(found, named, strict=True):
                for parameter in parameters:
                    by_name.setdefault(parameter, []).append(join)
        return cls(*found)


@dataclass(frozen=True)
class Case:
    """One parameter, with everything that the rules use."""

    uses: Sequence[Use]
    shape: tuple[int, ...]
    around: Surroundings
    parts: Parts

    @property
    def parameter(self) -> str:
        """Its name in the graph."""
        return self.uses[0].parameter

    @functools.cached_property
    def weights(self) -> list[Use]:
        """Its uses as a weight."""
        return [use for use in self.uses if use.how is How.WEIGHT]

    @functools.cached_property
    def hows(self) -> list[How]:
        """How it is used; the use that decides the role comes first."""
        found = {use.how for use in self.uses}
        return [how for how in How if how in found]

    @property
    def mixed(self) -> bool:
        """Whether it is a vector whose numbers, or a table whose rows, are used one by one, and not all alike."""
        single = all(use.axes < sum(size > 1 for size in self.shape) for use in self.uses)
        unlike = len(self.hows) > 1 or len({use.added for use in self.uses}) > 1
        return single and unlike and How.WEIGHT not in self.hows

    @functools.cached_property
    def ending(self) -> list[Join]:
        """The joins whose branch it ends."""
        return self.parts.ends.get(self.parameter, [])

    @functools.cached_property
    def layouts(self) -> set[Layout | None]:
        """How it is read as a weight, by its uses."""
        return {use.layout for use in self.weights}

    @functools.cached_property
    def layout(self) -> Layout | None:
        """How it is read as a weight, by all uses or by those that end a branch; None where they differ."""
        read = self.weights if len(self.layouts) == 1 else self._acting()
        return _stacked(read, self.shape) if len({use.layout for use in read}) == 1 else None

    @functools.cached_property
    def places(self) -> list[tuple[RoleName, str]]:
        """What each of its uses as a weight makes it, with the evidence."""
        return [weight_role(use, self.around) for use in self.weights]

    def _acting(self) -> list[Use]:
        """The uses that end a branch: the matrix of an end is the one with which it does."""
        steps = {step for join in self.ending for step in join.end_steps}
        return [use for use in self.weights if self.around.flow.step(use.term) in steps]

    @functools.cached_property
    def sites(self) -> tuple[str, ...]:
        """Where it is used."""
        return tuple(dict.fromkeys(self.around.place(use.term) for use in self.uses))

    @functools.cached_property
    def traits(self) -> Traits:
        """Its traits as a weight."""
        if not self.weights:
            return {}
        own = layout_traits(self.layout, self.weights[0].slices, self.shape)
        return {**together([self.around.traits.get(use.term, {}) for use in self.weights]), **own}


_ADDED = (How.POSITION, How.OFFSET, How.TOKEN, How.OTHER)
_AMONG_SCORES = (How.POSITION, How.OFFSET, How.OTHER)


def _scales_branch(how: How, case: Case) -> str:
    crossed = [join.name for join in case.parts.scales.get(case.parameter, ())] if how is How.SCALE else []
    if any(use.term in case.around.shortcut for use in case.uses):  # it mixes the two
        return ""
    return f"it multiplies the branch of {', '.join(crossed)} after its end" if crossed else ""


def _shifts_branch(how: How, case: Case) -> str:
    added = [join.name for join in case.parts.zeroed_biases.get(case.parameter, ())] if how in _ADDED else []
    return f"it is added in the branch of {', '.join(added)} after its end" if added else ""


def _added_to_scores(how: How, case: Case) -> str:
    steers = how in _AMONG_SCORES and not any(use.term in case.around.signal for use in case.uses)
    softmax = any(case.around.flow.terms[use.term].tag == "softmax" for use in case.uses)
    return "it is added to scores, which gate another value" if steers and (how is How.OFFSET or softmax) else ""


def _varies_by_place(how: How, case: Case) -> str:
    varies = how is How.OFFSET and all(use.axes > 1 for use in case.uses if use.how is How.OFFSET)
    return f"it is added to data and differs at each position: {list(case.shape)}" if varies else ""


SHARPER: tuple[tuple[RoleName, Callable[[How, Case], str]], ...] = (
    (RoleName.BRANCH_SCALE, _scales_branch),
    (RoleName.BRANCH_SHIFT, _shifts_branch),
    (RoleName.ATTENTION_BIAS, _added_to_scores),
    (RoleName.POSITION, _varies_by_place),
)


def _ends_branch(case: Case) -> Role | None:
    if not case.ending:
        return None
    rows, traits = _ending_rows(case.parameter, case.ending), case.traits
    part = f"rows {', '.join(f'{a} to {b - 1}' for a, b in rows)}" if rows else "it"
    names = ", ".join(join.name for join in case.ending)
    evidence = f"at zero {part} make{'' if rows else 's'} the branch of {names} zero"
    if not case.weights and How.NORM_SCALE in case.hows:
        traits = {**traits, "norm": "it multiplies the output of a normalisation"}
    plus = next((end.added for join in case.ending for end in join.ends if end.parameter == case.parameter), 0.0)
    evidence = f"at {-plus:g} it makes the branch of {names} zero" if plus else evidence
    name = RoleName.END if case.weights else RoleName.END_SCALE
    return Role(name, evidence, case.layout, rows, case.sites, traits, added=plus)


def _used_otherwise(case: Case) -> Role | None:
    """Its role if it is not only a weight; one that only makes a fixed value can still be a weight."""
    others = (how for how in case.hows if how is not How.WEIGHT and not (how is How.FIXED and case.weights))
    how = next(others, None)
    if how is None:
        return None
    if how is How.RECURRENT:
        return recurrent_role(case.uses, case.shape, case.sites, case.traits)
    sharper = ((name, rule(how, case)) for name, rule in SHARPER)
    name, evidence = next(((name, why) for name, why in sharper if why), (how.role, how.evidence))
    if case.mixed:
        acts = dict.fromkeys(f"{use.how}, plus {use.added:g}" if use.added else str(use.how) for use in case.uses)
        name, evidence = RoleName.SCALE, f"its entries act differently: {', '.join(acts)}"
    tied = "; it is also used as a weight" if case.weights else ""
    added = {use.added for use in case.uses}
    plus = added.pop() if len(added) == 1 else 0.0
    evidence += f", plus {plus:g}" if plus else ""
    return Role(name, evidence + tied, sites=case.sites, traits=case.traits, added=plus)


def _several_matrices(case: Case) -> Role | None:
    several = "it is used as two different matrices"
    return _unresolved(case, several) if len(case.layouts) > 1 else None


def _several_forms(case: Case) -> Role | None:
    found = {name for name, _ in case.places}
    several = "it is used as a bilinear form and in another way"
    return _unresolved(case, several) if len(found) > 1 and RoleName.BILINEAR_FORM in found else None


def _unresolved(case: Case, evidence: str) -> Role:
    return Role(RoleName.UNRESOLVED, evidence, sites=case.sites, traits=case.traits)


def _stands(case: Case) -> Role:
    """A weight, by its position in its first use."""
    (name, evidence), *further = case.places
    others = sorted({other for other, _ in further} - {name})
    evidence += f"; elsewhere it is {', '.join(others)}" if others else ""
    return Role(name, evidence, case.layout, None, case.sites, case.traits, case.weights[0].activation)


RULES: tuple[Callable[[Case], Role | None], ...] = (
    _ends_branch,
    _used_otherwise,
    _several_matrices,
    _several_forms,
    _stands,
)


def role_of(case: Case) -> Role:
    """Return the role of a parameter: what the first rule that applies says."""
    return next(role for rule in RULES if (role := rule(case)) is not None)


def _stacked(weights: Sequence[Use], shape: tuple[int, ...]) -> Layout | None:
    """The layout of a weight; where each use takes some of its outputs, one matrix for each such part."""
    layout = weights[0].layout
    if layout is None or any(use.rows is None for use in weights):
        return layout
    borders = {border for use in weights for border in use.rows or ()} | {0, layout.outputs(shape)}
    height = math.gcd(*borders)
    alone = any(use.rows is not None and use.rows[1] - use.rows[0] == height for use in weights)
    return replace(layout, parts=layout.outputs(shape) // height) if alone and layout.groups == 1 else layout


def _ending_rows(parameter: str, joins: Sequence[Join]) -> Ranges | None:
    """The rows that end some branch; None for all of them."""
    found = [end.rows for join in joins for end in join.ends if end.parameter == parameter]
    if any(rows is None for rows in found):
        return None
    return ranges({row for rows in found for start, stop in rows or () for row in range(start, stop)})
