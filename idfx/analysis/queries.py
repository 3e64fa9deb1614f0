"""Queries of a structure for schemes, in addition to the role of a parameter: depth, neighbours, attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idfx.core.records import Join, Structure, WeightUse

if TYPE_CHECKING:
    from idfx.analysis.attention import Attention
    from idfx.analysis.dataflow import Dataflow
    from idfx.analysis.record import Analysis

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class AttentionWeights:
    """The weights of one attention, by parameter.

    `parts` are those that make "query", "key" and "value" (a fused one is in several), `rows` says for a part and a
    weight which of its outputs do, None where that is not known. `head_width` is D_head; `cross`: queries and keys are
    made of different data; `encodes`: its output reaches the keys of a cross-attention. `undone` are the parts, query
    or key, whose size a normalisation behind the weights takes out.
    """

    name: str
    parts: Mapping[str, tuple[str, ...]]
    output: tuple[str, ...]
    rows: Mapping[tuple[str, str], Ranges | None]
    head_width: int | None
    cross: bool
    encodes: bool
    undone: tuple[str, ...] = ()


class StructureQueries:
    """A structure with everything about neighbours looked up once; what only some schemes ask for is read on demand.

    Args:
        structure: of the model.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure

    @functools.cached_property
    def depth(self) -> int:
        """The number of residual branches that are not inside another."""
        return sum(join.parent is None for join in self.structure.joins)

    def around(self, parameter: str) -> Join | None:
        """Return the innermost residual join whose branch contains a parameter, None if there is none."""
        return self._around.get(parameter)

    def layers(self, join: Join) -> int:
        """Return the number of weights that carry the value through a branch, without those of inner branches."""
        return self._layers.get(join.name, 0)

    @functools.cached_property
    def _around(self) -> Mapping[str, Join]:
        found: dict[str, Join] = {}
        for join in self.structure.joins:  # inner ones come first
            ends = (end.parameter for end in join.ends)
            for name in (*join.branch, *ends, *join.scales, *join.zeroed_biases):
                found.setdefault(self.structure.first_names[name], join)
        return found

    @functools.cached_property
    def _layers(self) -> Mapping[str, int]:
        counts: dict[str, int] = {}
        for name, join in self._around.items():
            role = self.structure.roles[name]
            if role.layout is not None and role.name != "recurrent" and "gating" not in role.traits:
                counts[join.name] = counts.get(join.name, 0) + 1
        return counts

    def before(self, parameter: str) -> tuple[str, ...] | None:
        """Return the weights whose output a weight reads, with no weight between; None where something else enters.

        An input of the model, a position, or a value that another one multiplies is something else.
        """
        return self._before.get(parameter)

    @functools.cached_property
    def _before(self) -> Mapping[str, tuple[str, ...] | None]:
        """By hand, in one pass: what is passed on along the way are sets, or that something else entered."""
        flow = self.flow
        behind: dict[int, tuple[int, ...] | None] = {}  # by term: the weight terms that its value comes from
        found: dict[str, tuple[str, ...] | None] = {}
        for position, term in enumerate(flow.terms):
            if not term.data:
                continue
            data = [behind.get(operand) for operand in term.operands if flow.terms[operand].data]
            known = [sources for sources in data if sources is not None]
            if term.kind == "input" or len(known) < len(data) or (term.kind == "product" and len(data) > 1):
                behind[position] = None
            else:
                behind[position] = tuple(dict.fromkeys(source for sources in known for source in sources))
            if term.kind == "contract":
                sources = behind[position]
                names = None if sources is None else self._parameters(flow.step(p) for p in sources)
                for name in self._parameters((flow.step(position),)):
                    found[name] = names if found.get(name, names) == names else None
                behind[position] = (position,)
        return found

    def parts(self, parameter: str) -> int:
        """Return into how many equal, contiguous parts the outputs of a weight fall where they are multiplied.

        The weight of a gated layer makes the gate and the value, one after the other. A bias falls into the parts of
        its weight; 1 where nothing is divided, or not so.
        """
        sites = self.structure.roles[parameter].sites
        found = {self._parts.get(site, 1) for site in sites} or {1}
        return found.pop() if len(found) == 1 else 1

    @functools.cached_property
    def _parts(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for term, sites in self._analysis.uses.at.items():
            ranges = {one for own in self._multiplied(term) for one in own}
            height = math.gcd(*(border for one in ranges for border in one))
            if any(stop - start == height for start, stop in ranges):
                found |= {site.name: max(stop for _, stop in ranges) // height for site in sites}
        return found

    def _multiplied(self, site: int) -> Iterable[Ranges]:
        """The rows of a site that arrive at each factor of the products before the next weight."""
        seen, ahead = {site}, [site]
        while ahead:
            for user in self.flow.users.get(ahead.pop(), ()):
                term = self.flow.terms[user]
                if user in seen or term.kind == "contract":
                    continue
                seen.add(user)
                ahead.append(user)
                factors = [one for one in term.operands if self.flow.terms[one].data] if term.kind == "product" else []
                arriving = [self._analysis.exclusive.arriving(site, one) for one in factors]
                yield from (rows for rows in arriving if rows and len(factors) > 1)

    def breaks_oddness(self, bias: str) -> tuple[str, int] | None:
        """Return, if the model is an odd function without its biases, what a bias does about it (`analysis.parity`)."""
        from idfx.analysis.parity import breaks_oddness

        return breaks_oddness(self.structure, self.flow, bias) if self._is_odd else None

    @functools.cached_property
    def _is_odd(self) -> bool:
        from idfx.analysis.parity import is_odd

        return is_odd(self.structure, self.flow)

    @functools.cached_property
    def _sites(self) -> Mapping[int, list[WeightUse]]:
        found: dict[int, list[WeightUse]] = {}
        for site in self.structure.sites:
            found.setdefault(site.step, []).append(site)
        return found

    def _parameters(self, steps: Iterable[int]) -> tuple[str, ...]:
        sites = (site for step in steps for site in self._sites.get(step, ()))
        return tuple(dict.fromkeys(self.structure.first_names[site.parameter] for site in sites))

    @functools.cached_property
    def flow(self) -> Dataflow:
        """The data flow of the captured forward pass."""
        return self._analysis.flow

    @functools.cached_property
    def _analysis(self) -> Analysis:
        from idfx.analysis.structure import analysis_of

        return analysis_of(self.structure)

    @functools.cached_property
    def _attending(self) -> tuple[list[Attention], list[bool], frozenset[int]]:
        """The attentions, which of them cross from other data, and the terms that lead to the keys of those."""
        from idfx.analysis.attention import attentions, crossing, origins
        from idfx.analysis.graph import before

        flow = self.flow
        found = list(attentions(flow))
        cross = crossing(flow, self._analysis.paths, found)
        leading: set[int] = set()
        for attention, apart in zip(found, cross, strict=True):
            leading |= origins(flow, attention.key) if apart else set()
        return found, cross, frozenset(leading | before(flow.data_graph, leading))

    def encodes(self, parameter: str) -> bool:
        """Return whether a weight stands before the keys of a cross-attention, or there is none at all."""
        _, crossing, _ = self._attending
        return not any(crossing) or parameter in self._encoding

    @functools.cached_property
    def _encoding(self) -> frozenset[str]:
        leading = self._attending[2]
        steps = {self.flow.step(position) for position in leading}
        return frozenset(self._parameters(sorted(steps & self._sites.keys())))

    @functools.cached_property
    def attentions(self) -> tuple[AttentionWeights, ...]:
        """The attentions, in the order of execution."""
        from idfx.analysis.attention import normalised

        flow, uses = self.flow, self._analysis.uses
        found, crossing, leading = self._attending
        weights = []
        for attention, cross in zip(found, crossing, strict=True):
            shape = flow.terms[attention.scores[0]].shape
            parts = {"query": attention.query, "key": attention.key, "value": attention.value}
            operands = dict(zip(parts, (*attention.scores, attention.weighed), strict=True))
            rows: dict[tuple[str, str], Ranges | None] = {}
            for part, sites in parts.items():
                for site in sites:
                    arriving = self._analysis.exclusive.arriving(site, operands[part])
                    for own in uses.at.get(site, ()):
                        first, _ = uses.rows(own.parameter, site) or (0, 0)  # where the site's part of the weight lies
                        found_rows = None if arriving is None else tuple((a + first, b + first) for a, b in arriving)
                        rows[part, self.structure.first_names[own.parameter]] = found_rows
            weights.append(
                AttentionWeights(
                    name=attention.where,
                    parts={part: self._parameters(map(flow.step, sites)) for part, sites in parts.items()},
                    output=self._parameters(map(flow.step, attention.output)),
                    rows=rows,
                    head_width=shape[-1] if shape else None,
                    cross=cross,
                    encodes=bool(attention.output) and all(site in leading for site in attention.output),
                    undone=tuple(part for part in ("query", "key") if normalised(flow, operands[part])),
                )
            )
        return tuple(weights)
