"""What each parameter is for, with the evidence: read from where it meets the data and in which block.

A weight has one place (its role's name): input stem, main stem, transition, projection shortcut, inner, end, head. What
it does there beside (query, gate, depthwise, ...) are its traits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.paths import Paths
from idfx.analysis.recurrence import recurrent_role
from idfx.analysis.rows import Ranges, ranges
from idfx.analysis.sites import ParameterUses
from idfx.analysis.traits import Traits, layout_traits, read_traits, together
from idfx.analysis.uses import Use
from idfx.core.records import Join, Layout, Role

# The role of a parameter that is no weight follows from how it is used; the first that applies.
_PLAIN = {
    "table": ("embedding", "rows of it are looked up by an index"),
    "recurrent": ("recurrent", "it belongs to a recurrent layer"),
    "norm scale": ("norm scale", "it multiplies the output of a normalisation"),
    "norm shift": ("norm shift", "it is added to the output of a normalisation"),
    "bias": ("bias", "it is added to the output of a weight"),
    "gain": ("gain", "it multiplies a weight before its use"),
    "scale": ("scale", "it multiplies data entry by entry"),
    "position": ("position", "rows of it are looked up by fixed indices"),
    "offset": ("offset", "it is added to data"),
    "token": ("token", "it is put beside the data"),
    "other": ("other", "it meets the data in no way that idfx has a rule for"),
    "fixed": ("fixed", "it makes a value that no input changes, by weights of its own"),
}


@dataclass(frozen=True)
class Surroundings:
    """Where a weight stands: the join of its branch or shortcut, and what of the network lies before and behind it."""

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
        """Return the join that a term is, or else the module in whose forward it stands."""
        return self.names.get(term) or self.flow.module(term) or self.flow.capture.model


def _first_and_last(flow: Dataflow, paths: Paths) -> tuple[frozenset[int], frozenset[int]]:
    """The weight sites with no weight before them, and those with none between them and the outputs."""
    sites = {p for p, term in enumerate(flow.terms) if term.kind == "contract" and term.tag != "table" and term.data}
    reaching = {p for p in sites if paths.reaches_output(p)}
    return frozenset(sites - _behind(flow, sites)), frozenset(reaching - _before(flow, sites))


def _behind(flow: Dataflow, start: set[int]) -> set[int]:
    """The terms that some of the given ones lead to."""
    found: set[int] = set()
    reached = set(start)
    for position in range(len(flow.terms)):
        if not reached.isdisjoint(flow.sources[position]):
            found.add(position)
            reached.add(position)
    return found


def _before(flow: Dataflow, start: set[int]) -> set[int]:
    """The terms that lead to some of the given ones."""
    found: set[int] = set()
    for position in range(len(flow.terms) - 1, -1, -1):
        if position in start or position in found:
            found.update(flow.sources[position])
    return found


def _weight_role(use: Use, around: Surroundings) -> tuple[str, str]:
    term = use.term
    if _is_form(use, around.flow):
        return "bilinear form", "it multiplies two values with one another, one matrix for each output"
    if use.layout is None:
        return "unresolved", "it is a weight, but not read as a plain matrix"
    if term in around.shortcut:
        return (
            "projection shortcut",
            f"it stands on the shortcut of the join {around.names[around.shortcut[term]]}",
        )
    if term in around.stem:
        return "inner", f"it stands between fork and join in the branch of {around.names[around.stem[term]]}"
    if term in around.last:
        return "head", "no weight stands between it and the outputs"
    if term in around.first:
        return "input stem", "no weight stands between the inputs and it"
    if term in around.between:
        return "transition", "it stands in no residual branch, but between residual joins"
    return "main stem", "it stands in no residual branch"


def _is_form(use: Use, flow: Dataflow) -> bool:
    """Whether a weight, as it is, is that of an operator with two data operands, (out, in1, in2)."""
    term = flow.terms[use.term]
    return term.tag == "bilinear" and flow.terms[term.operands[1]].kind == "parameter"


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


def _plain_role(
    how: str, uses: Sequence[Use], shape: tuple[int, ...], around: Surroundings, parts: Parts
) -> tuple[str, str]:
    """The role of a parameter that is no weight, or not a weight alone."""
    name, evidence = _PLAIN[how]
    parameter = uses[0].parameter
    crossed = [join.name for join in parts.scales.get(parameter, ())]
    added = [join.name for join in parts.zeroed_biases.get(parameter, ())]
    if how == "scale" and crossed:
        name, evidence = "branch scale", f"it multiplies the branch of {', '.join(crossed)} behind its end"
    elif how in ("position", "offset", "token", "other") and added:
        name, evidence = "branch shift", f"it is added in the branch of {', '.join(added)} behind its end"
    elif how in ("position", "offset", "other") and not any(use.term in around.signal for use in uses):
        if how == "offset" or any(around.flow.terms[use.term].tag == "softmax" for use in uses):
            name, evidence = "attention bias", "it is added to scores, which steer another value"
    elif how == "offset" and all(use.axes > 1 for use in uses if use.how == "offset"):
        name, evidence = "position", f"it is added to data, and is another at each place: {list(shape)}"
    return name, evidence


def _role(uses: Sequence[Use], shape: tuple[int, ...], around: Surroundings, parts: Parts) -> Role:
    sites = _terms(uses, around)
    weights = [use for use in uses if use.how == "weight"]
    ending = parts.ends.get(uses[0].parameter, [])
    layouts = {use.layout for use in weights}
    read = weights if len(layouts) == 1 else _acting(weights, ending, around)
    layout = _stacked(read, shape) if len({use.layout for use in read}) == 1 else None
    traits: Traits = {}
    if weights:
        own = layout_traits(layout, weights[0].slices, shape)
        traits = {**together([around.traits.get(use.term, {}) for use in weights]), **own}
    if ending:
        names = ", ".join(join.name for join in ending)
        rows = _ending_rows(uses[0].parameter, ending)
        part = f"rows {', '.join(f'{a} to {b - 1}' for a, b in rows)}" if rows else "it"
        evidence = f"at zero {part} make{'' if rows else 's'} the branch of {names} zero"
        if not weights and any(use.how == "norm scale" for use in uses):
            traits = {**traits, "norm": "it multiplies the output of a normalisation"}
        return Role("end" if weights else "end scale", evidence, layout, rows, sites, traits)
    hows = {use.how for use in uses}
    for how in _PLAIN:
        if how in hows and how == "recurrent":
            return recurrent_role(uses, shape, sites, traits)
        if how in hows and not (how == "fixed" and weights):
            name, evidence = _plain_role(how, uses, shape, around, parts)
            tied = "; it is also used as a weight" if weights else ""
            return Role(name, evidence + tied, sites=sites, traits=traits)
    if len(layouts) > 1:
        return Role("unresolved", "it is used as two different matrices", None, None, sites, traits)
    roles = [_weight_role(use, around) for use in weights]
    name, evidence = roles[0]
    found = {other for other, _ in roles}
    if len(found) > 1 and "bilinear form" in found:
        return Role("unresolved", "it is used as a bilinear form and otherwise", None, None, sites, traits)
    others = sorted(found - {name})
    evidence += f"; elsewhere it is {', '.join(others)}" if others else ""
    return Role(name, evidence, layout, None, sites, traits, weights[0].activation)


def _acting(weights: Sequence[Use], ending: Sequence[Join], around: Surroundings) -> list[Use]:
    """The uses of a weight that end a branch: the matrix of an end is the one with which it does."""
    steps = {step for join in ending for step in join.end_steps}
    return [use for use in weights if around.flow.step(use.term) in steps]


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


def _terms(uses: Sequence[Use], around: Surroundings) -> tuple[str, ...]:
    return tuple(dict.fromkeys(around.place(use.term) for use in uses))


def assign_roles(
    flow: Dataflow, paths: Paths, sites: ParameterUses, stem: Mapping[int, int], shortcut: Mapping[int, int],
    names: Mapping[int, str], joins: Mapping[int, Join],
) -> dict[str, Role]:  # fmt: skip
    """Return the role of every parameter.

    Args:
        flow, paths, sites: what was read from the graph.
        stem, shortcut: the join in whose branch or on whose shortcut a term stands.
        names: how joins are called.
        joins: the residual joins, by term.
    """
    first, last = _first_and_last(flow, paths)
    between = frozenset(_behind(flow, set(joins)) & _before(flow, set(joins)))
    traits = read_traits(flow, paths)
    around = Surroundings(flow, stem, shortcut, names, first, last, between, paths.signal, traits)
    parts = Parts.of([join for join in joins.values() if join.zeroable])
    roles = {}
    for name, info in flow.capture.info.items():
        uses = [use for alias in (name, *info.aliases) for use in sites.uses.get(alias, ())]
        if uses:
            roles[name] = _role(uses, info.shape, around, parts)
        else:
            hidden = ", ".join(module or "the model's own forward" for module in flow.capture.hidden)
            unseen = Role("unresolved", f"no use of it is seen, but torch.func hides the operators in {hidden}")
            roles[name] = unseen if hidden else Role("unused", "the forward pass of the example does not use it")
    return roles
