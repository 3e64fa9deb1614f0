"""Finds the weights of queries, keys and values.

Attention is a product of a gate and a value, where the gate (usually a softmax) is a function of the product of a query
and a key. The weights are those directly before the three; the output weight reads the product next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import torch

from idfx.analysis.dataflow import Dataflow, divides, normalises
from idfx.analysis.graph import ROOT, reached
from idfx.analysis.paths import Paths
from idfx.analysis.views import blank, moved, strides_of
from idfx.ops.kinds import Kind

PARTS = ("query", "key", "value", "attention output")
_READ_THROUGH = frozenset({Kind.MOVE, Kind.SCALE, Kind.NORM, Kind.CONCAT, Kind.PRODUCT})  # before the output weight


@dataclass(frozen=True)
class Attention:
    """One attention: the weight uses, by term, of queries, keys and values, and those that read its output.

    `where` is the module in whose forward the scores weigh the values; `scores` are the two factors of the scores,
    query and key, `weighed` is what they weigh, and `term` is the product of the two.
    """

    where: str
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    output: tuple[int, ...]
    scores: tuple[int, int]
    weighed: int
    term: int


def attentions(flow: Dataflow) -> Iterator[Attention]:
    """Yield the attentions of one forward pass, in the order of execution.

    Args:
        flow: the data flow.
    """
    for position, term in enumerate(flow.terms):
        if term.kind not in (Kind.PRODUCT, Kind.NORM) or len(flow.sources[position]) < 2:
            continue
        for gate, value in _gated(flow, position):
            scores = _scores(flow, gate)
            if scores is None:
                continue
            place = _key(flow, position, value, scores)
            query, key = flow.terms[scores].operands[1 - place], flow.terms[scores].operands[place]
            yield Attention(
                where=flow.module(position) or flow.capture.model,
                query=tuple(sites_before(flow, query)),
                key=tuple(sites_before(flow, key)),
                value=tuple(sites_before(flow, value)),
                output=tuple(_sites_behind(flow, position)),
                scores=(query, key),
                weighed=value,
                term=position,
            )


def crossing(flow: Dataflow, paths: Paths, found: Sequence[Attention]) -> list[bool]:
    """Return of each attention whether its queries and keys are made of different data.

    They are made of the same data if there is a term through which every way to both runs, and no attention between it
    and them: pooled keys and latent queries belong to the same data, those of a decoder and of a Perceiver do not.

    Args:
        flow, paths: from the analysis of the graph.
        found: the attentions, in the order of execution.
    """
    products = {attention.term for attention in found}
    return [bool(attention.query and attention.key) and _apart(flow, paths, attention, products) for attention in found]


def origins(flow: Dataflow, sites: Sequence[int]) -> set[int]:
    """Return the terms that some weight sites read.

    Args:
        flow: the data flow.
        sites: by term.
    """
    return {source for site in sites for source in flow.sources[site]}


def _apart(flow: Dataflow, paths: Paths, attention: Attention, products: set[int]) -> bool:
    ends = origins(flow, attention.query), origins(flow, attention.key)
    if ends[0] == ends[1]:
        return False
    common = paths.common_dominator(ends[0] | ends[1])
    if common == ROOT:
        return True
    backwards = nx.subgraph_view(flow.data_graph.reverse(copy=False), filter_node=lambda term: term >= common)
    return any(term in products for term in reached(backwards, ends[0] | ends[1]))


def attention_parts(flow: Dataflow) -> Mapping[int, dict[str, str]]:
    """Return "query", "key", "value" and "attention output" for the weight sites that are these, with the evidence.

    A fused weight has several. The result goes by term.

    Args:
        flow: the data flow of one forward pass.
    """
    found: dict[int, dict[str, str]] = {}
    for attention in attentions(flow):
        for part, sites, does in (
            ("query", attention.query, "it makes one factor of the scores of {}"),
            ("key", attention.key, "it makes the other factor of the scores of {}"),
            ("value", attention.value, "it makes the values that the scores of {} weight"),
            ("attention output", attention.output, "it reads the values that the scores of {} weighted"),
        ):
            for site in sites:
                found.setdefault(site, {}).setdefault(part, does.format(attention.where))
    return {site: {part: parts[part] for part in PARTS if part in parts} for site, parts in found.items()}


def _gated(flow: Dataflow, position: int) -> Iterator[tuple[int, int]]:
    """The gate and the value of a product or of a norm's division, if one of the two is a gate, moved or scaled."""
    first, second = (*flow.terms[position].operands, *flow.terms[position].gates)
    for operand, other in ((first, second), (second, first)):
        gate = operand
        while flow.terms[gate].kind.is_proportional and len(flow.sources[gate]) == 1:
            gate = flow.sources[gate][0]
        if flow.terms[gate].kind == "gate" and flow.terms[other].data:
            yield gate, other


