"""Structure × plan → the claims of the plan: which blocks start closed, by which ends, and how small the ends are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from idfx.analysis.queries import StructureQueries
from idfx.analysis.role_overrides import with_scale_ends
from idfx.core.records import End, Join, Plan, Structure
from idfx.fills import fills
from idfx.planning.added import zero_of
from idfx.planning.expressions import closed_by, gates_of
from idfx.planning.scalars import scalar_values, source_of
from idfx.sharding.together import whole

if TYPE_CHECKING:
    from torch import nn

LARGEST = 1e-2  # entry or scale that counts as near zero


@dataclass(frozen=True)
class Claims:
    """A structure whose joins end where the plan closes them, and the entry size of each such end."""

    structure: Structure
    entries: Mapping[str, float]


def claims(structure: Structure, plan: Plan, model: nn.Module | None = None) -> Claims:
    """Return the blocks that a plan claims to start closed.

    A plan claims an end if it fills it with entries that the fill declares as zero (`fills.zero`) and that are at most
    `LARGEST`; for a matrix whose rows are full of such entries, they must be 0. It claims nothing for other ends, or
    for blocks with such an end unless they are closed closer to their join, for example by a norm scale of 0. It also
    claims nothing for a block with a loaded, non-zero bias after its end.

    Args:
        structure: of the model.
        plan: for this structure.
        model: to which the plan was applied; needed for loaded parameters.

    Example:
        >>> import torch, idfx
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = torch.nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return x + self.fc(x)
        >>> structure = idfx.analyze(Block(), (torch.ones(1, 4),))
        >>> claims(structure, idfx.plan(structure)).entries
        {'fc.weight': 1e-06}
    """
    names = structure.first_names
    added = _added(structure, plan, model)
    entries = _open(structure, added, _entries(structure, plan))
    if all(_claimed(join, names, entries) for join in structure.joins if join.zeroable):
        return Claims(structure, entries)
    gated = _gated(structure, plan, model)
    if gated:
        own = {name for names in gated.values() for name in names}
        joins = tuple(_ended(structure, join, gated.get(join.name, ())) for join in structure.joins)
        structure, entries = replace(structure, joins=joins), {**entries, **dict.fromkeys(own, 0.0)}
    other = with_scale_ends(structure)
    closer = _open(other, added, _entries(other, plan))
    joins = tuple(
        near if not _claimed(join, names, entries) and near.zeroable and _claimed(near, names, closer) else join
        for join, near in zip(structure.joins, other.joins, strict=True)
    )
    return Claims(replace(structure, joins=joins), {**closer, **entries})


def _gated(structure: Structure, plan: Plan, model: nn.Module | None) -> Mapping[str, Sequence[str]]:
    """The kept weights of zeros that close a join as a gate, by the name of the join."""
    values = dict(model.named_parameters()) if model is not None else {}
    filled = {name for name, value in values.items() if bool(value.detach().any())}
    roles = structure.roles
    zeros = [name for name in plan.kept if name in values and name not in filled and roles[name].name.is_weight]
    shifted = [name for name, role in roles.items() if role.name.is_shift and name in filled]
    network = StructureQueries(structure)
    return gates_of(network, closed_by(network, zeros, shifted)) if zeros else {}


def _ended(structure: Structure, join: Join, gates: Sequence[str]) -> Join:
    """A join that ends at the gate that closes it, if one does."""
    if not gates:
        return join
    steps = (s.step for s in structure.sites if structure.first_names[s.parameter] == gates[0])
    return replace(join, ends=(End(gates[0]),), zeroed_biases=(), scales=(), end_steps=tuple(steps), gain=None)


def _added(structure: Structure, plan: Plan, model: nn.Module | None) -> set[str]:
    """The loaded, non-zero parameters that are added after an end."""
    values = dict(model.named_parameters()) if model is not None else {}
    names = structure.first_names
    behind = dict.fromkeys(name for join in structure.joins for name in join.zeroed_biases)
    loaded = {name: values[names[name]] for name in behind if names[name] in plan.loaded and values}
    return {name for name, value in loaded.items() if bool(whole(value, name).detach().any())}


def _open(structure: Structure, added: Collection[str], entries: Mapping[str, float]) -> dict[str, float]:
    """Remove the ends after which something is added."""
    reached = {
        structure.first_names[end.parameter]
        for join in structure.joins
        for end in join.ends
        if {*join.zeroed_biases} & {*added}
    }
    return {name: entry for name, entry in entries.items() if name not in reached}


def _claimed(join: Join, names: Mapping[str, str], entries: Mapping[str, float]) -> bool:
    return bool(join.ends) and all(names[end.parameter] in entries for end in join.ends)


def _entries(structure: Structure, plan: Plan) -> dict[str, float]:
    names, scalars = structure.first_names, scalar_values(plan.scalars)
    ends = dict.fromkeys(names[end.parameter] for join in structure.joins for end in join.ends)
    found = {name: _entry(name, structure, plan, scalars) for name in ends}
    return {name: entry for name, entry in found.items() if entry is not None}


def _entry(name: str, structure: Structure, plan: Plan, scalars: Mapping[str, float]) -> float | None:
    if name in scalars:
        return abs(scalars[name]) if abs(scalars[name]) <= LARGEST else None
    decision = plan.decisions.get(source_of(name))
    if decision is None:
        return None
    entry = zero_of(decision, structure.roles[name])
    whole_rows = structure.roles[name].layout is not None and "layout" not in fills.takes(decision.fill)
    return entry if entry is not None and entry <= (0.0 if whole_rows else LARGEST) else None
