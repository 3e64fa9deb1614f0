"""Words for parameters → their names: a name, another name of the same tensor, a module, or a pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from idfx.errors import UsageError
from idfx.records import ParameterInfo
from idfx.registry import did_you_mean


def matching(pattern: str, parameters: Mapping[str, ParameterInfo], subject: str) -> tuple[str, ...]:
    """Return the parameters that a pattern means, by first name, in the model's order.

    Args:
        pattern: the name of a parameter or of a module, which means all that is in it; `*` stands for any letters, dots
            among them, `?` for one, `[ab]` for one of several.
        parameters: of the model, by first name.
        subject: what to call the pattern in errors.

    Raises:
        UsageError: it means nothing in this model.

    Example:
        >>> info = {name: ParameterInfo(name, (2, 2), "float32") for name in ("fc.weight", "fc.bias", "head.weight")}
        >>> matching("fc", info, "--keep"), matching("*.weight", info, "--keep")
        (('fc.weight', 'fc.bias'), ('fc.weight', 'head.weight'))
    """
    every = {alias: info.name for info in parameters.values() for alias in (info.name, *info.aliases)}
    if pattern in every:
        return (every[pattern],)
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
