"""Which outputs of a weight make the scores of attention zero when they are zero."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from idfx.analysis.queries import AttentionWeights, StructureQueries
from idfx.analysis.rows import Ranges, ranges


@dataclass(frozen=True)
class ScoreFactor:
    """The outputs of a weight that are a factor of scores; `both` if some of them are the other factor as well.

    `rows` are half-open ranges; None means all outputs. `undone`: a normalisation behind them takes their size out.
    """

    rows: Ranges | None
    both: bool
    undone: bool = False


def score_factor(network: StructureQueries, name: str) -> ScoreFactor | None:
    """Return which outputs of a weight are the factor that its attentions choose; None if there are none.

    A score is a product, so one factor is enough to make it zero. An attention chooses its queries, which each head has
    of its own, or its keys if no weight makes the queries, or if only the size of the queries is undone behind it.

    Args:
        network: the structure.
        name: of the weight.

    Returns:
        None also if it is not known which of its outputs are queries, and for a weight of the stream that queries are
        made of by shortcuts alone: near zero, it would lose the signal.
    """
    role = network.structure.roles[name]
    layout = role.layout
    if layout is None or not role.traits.keys() & {"value", "gating"}:  # its output is data that others read as well
        return None
    outputs = layout.outputs(network.structure.parameters[name].shape)
    chosen: set[int] = set()
    other: set[int] = set()
    undone = False
    for attention in network.attentions:
        first, second = _order(attention)
        if name in attention.parts[first]:
            rows = _rows(attention, first, name, outputs)
            if rows is None:
                return None
            chosen |= rows
            undone = undone or first in attention.undone
        if name in attention.parts[second]:
            other |= _rows(attention, second, name, outputs) or set()
    if not chosen:
        return None
    return ScoreFactor(None if len(chosen) == outputs else ranges(chosen), bool(chosen & other), undone)


def _order(attention: AttentionWeights) -> tuple[str, str]:
    """The part whose weights are chosen, and the other one."""
    keys = bool(attention.parts["key"]) and attention.undone == ("query",)
    return ("query", "key") if attention.parts["query"] and not keys else ("key", "query")


def _rows(attention: AttentionWeights, part: str, name: str, outputs: int) -> set[int] | None:
    """The outputs of a weight that make a part of an attention: all, if it makes no other part."""
    known = attention.rows.get((part, name))
    if known is not None:
        return _flat(known)
    return set(range(outputs)) if _alone(attention, part, name) else None


def _alone(attention: AttentionWeights, part: str, name: str) -> bool:
    return not any(name in names for other, names in attention.parts.items() if other != part)


def _flat(rows: Iterable[tuple[int, int]]) -> set[int]:
    return set(itertools.chain.from_iterable(range(start, stop) for start, stop in rows))
