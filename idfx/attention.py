"""Which weights make queries, keys and values, read from how their products steer each other.

Attention is a product of a gate and a value, where the gate (a softmax, say) is made of the product of a query and a
key. The weights are those that stand directly before the three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from idfx.flow import Flow

_PASSING = frozenset({"move", "scale", "sum", "concat", "mix", "map"})


def attention_parts(flow: Flow) -> Mapping[int, tuple[str, ...]]:
    """Return "query", "key", "value" for the weight sites, by term, that make them; a fused weight is all three.

    Args:
        flow: the data flow of one forward pass.
    """
    found: dict[int, dict[str, None]] = {}
    for position, term in enumerate(flow.terms):
        if term.kind != "product" or len(flow.sources(position)) < 2:
            continue
        for gate, value in _gated(flow, position):
            scores = _scores(flow, gate)
            if scores is None:
                continue
            query, key = flow.terms[scores].operands
            for part, operand in (("query", query), ("key", key), ("value", value)):
                for site in _sites_before(flow, operand):
                    found.setdefault(site, {})[part] = None
    return {site: tuple(parts) for site, parts in found.items()}


def _gated(flow: Flow, position: int) -> Iterator[tuple[int, int]]:
    """The gate and the value of a product, if one operand is a gate, moved or scaled since."""
    first, second = flow.terms[position].operands
    for operand, other in ((first, second), (second, first)):
        gate = operand
        while flow.terms[gate].kind in ("move", "scale") and len(flow.sources(gate)) == 1:
            gate = flow.sources(gate)[0]
        if flow.terms[gate].kind == "gate" and flow.terms[other].data:
            yield gate, other


def _scores(flow: Flow, gate: int) -> int | None:
    """The product of two data tensors, mixing them, that a gate is a function of."""

    def is_scores(position: int) -> bool:
        term = flow.terms[position]
        return term.kind == "product" and not term.tag and len(flow.sources(position)) == 2

    return next(_before(flow, flow.terms[gate].operands, is_scores, _passes), None)


def _sites_before(flow: Flow, operand: int) -> Iterator[int]:
    """The weight sites from which a value comes without another weight or a product of data between."""

    def is_site(position: int) -> bool:
        return flow.terms[position].kind == "contract"

    def leads_on(flow: Flow, position: int) -> bool:
        return _passes(flow, position) or flow.terms[position].kind == "norm" or len(flow.sources(position)) == 1

    return _before(flow, (operand,), is_site, leads_on)


def _passes(flow: Flow, position: int) -> bool:
    return flow.terms[position].kind in _PASSING


def _before(
    flow: Flow, start: Sequence[int], wanted: Callable[[int], bool], leads_on: Callable[[Flow, int], bool]
) -> Iterator[int]:
    """The first wanted terms on each way back from the start, through terms that lead on."""
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
