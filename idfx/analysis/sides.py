"""The records of residual joins: an operand of a sum as its shortcut, and what was found of all sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from idfx.analysis.rows import Ranges
from idfx.analysis.zero_sets import ZeroedParameter, ZeroSet


@dataclass(frozen=True)
class Side:
    """One operand of a sum as its shortcut, with the terms between fork and join on the other side.

    `context` is what enters those terms from elsewhere than the fork: a second input, a value made before the fork.
    """

    operand: int
    others: tuple[int, ...]
    fork: int
    length: int
    region: tuple[int, ...]
    context: tuple[int, ...] = ()


@dataclass
class Blocks:
    """The residual joins found so far, by term; inner ones are found before the outer.

    `rows` has the rows of each end that are the join's own, as `Exclusive.rows` gives them.
    """

    sides: dict[int, Side] = field(default_factory=dict)
    cuts: dict[int, ZeroSet] = field(default_factory=dict)
    rows: dict[int, dict[ZeroedParameter, Ranges | None]] = field(default_factory=dict)
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    parent: dict[int, int] = field(default_factory=dict)
    stem: dict[int, int] = field(default_factory=dict)
    shortcut: dict[int, int] = field(default_factory=dict)

    def around(self, term: int) -> Iterator[int]:
        """Yield the joins whose branch contains a term, the innermost first."""
        join = self.stem.get(term)
        while join is not None:
            yield join
            join = self.parent.get(join)
