"""Plan's decisions × provenance → decisions: what an author set on purpose is kept, unless a block needs it written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, Role, Structure
from idfx.core.roles import RoleName
from idfx.fills import fills
from idfx.planning.expressions import bound_gains, closed_by, gates_of
from idfx.planning.frequencies import frequencies
from idfx.planning.provenance import Provenance, Purpose

OPTION = "--overwrite-deliberate"
_SHOWN = 3


class Respected(NamedTuple):
    """The decisions that remain, the reasons to keep the other parameters, and notes on both."""

    decisions: dict[str, Decision]
    kept: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Meant:
    """What an author set on purpose, by parameter, and the blocks that it closes.

    `closing` has the joins that each parameter of zeros closes, `gates` the weights among them that close a join beside
    its ends. `trained`: the model holds trained values.
    """

    found: Mapping[str, Purpose] = field(default_factory=dict)
    closing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    gates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    trained: bool = False

    @property
    def standing(self) -> frozenset[str]:
        """The zero weights that stay, because they close a block as a gate."""
        return frozenset(name for names in self.gates.values() for name in names)


def meant(structure: Structure, network: StructureQueries) -> Meant:
    """Return what the author of a model set on purpose.

    Zero weights in series get no gradient, so they are no design; where most weights are such, the model holds no
    values at all.

    Args:
        structure: as it was read.
        network: the structure whose ends a scheme closes.
    """
    provenance = Provenance(structure)
    dead = _in_series(network, provenance.zeros())
    weights = [name for name, role in structure.roles.items() if role.name.is_weight]
    if 2 * len(dead) > len(weights):
        return Meant()
    found = {name: said for name in structure.parameters if name not in dead and (said := provenance.purpose(name))}
    zeros = [name for name, said in found.items() if said.kind == "zeros"]
    closing = closed_by(network, zeros, [name for name, said in found.items() if said.kind != "zeros"])
    chosen = {join.name for join in structure.joins if any(e.parameter in structure.role_overrides for e in join.ends)}
    gates = {join: names for join, names in gates_of(network, closing).items() if join not in chosen}
    return Meant(found, closing, gates, provenance.trained)


def opened(structure: Structure, gates: Mapping[str, Sequence[str]]) -> Structure:
    """Return the structure with blocks that an author's gate closes as open, and their ends as parameters inside.

    Near zero beside a gate of zeros, neither would get a gradient.

    Args:
        structure: whose ends a scheme closes.
        gates: what closes a join, by its name.
    """
    names = structure.first_names
    joins: dict[str, set[str]] = {}
    for join in structure.joins:
        for end in join.ends if join.zeroable else ():
            joins.setdefault(names[end.parameter], set()).add(join.name)
    inside = {name: closed for name, closed in joins.items() if closed <= gates.keys()}
    roles = {name: _inside(structure.roles[name], gates[min(closed)]) for name, closed in inside.items()}
    shut = (replace(join, zeroable=False) if join.name in gates else join for join in structure.joins)
    return replace(structure, roles={**structure.roles, **roles}, joins=tuple(shut)) if gates else structure


def _inside(role: Role, gates: Sequence[str]) -> Role:
    """The role of an end in a block that a gate closes."""
    scale = RoleName.NORM_SCALE if "norm" in role.traits else RoleName.BRANCH_SCALE
    name = scale if role.name is RoleName.END_SCALE else RoleName.INNER
    return replace(role, name=name, rows=None, evidence=f"its block is closed by zeros in {', '.join(gates)}")


def respect(
    structure: Structure, network: StructureQueries, decisions: Mapping[str, Decision], author: Meant
) -> Respected:
    """Return the decisions without those about parameters that their author set on purpose.

    What ends a block is the scheme's to choose: an author's zero there says that the block starts as its shortcut, and
    so it does. A gate of zeros stays, and closes the block. A shift behind an end is written, and a note says what it
    was.

    Args:
        structure: as it was read.
        network: the structure whose ends the decisions close.
        decisions: of a scheme, by parameter.
        author: what was set on purpose.
    """
    closing, behind = _closing(structure, network), _behind(network.structure, decisions)
    found = {name: said for name, said in author.found.items() if name in decisions}
    closing = (closing | author.closing.keys()) - author.standing
    lost = {name: said for name, said in found.items() if name in behind or (name in closing and _is_lost(said))}
    kept = {name: said for name, said in found.items() if name not in closing and name not in behind}
    how = " (the model is trained: values that vary are no purpose)" if author.trained else ""
    reasons = {name: f"set on purpose: {said.shown}; its author's values are kept{how}" for name, said in kept.items()}
    named = {**frequencies(network), **bound_gains(network, decisions)}.items()
    reasons |= {name: why for name, why in named if name in decisions and name not in {*reasons, *closing, *behind}}
    zeros = (name for name, said in found.items() if said.kind == "zeros" and name in closing and name not in behind)
    decisions = {**decisions, **dict(_exactly_zero(structure, decisions, zeros))}
    notes = (
        *_note(lost, "set on purpose, but a block starts as its shortcut only if idfx writes it"),
        *_note(kept, f"set on purpose and kept; {OPTION} writes it"),
    )
    return Respected({name: one for name, one in decisions.items() if name not in reasons}, reasons, notes)


def _exactly_zero(
    structure: Structure, decisions: Mapping[str, Decision], zeros: Iterable[str]
) -> Iterator[tuple[str, Decision]]:
    """Ends that an author set to 0 beside frozen parameters: adapters, which must not change the outputs at all."""
    if not all(info.requires_grad for info in structure.parameters.values()):
        reason = "an end that its author set to 0 beside frozen parameters, whose outputs it must not change (ours)"
        for name in zeros:
            if fills.zero(decisions[name]) is not None and not structure.roles[name].added:
                yield name, Decision(name, "constant", {"value": 0.0}, reason, decisions[name].evidence)


def _closing(structure: Structure, network: StructureQueries) -> frozenset[str]:
    """The parameters at which a block can be closed."""
    joins = [join for read in (structure, network.structure) for join in read.joins if join.zeroable]
    names = structure.first_names
    return frozenset(names[one] for join in joins for one in (*(end.parameter for end in join.ends), *join.scales))


def _behind(structure: Structure, decisions: Mapping[str, Decision]) -> frozenset[str]:
    """The shifts that are added in a block behind the ends that the decisions close."""
    names = structure.first_names
    ends = {join.name: [names[end.parameter] for end in join.ends] for join in structure.joins if join.zeroable}
    own = {name for found in ends.values() for name in found} & decisions.keys()
    closed = {name for name in own if fills.zero(decisions[name]) is not None}
    shut = (join for join in structure.joins if join.zeroable and closed.issuperset(ends[join.name]))
    return frozenset(names[shift] for join in shut for shift in join.zeroed_biases)


def _is_lost(said: Purpose) -> bool:
    """Whether what closes a block held more than a size."""
    return said.kind == "pattern"


def _in_series(network: StructureQueries, zeros: frozenset[str]) -> frozenset[str]:
    """The zero weights that read from zero weights alone, and those."""
    before = {name: network.before(name) or () for name in zeros}
    behind = {name: sources for name, sources in before.items() if sources and zeros.issuperset(sources)}
    return frozenset({*behind, *(source for sources in behind.values() for source in sources)})


def _note(found: Mapping[str, Purpose], what: str) -> Iterator[str]:
    if found:
        shown = [f"{name} ({said.shown})" for name, said in list(found.items())[:_SHOWN]]
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        yield f"{', '.join(shown)}{more}: {what}"
