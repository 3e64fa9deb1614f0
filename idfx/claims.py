"""Structure × plan → what the plan claims: which ends start at almost zero, and how large their entries are."""

from __future__ import annotations

from collections.abc import Mapping

from idfx.records import Decision, Plan, Role, Structure

LARGEST = 1e-2  # of a scale that is called almost zero


def claims(structure: Structure, plan: Plan) -> Mapping[str, float]:
    """Return the size of the entries, by end, of the ends that the plan says start at almost zero.

    A fill with an argument `eps` says so, and so does a constant 0, or a scale of at most `LARGEST`. An end that is
    kept or filled otherwise claims nothing, and neither does a block with such an end.

    Args:
        structure: of the model.
        plan: for it.

    Example:
        >>> import torch, idfx
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = torch.nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return x + self.fc(x)
        >>> structure = idfx.analyze(Block(), (torch.ones(1, 4),))
        >>> claims(structure, idfx.plan(structure))
        {'fc.weight': 1e-06}
    """
    canonical = {alias: info.name for info in structure.parameters.values() for alias in (info.name, *info.aliases)}
    ends = dict.fromkeys(canonical[end.parameter] for join in structure.joins for end in join.ends)
    entries = {name: _entry(plan.decisions.get(name), structure.roles[name]) for name in ends}
    return {name: entry for name, entry in entries.items() if entry is not None}


def _entry(decision: Decision | None, role: Role) -> float | None:
    if decision is None:
        return None
    if "eps" in decision.arguments:
        return abs(float(decision.arguments["eps"]))
    if decision.fill != "constant":
        return None
    value = abs(float(decision.arguments["value"]))
    return value if value <= (0.0 if role.layout is not None else LARGEST) else None
