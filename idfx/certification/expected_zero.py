"""Structure × plan → what the plan claims: which blocks start closed, by which ends, and how small these are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from idfx.analysis.role_overrides import with_scale_ends
from idfx.core.records import Join, Plan, Structure
from idfx.fills import fills
from idfx.planning.scalars import scalar_values, source_of

if TYPE_CHECKING:
    from torch import nn

LARGEST = 1e-2  # of an entry or a scale that is called almost zero


@dataclass(frozen=True)
class Claims:
    """A structure whose joins end where the plan closes them, and the size of the entries of each such end."""

    structure: Structure
    entries: Mapping[str, float]


def claims(structure: Structure, plan: Plan, model: nn.Module | None = None) -> Claims:
    """Return which blocks a plan says start closed.

    A fill whose entries are called zero (`fills.zero`) says so of an end if they are at most `LARGEST`; of a matrix
    whose rows are full of them, if they are 0. An end that is kept or filled otherwise claims nothing, and neither does
    a block with such an end, unless it is closed nearer to its join: by a norm scale at 0, say. Neither does a block
    with a bias behind its end that was loaded and is not 0.

    Args:
        structure: of the model.
        plan: for it.
        model: to which it was applied, for what was loaded.

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
    other = with_scale_ends(structure)
    closer = _open(other, added, _entries(other, plan))
    joins = tuple(
        near if not _claimed(join, names, entries) and near.zeroable and _claimed(near, names, closer) else join
        for join, near in zip(structure.joins, other.joins, strict=True)
    )
    return Claims(replace(structure, joins=joins), {**closer, **entries})


def _added(structure: Structure, plan: Plan, model: nn.Module | None) -> set[str]:
    """What was loaded and is added behind an end, and is not 0."""
    values = dict(model.named_parameters()) if model is not None else {}
    names = structure.first_names
    behind = {name for join in structure.joins for name in join.zeroed_biases}
    loaded = {name: values[names[name]] for name in behind if names[name] in plan.loaded and values}
    return {name for name, value in loaded.items() if bool(value.detach().any())}


def _open(structure: Structure, added: Collection[str], entries: Mapping[str, float]) -> dict[str, float]:
    """Leave out the ends behind which something is added."""
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
    entry = fills.zero(decision)
    whole_rows = structure.roles[name].layout is not None and "layout" not in fills.takes(decision.fill)
    return entry if entry is not None and entry <= (0.0 if whole_rows else LARGEST) else None
