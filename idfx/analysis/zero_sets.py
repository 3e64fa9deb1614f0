"""What makes a term zero: a set of parameters that do so when they are zero, and what comes after them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

# Concatenation of lists as a tree of pairs, flattened once at the end: unions along a chain stay linear.
Tree = Any


def both(one: Tree, other: Tree) -> Tree:
    """Return the leaves of two trees as one; an empty tree adds no node.

    Example:
        >>> both(("a",), ()), both(("a",), ("b",))
        (('a',), (('a',), ('b',)))
    """
    return (one, other) if one and other else one or other


def flatten(tree: Tree) -> list[Any]:
    """Return the leaves of a tree of tuples, in order, each once.

    Example:
        >>> flatten((("a", "b"), ("a",)))
        ['a', 'b']
    """
    if not tree:
        return []
    leaves: dict[Any, None] = {}
    stack = [tree]
    while stack:
        top = stack.pop()
        if isinstance(top, tuple):
            stack.extend(reversed(top))
        else:
            leaves[top] = None
    return list(leaves)


@dataclass(frozen=True, slots=True)
class ZeroedParameter:
    """A parameter that makes a term zero at −`added`, and the term at which it acts."""

    parameter: str
    term: int
    added: float = 0.0


@dataclass(eq=False, slots=True)
class ZeroSet:
    """What makes a term zero: `ends` are to be zero, and `zeroed_biases` (biases and shifts after them) too.

    `scales` are the scale parameters passed on the way. `weights`: all ends are weights. `normalised`: a normalisation
    comes after the ends, so that only an exact zero stays zero. `gain`: the most that what stands behind the ends, but
    for the scales, multiplies by; None where that has no bound that the graph tells. `obstacle`, if not empty, says
    why there is no such set.
    """

    ends: Tree = ()
    scales: Tree = ()
    zeroed_biases: Tree = ()
    normalised: bool = False
    obstacle: str = ""
    weights: bool = True
    gain: float | None = 1.0

    @property
    def clean(self) -> bool:
        """Whether the ends exist and small values at them stay small."""
        return not self.obstacle and not self.normalised

    def leaves(self) -> list[ZeroedParameter]:
        """Return the ends, each once; none if there is an obstacle."""
        return [] if self.obstacle else flatten(self.ends)

    def at(self, position: int, weights: bool = False) -> ZeroSet:
        """Return the set with its ends acting at a term: where an expression of parameters meets the data."""
        leaves = tuple(replace(leaf, term=position) for leaf in flatten(self.ends))
        return ZeroSet(leaves, self.scales, self.zeroed_biases, self.normalised, self.obstacle, weights, self.gain)


def union(zero_sets: Iterable[ZeroSet]) -> ZeroSet:
    """Return the set that makes several terms zero together, or the first one with an obstacle."""
    ends: Tree = ()
    scales: Tree = ()
    biases: Tree = ()
    normalised, weights = False, True
    gain: float | None = 0.0
    for one in zero_sets:
        if one.obstacle:
            return one
        gain = None if gain is None or one.gain is None else max(gain, one.gain)
        ends, scales, biases = both(ends, one.ends), both(scales, one.scales), both(biases, one.zeroed_biases)
        normalised, weights = normalised or one.normalised, weights and one.weights
    return ZeroSet(ends, scales, biases, normalised, weights=weights, gain=gain)