def _scores(flow: Dataflow, gate: int) -> int | None:
    """The product of two data tensors, mixing them, that a gate is a function of."""

    def is_scores(position: int) -> bool:
        term = flow.terms[position]
        scores = term.kind == "product" and not term.tag and len(flow.sources[position]) == 2
        return scores and not any(True for _ in _gated(flow, position))

    def leads_on(flow: Dataflow, position: int) -> bool:
        return _leads_on(flow, position) and flow.terms[position].kind != "contract"

    return next(_before(flow, flow.terms[gate].operands, is_scores, leads_on), None)


def _key(flow: Dataflow, position: int, value: int, scores: int) -> int:
    """Which factor of the scores is the key: the one whose places are those of the value; the second if nothing tells.

    The gate is summed over the places of the value, and this axis of it is one of the scores, perhaps moved.
    """
    product, made = flow.terms[position], flow.terms[scores]
    if product.kind is not Kind.PRODUCT:
        return 1
    side = 0 if product.operands[1] == value else 1
    read = product.readings[side]
    if read is None or len(read.layout.in_axes) != 1 or made.shape is None:
        return 1
    axis = _axis_before(flow, product.operands[side], read.layout.in_axes[0], scores)
    for place, factor in enumerate(made.readings):
        if axis is not None and factor is not None and axis - len(made.shape) in factor.axes:
            return place
    return 1


def _axis_before(flow: Dataflow, position: int, axis: int, wanted: int) -> int | None:
    """The axis of a term before another one that an axis of the latter is, through moves and entry by entry."""
    stack, seen = [(position, axis)], {position}
    while stack:
        here, axis = stack.pop()
        if here == wanted:
            return axis
        term = flow.terms[here]
        for source in term.operands:
            before = flow.terms[source].shape
            if source in seen or not flow.terms[source].data or before is None or term.shape is None:
                continue
            seen.add(source)
            if term.kind == "move":
                view = moved(flow, here, source, blank(before))
                steps = strides_of(before)
                same = [a for a, size in enumerate(before) if isinstance(view, torch.Tensor)
                        and (size, steps[a]) == (view.shape[axis], view.stride(axis)) and size > 1]  # fmt: skip
                stack += [(source, a) for a in same]
            elif before == term.shape:
                stack.append((source, axis))
    return None


def sites_before(flow: Dataflow, operand: int) -> Iterator[int]:
    """Yield the weight sites from which a value comes with no other weight and no product of data in between.

    Args:
        flow: the data flow.
        operand: the value's term.
    """

    def is_site(position: int) -> bool:
        return flow.terms[position].kind == "contract"

    return _before(flow, (operand,), is_site, _leads_on)


def normalised(flow: Dataflow, operand: int) -> bool:
    """Return whether each way from the weights before a value to it crosses a normalisation, which undoes their size.

    Args:
        flow: the data flow.
        operand: the value's term.
    """

    def is_site(position: int) -> bool:
        return flow.terms[position].kind == "contract"

    def leads_on(flow: Dataflow, position: int) -> bool:
        return _leads_on(flow, position) and not normalises(flow, position)

    return not any(_before(flow, (operand,), is_site, leads_on)) and any(sites_before(flow, operand))


def _sites_behind(flow: Dataflow, position: int) -> Iterator[int]:
    """The weight sites that read a value next, at most moved, scaled or normalised."""
    stack, seen = list(flow.users.get(position, ())), set[int]()
    while stack:
        user = stack.pop()
        if user in seen:
            continue
        seen.add(user)
        if flow.terms[user].kind == "contract":
            yield user
        elif flow.terms[user].kind in _READ_THROUGH and len(flow.sources[user]) == 1:
            stack.extend(flow.users.get(user, ()))


def _leads_on(flow: Dataflow, position: int) -> bool:
    """Whether a value only changes its form here: moved, scaled, normalised, mixed with nothing but itself."""
    single = len(flow.sources[position]) == 1
    return flow.terms[position].kind.passes or single or divides(flow, position)


def _before(
    flow: Dataflow, start: Sequence[int], wanted: Callable[[int], bool], leads_on: Callable[[Dataflow, int], bool]
) -> Iterator[int]:
    """The first wanted terms on each way back from the start, through terms that lead on.

    Written by hand: networkx's searches do not stop at the node that is searched for.
    """
    stack, seen = list(start), set[int]()
    while stack:
        position = stack.pop()
        if position in seen or not flow.terms[position].data:
            continue
        seen.add(position)
        if wanted(position):
            yield position
        elif leads_on(flow, position):
            stack.extend(flow.terms[position].operands)
