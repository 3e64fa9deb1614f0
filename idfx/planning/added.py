"""Numbers that the model adds to a parameter: a decision about what acts, and the one about the parameter."""

from __future__ import annotations

from dataclasses import replace

from idfx.core.records import Decision, Role
from idfx.fills import fills


def without_added(decision: Decision, role: Role) -> Decision:
    """Return the decision about a parameter, given the one about what acts: a scale 1 + w of 1 has w = 0.

    Example:
        >>> role = Role("norm scale", "", added=1.0)
        >>> without_added(Decision("w", "constant", {"value": 1.0}, ""), role).arguments
        {'value': 0.0}
    """
    value = _constant(decision, role)
    if value is None:
        return decision
    reason = f"{decision.reason}; the model adds {role.added:g} to it"
    return replace(decision, arguments={**decision.arguments, "value": value - role.added}, reason=reason)


def zero_of(decision: Decision, role: Role) -> float | None:
    """Return the size with which the entries act that a decision calls zero, None if its fill calls none so.

    Example:
        >>> zero_of(Decision("w", "constant", {"value": -1.0}, ""), Role("end scale", "", added=1.0))
        0.0
    """
    value = _constant(decision, role)
    return fills.zero(decision) if value is None else abs(value + role.added)


def _constant(decision: Decision, role: Role) -> float | None:
    """The value of a constant to which the model adds a number; None for others."""
    value = decision.arguments.get("value") if role.added and decision.fill == "constant" else None
    return value if isinstance(value, (int, float)) else None
