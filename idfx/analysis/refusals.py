"""Which sums of data are no residual joins: an ordered table of definitions, each with its kind and its reason."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.graph import reached
from idfx.analysis.paths import Paths
from idfx.analysis.rows import Exclusive
from idfx.analysis.sides import Blocks, Side
from idfx.ops.kinds import Length


@dataclass(frozen=True)
class Candidate:
    """A sum that may be a join, with its operands that come by a linear path from a fork, the most direct one first."""

    flow: Dataflow
    paths: Paths
    blocks: Blocks
    exclusive: Exclusive
    position: int
    sides: tuple[Side, ...]

    @property
    def side(self) -> Side:
        """The most direct operand, as the shortcut."""
        return self.sides[0]

    @property
    def projected(self) -> bool:
        """Whether the shortcut crosses a weight."""
        return self.side.length >= Length.WEIGHT

    @functools.cached_property
    def branch(self) -> set[int]:
        """The terms of the branch that reach the join otherwise than by indices and counts, the fork included."""
        side = self.side
        inside = {side.fork, *(term for term in side.region if self.flow.terms[term].tag != "integer")}
        backwards = self.flow.data_graph.subgraph(inside).reverse(copy=False)
        return set(reached(backwards, inside.intersection(side.others)))

    @property
    def dependent(self) -> set[int]:
        """The terms of the branch that depend on the fork."""
        side = self.side
        return set(reached(self.flow.data_graph.subgraph((side.fork, *side.region)), (side.fork,)))


def between(flow: Dataflow, blocks: Blocks, fork: int, operand: int) -> Iterator[int]:
    """Yield the terms on the path from a fork to a shortcut operand, without inner branches.

    Args:
        flow, blocks: what is known so far.
        fork, operand: the ends of the path.
    """

    def passes(user: int, source: int) -> bool:
        inner, term = blocks.sides.get(user), flow.terms[user]
        carried = term.operands[0] == source if term.tag == "share" else inner is None or inner.operand == source
        return source > fork and carried

    backwards = nx.subgraph_view(flow.data_graph.reverse(copy=False), filter_edge=passes)
    return reached(backwards, (operand,) if operand > fork else ())


def _is_taken_away(sum_: Candidate) -> bool:
    return sum_.position in sum_.flow.cancelled and not sum_.paths.reaches_output(sum_.position)


def _has_no_shortcut(sum_: Candidate) -> bool:
    """A gate leaves a shortcut one only if it multiplies the fork itself, as the carry gate of a highway does."""
    return not sum_.sides or (_is_shared(sum_.flow, sum_.position) and sum_.side.length >= 2 * Length.SCALE)


def _is_symmetric(sum_: Candidate) -> bool:
    return len(sum_.sides) > 1 and sum_.sides[0].length == sum_.sides[1].length


def _is_unused(sum_: Candidate) -> bool:
    return not sum_.paths.reaches_output(sum_.position)


def _is_in_a_gate(sum_: Candidate) -> bool:
    """It only steers another value, and is no block: behind the last value of its branch that does more than steer
    there is no parameter, or its shortcut is neither its fork nor a stream's projection.

    Scores are sums of products, and an additive score is one of projections: what a gate is a function of, with no
    weight in between. Boxes that move apart by class before a suppression of overlaps have a branch that
    nothing learns, and a position that is added again before the queries has the stream itself as its branch.
    """
    if sum_.position in sum_.paths.signal:
        return False
    steering = sum_.branch.difference(sum_.paths.signal)
    backwards = sum_.flow.data_graph.subgraph(steering).reverse(copy=False)
    own = reached(backwards, steering.intersection(sum_.side.others))
    if not any(_has_parameter(sum_.flow, term) for term in own):
        return True
    far = sum_.side.length >= Length.SCALE
    return far and (_is_score(sum_) or not _leaves_a_stream(sum_, sum_.side.fork))


def _has_parameter(flow: Dataflow, position: int) -> bool:
    return any(flow.terms[o].parametric and not flow.terms[o].data for o in flow.terms[position].operands)


def _is_score(sum_: Candidate) -> bool:
    """Whether the sum, moved or shifted at most, is what a gate is a function of, with no weight in between."""
    position, users = sum_.position, sum_.flow.users.get(sum_.position, ())
    while len(users) == 1 and len(sum_.flow.sources[users[0]]) == 1:
        position = users[0]
        if sum_.flow.terms[position].kind == "gate":
            return sum_.flow.terms[position].tag != "integer"
        if not sum_.flow.terms[position].kind.passes:
            return False
        users = sum_.flow.users.get(position, ())
    return False


def _reads_other_entries(sum_: Candidate) -> bool:
    """The branch reads other entries of the fork than the shortcut does, some of which nothing else reads.

    Closing it would lose these: two frames of a film, the steps of a recurrence. The halves of a reversible
    coupling are both read further on. Written by hand, because it follows entries, not nodes.
    """
    way = _way(sum_)
    if not _narrows(sum_.flow, way):
        return False
    side = sum_.side
    shape = sum_.flow.terms[side.fork].shape or ()
    numbers = torch.arange(math.prod(shape)).view(shape)
    taken: Any = numbers
    for source, user in itertools.pairwise(way):
        after = _selected(sum_, source, user, taken)
        if after is None:
            break
        taken = after
    own = torch.zeros(numbers.numel(), dtype=torch.bool)
    own[_joined(taken)] = True
    alone = False
    inside = {*side.region, *side.others}
    stack: list[tuple[int, Any]] = [(side.fork, numbers)]
    while stack:
        source, labels = stack.pop()
        for user in sum_.flow.users.get(source, ()):
            if user not in inside and user != sum_.position:
                continue
            after = None if user == sum_.position else _selected(sum_, source, user, labels)
            if after is not None:
                stack.append((user, after))
                continue
            if bool(own[_joined(labels)].any()):
                return False
            alone = alone or sum_.paths.only_through(source, sum_.position)
    return alone and not _spreads_a_mixture(sum_)


def _spreads_a_mixture(sum_: Candidate) -> bool:
    """The entries of the fork are mixtures of the same streams, and what is made of some is added to several others.

    Closing the branch of such hyper-connections loses one combination of the streams, and none of the streams.
    """
    made = sum_.side.fork
    while sum_.flow.terms[made].kind == "move" and len(sum_.flow.sources[made]) == 1:
        made = sum_.flow.sources[made][0]
    mixed = sum_.flow.terms[made].kind == "product" and any(sum_.flow.terms[made].readings)
    return (mixed or bool(sum_.exclusive.arriving(made, sum_.side.operand))) and any(
        _is_repeated(sum_, other) for other in sum_.side.others
    )


def _is_repeated(sum_: Candidate, position: int) -> bool:
    """Whether an operand of the sum has fewer entries before it was repeated, or multiplied by one number for each."""
    flow, user = sum_.flow, sum_.position
    while _size(flow, position) >= _size(flow, user):
        user, term = position, flow.terms[position]
        if term.kind != "move" or len(flow.sources[position]) != 1:
            outer = math.prod(_size(flow, operand) for operand in term.operands) == _size(flow, user)
            fewer = all(_size(flow, source) < _size(flow, user) for source in flow.sources[user])
            return fewer and (term.kind == "product" or (term.kind == "contract" and outer))
        position = flow.sources[position][0]
    return True


def _size(flow: Dataflow, position: int) -> int:
    """The number of entries of a term."""
    return math.prod(flow.terms[position].shape or ())


def _way(sum_: Candidate) -> list[int]:
    """The terms from the fork to the shortcut operand, past inner branches; none where it is not a single path."""
    way, here = [sum_.side.operand], sum_.side.operand
    while here != sum_.side.fork:
        sources = sum_.flow.sources[here]
        inner = sum_.blocks.sides.get(here)
        if inner is None and len(sources) != 1:
            return []
        here = sources[0] if inner is None else inner.operand
        way.append(here)
    return way[::-1]


def _narrows(flow: Dataflow, way: list[int]) -> bool:
    """Whether the first thing that a shortcut does with its fork is to take a part of it."""
    for source, user in itertools.pairwise(way):
        whole, term = flow.terms[way[0]].shape, flow.terms[user]
        if term.kind != "move" or len(flow.sources[user]) != 1 or source not in term.operands:
            return False
        if whole is not None and term.shape is not None and math.prod(term.shape) < math.prod(whole):
            return True
    return False


def _selected(sum_: Candidate, position: int, user: int, labels: Any) -> Any:
    """The numbers of the entries after a move that only selects and arranges, else None."""
    term = sum_.flow.terms[user]
    if term.kind != "move" or len(sum_.flow.sources[user]) != 1 or position not in term.operands:
        return None
    try:
        return sum_.exclusive.moved(position, user, labels)
    except (RuntimeError, IndexError, TypeError):
        return None


def _joined(labels: Any) -> torch.Tensor:
    """All the numbers among labels."""
    parts = labels if isinstance(labels, (list, tuple)) else (labels,)
    return torch.cat([part.flatten() for part in parts])


def _updates_a_state(sum_: Candidate) -> bool:
    """A gate lets a value into a stream that does not carry what the value is made of, as in a recurrent cell."""
    side = sum_.side
    inside = {side.fork, *(term for term in side.region if sum_.flow.terms[term].kind != "input")}
    values: nx.DiGraph[int] = nx.DiGraph()
    values.add_nodes_from(side.others)
    values.add_edges_from((term, value) for term in side.region for value in sum_.paths.values(term))
    return _is_shared(sum_.flow, sum_.position) and not inside.issuperset(reached(values, side.others))


def _is_shared(flow: Dataflow, position: int) -> bool:
    """Whether gates multiply what a sum adds up."""
    return any(flow.terms[operand].tag == "share" for operand in flow.terms[position].operands)


def _is_by_index(sum_: Candidate) -> bool:
    return sum_.side.fork not in sum_.branch


def _is_modulated(sum_: Candidate) -> bool:
    """The value of the fork does not reach the join through the branch, other than as a gate."""
    side = sum_.side
    if not side.length:
        return False
    values: nx.DiGraph[int] = nx.DiGraph()
    values.add_nodes_from((side.fork, *side.others))
    values.add_edges_from((value, term) for term in side.region for value in _carried(sum_, term))
    return nx.descendants(values, side.fork).union((side.fork,)).isdisjoint(side.others)


def _carried(sum_: Candidate, position: int) -> tuple[int, ...]:
    """The operands whose value a term passes on; of fixed numbers times a gate (noise times a deviation) none."""
    term, terms = sum_.flow.terms[position], sum_.flow.terms
    if term.kind == "product":
        gates = [o for o in term.operands if terms[o].data and terms[o].kind == "gate"]
        fixed = [o for o in term.operands if not terms[o].data and not terms[o].parametric]
        if gates and len(gates) + len(fixed) == len(term.operands):
            return ()
    return sum_.paths.values(position)


def _mixes_nothing(sum_: Candidate) -> bool:
    return not any(_mixes(sum_, term) for term in sum_.side.region if term in sum_.branch)


def _mixes(sum_: Candidate, position: int) -> bool:
    term = sum_.flow.terms[position]
    if term.kind == "product":
        return term.tag in ("", "attention") and sum_.paths.step(term.operands[-1], position) == Length.NONLINEAR
    return term.kind.mixes


def _are_alike(sum_: Candidate) -> bool:
    lengths = [side.length // Length.WEIGHT for side in sum_.sides]
    return sum_.projected and len(lengths) > 1 and lengths[0] == lengths[1]


def _meets_a_stream(sum_: Candidate) -> bool:
    return sum_.projected and any(_is_stream(sum_, other) for other in sum_.side.others)


def _is_stream(sum_: Candidate, position: int) -> bool:
    """Whether a term is the output of a residual join, at most moved and resampled."""
    while sum_.flow.terms[position].kind.resamples and len(sum_.flow.sources[position]) == 1:
        position = sum_.flow.sources[position][0]
    return position in sum_.blocks.sides


def _leaves_a_stream(sum_: Candidate, position: int) -> bool:
    """Whether a term is a function of the output of a residual join, entry by entry or by a normalisation."""
    while sum_.flow.terms[position].kind.keeps_axes and len(sum_.flow.sources[position]) == 1:
        position = sum_.flow.sources[position][0]
    return _is_stream(sum_, position)


def _has_no_weight(sum_: Candidate) -> bool:
    kinds = (sum_.flow.terms[term].kind for term in sum_.dependent & sum_.branch) if sum_.projected else ()
    return sum_.projected and not any(kind == "contract" for kind in kinds)


def _returns(sum_: Candidate) -> bool:
    side = sum_.side
    shortcut = between(sum_.flow, sum_.blocks, side.fork, side.operand)
    return sum_.projected and _upsampled(sum_.flow, side.region) and not _upsampled(sum_.flow, shortcut)


def _upsampled(flow: Dataflow, positions: Iterable[int]) -> bool:
    return any(flow.terms[position].tag == "upsample" for position in positions)


def _is_difference(sum_: Candidate) -> bool:
    """The shortcut is subtracted, or a branch without a parameter."""
    side, terms = sum_.side, sum_.flow.terms

    def negated(position: int) -> bool:
        return terms[position].kind == "scale" and (terms[position].factor or 0.0) < 0

    learned = any(_has_parameter(sum_.flow, term) for term in side.region)
    return negated(side.operand) or (any(map(negated, side.others)) and not learned)


# The first that applies. A sum has a shortcut from the third line on.
REFUSALS: tuple[tuple[str, str, Callable[[Candidate], bool]], ...] = (
    ("straight-through", "what it subtracts is added again, as a straight-through estimator does", _is_taken_away),
    ("fusion", "no operand comes by a linear path from a fork that the other depends on", _has_no_shortcut),
    ("parallel", "its operands come from the fork by equally direct paths", _is_symmetric),
    ("unused", "it reaches no output", _is_unused),
    ("gate", "it only gates another value", _is_in_a_gate),
    ("fusion", "its operands read different entries of their fork, and some reach nothing but this sum",
     _reads_other_entries),
    ("fusion", "gates let into a stream what it does not carry, as in a recurrent cell", _updates_a_state),
    ("index", "the fork reaches the branch only through integers", _is_by_index),
    ("modulation", "the branch carries another value, which the fork only gates", _is_modulated),
    ("elementwise", "nothing between fork and join mixes entries", _mixes_nothing),
    ("parallel", "its operands cross equally many weights and nonlinear operators", _are_alike),
    ("fusion", "next to a projection, the other operand is a stream with its own residual joins", _meets_a_stream),
    ("parallel", "next to a projection, the branch has no weight of its own", _has_no_weight),
    ("fusion", "next to a projection, the branch returns from another resolution", _returns),
    ("difference", "one operand is subtracted", _is_difference),
)  # fmt: skip


def refusal(sum_: Candidate) -> tuple[str, str] | None:
    """Return why a sum is not a residual join, its kind and the reason, or None if it is one.

    Args:
        sum_: of data, with its sides.
    """
    return next(((kind, reason) for kind, reason, applies in REFUSALS if applies(sum_)), None)
