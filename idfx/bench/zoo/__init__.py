"""The zoo: models of every kind, each with something to learn in tens of steps.

A set is a module of `idfx/bench/zoo/sets` with the decorator `zoo_set`: names, and how a name becomes a `Learner`.
Models that no library has are functions in `idfx/bench/zoo/small`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from idfx.core.errors import UsageError
from idfx.core.records import Example
from idfx.core.registry import Registry

Batch = Any  # tensors, in tuples and dicts
Loss = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """What a model learns.

    `draw`: a batch from a generator, never the same twice. `loss`: of a model on a batch; a pair where what is
    minimised is not what is reported, which is then the second. `chance`: the reported loss of the best output that
    ignores the input; None where no formula gives it.
    """

    draw: Callable[[torch.Generator], Batch] = field(repr=False)
    loss: Callable[[nn.Module, Batch], Loss] = field(repr=False)
    chance: float | None


@dataclass(frozen=True)
class Learner:
    """A model from its author's start, an example of its inputs, what it learns, and facts for the record."""

    model: nn.Module = field(repr=False)
    example: Example = field(repr=False)
    problem: Problem
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ZooSet:
    """A set of models: their names, and a function from a name and a seed to a learner."""

    names: Callable[[], Iterable[str]]
    build: Callable[[str, int], Learner]
    about: str


SETS: Registry[ZooSet] = Registry("zoo set", "idfx.bench.zoo.sets")
Build = Callable[[str, int], Learner]


def zoo_set(name: str, names: Callable[[], Iterable[str]]) -> Callable[[Build], Build]:
    """Return a decorator that registers a function from a name and a seed to a learner as a set."""

    def add(build: Build) -> Build:
        about = (build.__doc__ or "").partition("\n")[0]
        SETS.register(name, by=build.__module__)(ZooSet(names, build, about))
        return build

    return add


def members(sets: Iterable[str]) -> list[str]:
    """Return `SET:NAME` of every model of these sets.

    Raises:
        UsageError: an unknown set.

    Example:
        >>> "small:unet" in members(["small"])
        True
    """
    return [f"{name}:{member}" for name in sets for member in SETS.find(name).names()]


def find_set(member: str) -> tuple[ZooSet, str]:
    """Return the set of `SET:NAME`, and the name.

    Raises:
        UsageError: another form, or an unknown set.
    """
    name, colon, rest = member.partition(":")
    if not colon or not rest:
        raise UsageError(f"model {member!r}: expected SET:NAME, such as timm:resnet18. The sets are {', '.join(SETS)}.")
    return SETS.find(name), rest


def learner(member: str, seed: int) -> Learner:
    """Return a member of the zoo; the values that its author draws, and its data, depend on the seed.

    Args:
        member: `SET:NAME`; sets of a library take every name of it, not only those listed.
        seed: of the model's own values and of the problem.

    Raises:
        UsageError: an unknown set or name.
        IdfxError: the model cannot be built.

    Example:
        >>> found = learner("small:unet", 0)
        >>> found.problem.chance
        1.0
    """
    found, name = find_set(member)
    return found.build(name, seed)
