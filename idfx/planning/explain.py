"""Structure × plan → everything about one parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from idfx.core.errors import UsageError
from idfx.core.records import Decision, ParameterInfo, Plan, Role, Structure, WeightUse
from idfx.core.registry import did_you_mean

ROWS, COLUMNS = 6, 12


@dataclass(frozen=True)
class Explanation:
    """One parameter: its role, its uses, its decision, and the corner of its matrix.

    `matrix` holds the first rows of the first matrix (D_out, D_in), with columns in the order of the fill; it is empty
    if the parameter is kept or is not a matrix. `size` is (D_out, D_in) of the whole matrix.
    """

    parameter: ParameterInfo
    role: Role
    sites: tuple[WeightUse, ...]
    decision: Decision | None
    kept: str
    size: tuple[int, ...]
    matrix: tuple[tuple[float, ...], ...]


def explain(structure: Structure, plan: Plan, name: str) -> Explanation:
    """Return everything that is known about one parameter.

    Args:
        structure, plan: of the same model.
        name: of the parameter, or one of its aliases.

    Raises:
        UsageError: the model has no such parameter.
    """
    if name not in structure.first_names:
        raise UsageError(
            f"{name}: {structure.model} has no such parameter; expected one of its "
            f"{len(structure.parameters)}.{did_you_mean(name, structure.first_names)} `idfx plan` lists them all."
        )
    info = structure.parameters[structure.first_names[name]]
    decision = plan.decisions.get(info.name)
    names = {info.name, *info.aliases}
    size, matrix = _corner(info, decision, plan.seed) if decision is not None else ((), ())
    return Explanation(
        parameter=info,
        role=structure.roles[info.name],
        sites=tuple(site for site in structure.sites if site.parameter in names),
        decision=decision,
        kept=f"loaded from {plan.loaded[info.name]}" if info.name in plan.loaded else plan.kept.get(info.name, ""),
        size=size,
        matrix=matrix,
    )


def _corner(
    info: ParameterInfo, decision: Decision, seed: int
) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
    """Fill only the first rows, as a shard, and return them in the column order of the fill."""
    import torch

    from idfx.fills import fill_
    from idfx.fills.folding import Folding
    from idfx.fills.geometry import Shard
    from idfx.fills.matrices import Target, read_layout

    if decision.fill == "constant" or len(info.shape) < 2:
        return (), ()
    whole = Shard(info.shape, (0,) * len(info.shape))
    dtype = getattr(torch, info.dtype)
    layout = read_layout(Target(torch.empty(0), info.name, seed, whole), decision.arguments.get("layout"))
    shape = list(info.shape)
    within = max(math.prod(shape[axis] for axis in layout.out_rest), 1)
    shape[layout.out_axis] = min(-(-ROWS // within), shape[layout.out_axis])
    part = torch.empty(shape, dtype=dtype)
    fill_(part, decision.fill, decision.arguments, parameter=info.name, seed=seed, shard=whole)
    rows = Folding(layout, tuple(shape), decision.arguments.get("order", "channel")).rows(part)
    corner = tuple(tuple(row) for row in rows[:ROWS, :COLUMNS].tolist())
    return layout.matrix(info.shape), corner
