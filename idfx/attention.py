"""Which weights make queries, keys and values, read from how their products steer each other.

Attention is a product of a gate and a value, where the gate (a softmax, say) is made of the product of a query and a
key. The weights are those that stand directly before the three; the output weight reads the product next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from idfx.flow import Flow, divides

PARTS = ("query", "key", "value", "attention output")
_PASSING = frozenset({"move", "scale", "sum", "concat", "mix", "map"})


def attention_parts(flow: Flow) -> Mapping[int, dict[str, str]]:
    """Return "query", "key", "value" and "attention output" for the weight sites that are these, with the evidence.

    A fused weight has several. The result goes by term.

    Args:
        flow: the data flow of one forward pass.
    """
    found: dict[int, dict[str, str]] = {}
    for position, term in enumerate(flow.terms):
        if term.kind != "product" or len(flow.sources(position)) < 2:
            continue
        for gate, value in _gated(flow, position):
            scores = _scores(flow, gate)
            if scores is None:
                continue
            query, key = flow.terms[scores].operands
            where = flow.module(position) or flow.capture.model
            for part, operand, does in (
                ("query", query, "it makes one factor of the scores"),
                ("key", key, "it makes the other factor of the scores"),
                ("value", value, "it makes what the scores weigh"),
            ):
                for site in sites_before(flow, operand):
                    found.setdefault(site, {}).setdefault(part, f"{does} of {where}")
            for site in _sites_behind(flow, position):
                found.setdefault(site, {}).setdefault(
                    "attention output", f"it reads what the scores of {where} weighed"
                )
    return {site: {part: parts[part] for part in PARTS if part in parts} for site, parts in found.items()}


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
        scores = term.kind == "product" and not term.tag and len(flow.sources(position)) == 2
        return scores and not any(True for _ in _gated(flow, position))

    def leads_on(flow: Flow, position: int) -> bool:
        return _leads_on(flow, position) and flow.terms[position].kind != "contract"

    return next(_before(flow, flow.terms[gate].operands, is_scores, leads_on), None)


def sites_before(flow: Flow, operand: int) -> Iterator[int]:
    """Yield the weight sites from which a value comes without another weight or a product of data between.

    Args:
        flow: the data flow.
        operand: the value's term.
    """

    def is_site(position: int) -> bool:
        return flow.terms[position].kind == "contract"

    return _before(flow, (operand,), is_site, _leads_on)


def _sites_behind(flow: Flow, position: int) -> Iterator[int]:
    """The weight sites that read a value next, moved, scaled or normalised at most."""
    stack, seen = list(flow.users.get(position, ())), set[int]()
    while stack:
        user = stack.pop()
        if user in seen:
            continue
        seen.add(user)
        if flow.terms[user].kind == "contract":
            yield user
        elif flow.terms[user].kind in ("move", "scale", "norm", "concat", "product") and len(flow.sources(user)) == 1:
            stack.extend(flow.users.get(user, ()))


def _leads_on(flow: Flow, position: int) -> bool:
    """Whether a value only changes its form here: moved, scaled, normalised, mixed with nothing but itself."""
    single = len(flow.sources(position)) == 1
    return flow.terms[position].kind in _PASSING or single or divides(flow, position)


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
