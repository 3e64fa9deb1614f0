"""What each parameter is for, with the evidence: read from where it meets the data and in which block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from idfx.attention import attention_parts
from idfx.flow import Flow
from idfx.paths import Paths
from idfx.records import Join, Layout, Role
from idfx.rows import Ranges, ranges
from idfx.sites import Sites, Use

# The role of a parameter that is no weight follows from how it is used.
_PLAIN = {
    "table": ("embedding", "rows of it are looked up by an index"),
    "recurrent": ("recurrent", "it belongs to a recurrent layer"),
    "norm scale": ("norm scale", "it multiplies the output of a normalisation"),
    "norm shift": ("norm shift", "it is added to the output of a normalisation"),
    "bias": ("bias", "it is added to the output of a weight"),
    "gain": ("gain", "it multiplies a weight before its use"),
    "scale": ("scale", "it multiplies data entry by entry"),
    "offset": ("offset", "it is added to data (a position, say)"),
    "token": ("token", "it is put beside the data"),
    "other": ("other", "it meets the data in no way that idfx has a rule for"),
}


@dataclass(frozen=True)
class Surroundings:
    """Where a weight stands: the join of its branch or shortcut, and whether it is first or last of all."""

    stem: Mapping[int, int]
    shortcut: Mapping[int, int]
    names: Mapping[int, str]
    first: frozenset[int]
    last: frozenset[int]
    signal: frozenset[int]
    attention: Mapping[int, tuple[str, ...]]


def _first_and_last(flow: Flow, paths: Paths) -> tuple[frozenset[int], frozenset[int]]:
    """The weight sites with no weight before them, and those with none between them and the outputs."""
    sites = {p for p, term in enumerate(flow.terms) if term.kind == "contract" and term.tag != "table" and term.data}
    preceded: set[int] = set()
    for position, term in enumerate(flow.terms):
        if term.data and any(s in preceded or s in sites for s in flow.sources(position)):
            preceded.add(position)
    followed: set[int] = set()
    for position in range(len(flow.terms) - 1, -1, -1):
        if position in sites or position in followed:
            followed.update(flow.sources(position))
    reaching = {p for p in sites if paths.reaches_output(p)}
    return frozenset(sites - preceded), frozenset(reaching - followed)


def _traits(use: Use, shape: tuple[int, ...], around: Surroundings) -> tuple[str, ...]:
    traits = []
    layout = use.layout
    if layout is not None:
        rows, columns = layout.matrix(shape)
        if layout.groups > 1:
            channels = shape[layout.in_axis] if layout.in_axis is not None else 1
            single = channels == (1 if layout.grouped == "out" else layout.groups)
            traits.append("depthwise" if single else "grouped")
        if layout.groups * layout.parts == 1 and rows != columns:
            traits.append("tall" if rows > columns else "wide")
    traits.extend(around.attention.get(use.term, ()))
    if use.term not in around.signal:
        traits.append("steers")
    return tuple(traits)


def _weight_role(use: Use, around: Surroundings) -> tuple[str, str]:
    term = use.term
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
    return "main stem", "it stands in no residual branch"


@dataclass(frozen=True)
class Parts:
    """The joins that a parameter ends, scales or is added in, by parameter."""

    ends: Mapping[str, list[Join]]
    scales: Mapping[str, list[Join]]
    silenced: Mapping[str, list[Join]]

    @classmethod
    def of(cls, joins: Sequence[Join]) -> Parts:
        """Sort the joins by the parameters that they name."""
        found: tuple[dict[str, list[Join]], ...] = ({}, {}, {})
        for join in joins:
            named = (dict.fromkeys(end.parameter for end in join.ends), join.scales, join.silenced)
            for by_name, parameters in zip(found, named, strict=True):
                for parameter in parameters:
                    by_name.setdefault(parameter, []).append(join)
        return cls(*found)


def _role(uses: Sequence[Use], shape: tuple[int, ...], around: Surroundings, parts: Parts) -> Role:
    ending = parts.ends.get(uses[0].parameter, [])
    weights = [use for use in uses if use.how == "weight"]
    layout: Layout | None = weights[0].layout if weights else None
    traits = _traits(weights[0], shape, around) if weights else ()
    if ending:
        names = ", ".join(join.name for join in ending)
        what = "end" if weights else "end scale"
        rows = _ending_rows(uses[0].parameter, ending)
        part = f"rows {', '.join(f'{a} to {b - 1}' for a, b in rows)}" if rows else "it"
        evidence = f"at zero {part} make{'' if rows else 's'} the branch of {names} zero"
        return Role(what, evidence, layout, rows, _terms(uses, around), traits)
    for how, (name, evidence) in _PLAIN.items():
        if any(use.how == how for use in uses):
            tied = "; it is also used as a weight" if weights else ""
            crossed = [join.name for join in parts.scales.get(uses[0].parameter, ())]
            if how == "scale" and crossed:
                name, evidence = (
                    "branch scale",
                    f"it multiplies the branch of {', '.join(crossed)} behind its end",
                )
            added = [join.name for join in parts.silenced.get(uses[0].parameter, ())]
            if how in ("offset", "token", "other") and added:
                name, evidence = (
                    "branch shift",
                    f"it is added in the branch of {', '.join(added)} behind its end",
                )
            return Role(name, evidence + tied, None, None, _terms(uses, around), traits)
    roles = [_weight_role(use, around) for use in weights]
    layouts = {use.layout for use in weights}
    if len(layouts) > 1:
        return Role("unresolved", "it is used as two different matrices", None, None, _terms(uses, around), traits)
    name, evidence = roles[0]
    others = sorted({other for other, _ in roles} - {name})
    evidence += f"; elsewhere it is {', '.join(others)}" if others else ""
    return Role(name, evidence, layout, None, _terms(uses, around), traits, weights[0].activation)


def _ending_rows(parameter: str, joins: Sequence[Join]) -> Ranges | None:
    """The rows that end some branch; None for all of them."""
    found = [end.rows for join in joins for end in join.ends if end.parameter == parameter]
    if any(rows is None for rows in found):
        return None
    return ranges({row for rows in found for start, stop in rows or () for row in range(start, stop)})


def _terms(uses: Sequence[Use], around: Surroundings) -> tuple[str, ...]:
    return tuple(dict.fromkeys(around.names[use.term] for use in uses))


def assign_roles(
    flow: Flow, paths: Paths, sites: Sites, stem: Mapping[int, int], shortcut: Mapping[int, int],
    names: Mapping[int, str], joins: Sequence[Join],
) -> dict[str, Role]:  # fmt: skip
    """Return the role of every parameter.

    Args:
        flow, paths, sites: what was read from the graph.
        stem, shortcut: the join in whose branch or on whose shortcut a term stands.
        names: how joins are called.
        joins: the residual joins.
    """
    first, last = _first_and_last(flow, paths)
    modules = {p: flow.module(p) or flow.capture.model for p in range(len(flow.terms))}
    around = Surroundings(stem, shortcut, {**modules, **names}, first, last, paths.signal, attention_parts(flow))
    parts = Parts.of([join for join in joins if join.zeroable])
    roles = {}
    for name, info in flow.capture.info.items():
        uses = [use for alias in (name, *info.aliases) for use in sites.uses.get(alias, ())]
        if uses:
            roles[name] = _role(uses, info.shape, around, parts)
        else:
            roles[name] = Role("unused", "the forward pass of the example does not use it")
    return roles
