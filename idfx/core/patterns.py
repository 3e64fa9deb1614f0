"""Patterns → parameter names. A pattern is a name or alias, a module, a wildcard pattern, a role or a trait."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from idfx.core.errors import UsageError
from idfx.core.records import ParameterInfo, Role, first_names
from idfx.core.registry import did_you_mean


def matching(
    pattern: str, parameters: Mapping[str, ParameterInfo], roles: Mapping[str, Role], subject: str
) -> tuple[str, ...]:
    """Return the parameters that a pattern matches, by first name, in the model's order.

    Args:
        pattern: the name of a parameter, or of a module, which matches everything in it; `*` matches any characters,
            dots included, `?` one character, `[ab]` one of several. `role:NAME` and `trait:NAME` match parameters with
            that role or trait, as `idfx analyze` shows them.
        parameters, roles: of the model, by first name.
        subject: the option to name in errors.

    Raises:
        UsageError: the pattern matches nothing in this model.

    Example:
        >>> info = {name: ParameterInfo(name, (2, 2), "float32") for name in ("fc.weight", "fc.bias", "head.weight")}
        >>> matching("fc", info, {}, "--keep"), matching("*.weight", info, {}, "--keep")
        (('fc.weight', 'fc.bias'), ('fc.weight', 'head.weight'))
        >>> matching("role:head", info, {"head.weight": Role("head", "it is the last weight")}, "--keep")
        ('head.weight',)
    """
    every = first_names(parameters)
    if pattern in every:
        return (every[pattern],)
    kind, colon, word = pattern.partition(":")
    if colon and kind in ("role", "trait"):
        return _alike(kind, word.strip(), roles, subject)
    inside = f"{pattern.rstrip('.')}.*"
    found = {
        every[alias] for alias in every if fnmatch.fnmatchcase(alias, pattern) or fnmatch.fnmatchcase(alias, inside)
    }
    if not found:
        modules = {alias.rpartition(".")[0] for alias in every} - {""}
        near = did_you_mean(pattern, [*every, *sorted(modules)])
        raise UsageError(
            f"{subject} {pattern}: the model has no such parameter or module; expected one of its {len(parameters)} "
            f"parameters, a module, or a pattern.{near} `idfx plan` lists them all."
        )
    return tuple(name for name in parameters if name in found)


def _alike(kind: str, word: str, roles: Mapping[str, Role], subject: str) -> tuple[str, ...]:
    """Return the parameters with a role or a trait."""
    words = {name: (role.name,) if kind == "role" else tuple(role.traits) for name, role in roles.items()}
    found = tuple(name for name, its in words.items() if word in its)
    if not found:
        known = sorted({one for its in words.values() for one in its})
        expected = f"expected one of {', '.join(known)}" if known else "it has none at all"
        raise UsageError(
            f"{subject} {kind}:{word}: nothing in this model has that {kind}; {expected}.{did_you_mean(word, known)}"
        )
    return found
