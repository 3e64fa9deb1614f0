"""Structure × role overrides → structure: roles that the user sets, and the consequences for the joins.

The certificate uses the resulting structure, so it checks the user's roles in the same way as those of idfx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import networkx as nx

from idfx.analysis.structure import end_at_scales
from idfx.core.errors import UsageError
from idfx.core.patterns import matching
from idfx.core.records import End, Join, Role, Structure
from idfx.core.registry import did_you_mean
from idfx.core.roles import GIVEN, RoleName

_TRUNK = ""  # what holds the joins that lie in no branch


def read_words(words: Iterable[str]) -> dict[str, str]:
    """Return the roles given as PARAM=ROLE.

    Args:
        words: each a parameter, or a pattern with `*` and `?`, an equals sign, and a role.

    Raises:
        UsageError: a text without an equals sign.

    Example:
        >>> read_words(["blocks.*.proj.weight=inner"])
        {'blocks.*.proj.weight': 'inner'}
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, role = word.rpartition("=")
        if not equals or not name or not role:
            raise UsageError(f"--role {word!r}: expected PARAM=ROLE. Write --role head.weight='main stem'.")
        found[name.strip()] = role.strip()
    return found


def override_roles(structure: Structure, words: Mapping[str, str]) -> Structure:
    """Return the structure with the user's roles, and with its joins closed by the ends that the user names.

    A parameter with the role "end" (or "end scale") closes the innermost block whose branch contains it, together with
    other ends named in this way; the ends that idfx found there no longer count. A block that loses all its ends is
    open.

    Args:
        structure: to change.
        words: role by parameter or by pattern; the last matching pattern wins.

    Raises:
        UsageError: a parameter or a role that does not exist, a weight without a matrix, or an end outside branches.

    Example:
        >>> import torch, idfx
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> override_roles(idfx.analyze(net, (torch.ones(1, 2),)), {"1.weight": "main stem"}).roles["1.weight"].name
        'main stem'
    """
    named = _expanded(structure, words)
    if not named:
        return structure
    joins = _joins(structure, named)
    roles = dict(structure.roles)
    for name, role in named.items():
        before = structure.roles[name]
        if before.name != role:
            said = f"set by --role; idfx reads it as {before.name}: {before.evidence}"
            roles[name] = replace(before, name=role, evidence=said, rows=None)
    for name in _demoted(structure, joins, named):
        before = structure.roles[name]
        place = RoleName.INNER if before.name is RoleName.END else RoleName.BRANCH_SCALE
        roles[name] = replace(before, name=place, evidence="--role ends the branch at another parameter", rows=None)
    return replace(structure, joins=joins, roles=roles, role_overrides={**structure.role_overrides, **named})


def _expanded(structure: Structure, words: Mapping[str, str]) -> dict[str, RoleName]:
    """The role of each matching parameter."""
    found: dict[str, RoleName] = {}
    for pattern, word in words.items():
        role = next((name for name in GIVEN if name == word), None)
        if role is None:
            raise UsageError(
                f"role {word!r} of {pattern}: unknown; expected one of {', '.join(GIVEN)}.{did_you_mean(word, GIVEN)}"
            )
        for name in matching(pattern, structure.parameters, structure.roles, "role of"):
            _check(structure.roles[name], name, role)
            found[name] = role
    return found


def _check(before: Role, name: str, role: RoleName) -> None:
    if role.is_weight and role is not RoleName.END and before.layout is None:
        raise UsageError(
            f"role {role!r} of {name}: idfx finds no matrix in it ({before.name}: {before.evidence}); "
            f"expected a weight. Give it one of {', '.join(name for name in GIVEN if not name.is_weight)}."
        )


def _joins(structure: Structure, named: Mapping[str, RoleName]) -> tuple[Join, ...]:
    around: nx.DiGraph[str] = nx.DiGraph((join.parent or _TRUNK, join.name) for join in structure.joins)
    depth = nx.single_source_shortest_path_length(around, _TRUNK) if structure.joins else {}
    claimed: dict[str, list[str]] = {}
    for name, role in named.items():
        if role.ends_branch:
            aliases = {name, *structure.parameters[name].aliases}
            mine = [j for j in structure.joins if any(end.parameter in aliases for end in j.ends)]
            if not mine:
                holding = [
                    j for j in structure.joins if not aliases.isdisjoint((*j.branch, *j.scales, *j.zeroed_biases))
                ]
                deepest = max((depth[join.name] for join in holding), default=0)
                mine = [join for join in holding if depth[join.name] == deepest]
            if not mine:
                raise UsageError(
                    f"role {role!r} of {name}: no residual join has it as a weight or scale of its branch; "
                    "expected one that does. `idfx analyze` shows the joins."
                )
            for join in mine:
                claimed.setdefault(join.name, []).append(name)
    return tuple(_join(join, claimed.get(join.name, []), named) for join in structure.joins)


def _join(join: Join, claimed: list[str], named: Mapping[str, RoleName]) -> Join:
    """A join with the ends that the user names."""
    if claimed:
        kept = {end.parameter: end for end in join.ends}
        ends = tuple(kept.get(name, End(name)) for name in claimed)
        if ends == join.ends and join.zeroable:
            return join
        return replace(join, ends=ends, end_steps=(), gain=None, zeroable=True, reason="")
    left = tuple(end for end in join.ends if named.get(end.parameter, RoleName.END).ends_branch)
    if left == join.ends:
        return join
    open_ = f"{', '.join(end.parameter for end in join.ends if end not in left)} does not end it, set by --role"
    return replace(join, ends=(), zeroable=False, reason=open_)


def _demoted(structure: Structure, joins: tuple[Join, ...], named: Mapping[str, RoleName]) -> Iterable[str]:
    """The parameters that are no longer ends, and for which the user has set no role."""
    ends = {structure.first_names[end.parameter] for join in joins if join.zeroable for end in join.ends}
    for name, role in structure.roles.items():
        if role.name.ends_branch and name not in ends and name not in named:
            yield name


def with_scale_ends(structure: Structure) -> Structure:
    """Return the structure with every branch ended as close to its join as possible, at scales rather than weights.

    Args:
        structure: to change; role overrides are kept.
    """
    return override_roles(end_at_scales(structure), structure.role_overrides)
