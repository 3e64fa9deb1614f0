"""The kinds of terms that describe an operator, and the rules of each kind: the complete vocabulary.

`Kind` is the only place that says what a kind of term does; docs/structure.md shows the same table.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, StrEnum
from functools import cached_property


class Length:
    """Units of the length of a path, compared in this order: nonlinear operators, weights, scales, resamplings.

    Each count has 20 bits of one integer, so that paths add up and compare as integers do.
    """

    NONLINEAR = 1 << 60
    WEIGHT = 1 << 40
    SCALE = 1 << 20
    RESAMPLE = 1
    NONE = 0


class Zero(Enum):
    """When a term is zero."""

    OPERAND = "its operand is"
    ANY = "any operand is"
    ALL = "all operands are"
    ALWAYS = "always"
    NEVER = "never"
    UNREAD = "never (until read more deeply)"
    GIVEN = "it is given so"


class Entries(Enum):
    """The source of an entry of a term."""

    SAME = "the same entry"
    MOVED = "an entry from elsewhere"
    SEVERAL = "several entries, axes kept"
    MIXED = "several entries, axes new"
    OWN = "nothing"


class Kind(StrEnum):
    """What a term does. A member is the plain word, with the rules of its kind.

    Attributes:
        zero: when the term is zero.
        length: of the step into it, on a path from the inputs; of a product, with one operand that carries data.
        entries: the source of its entries.
        does: how it passes its operand on; empty for a term without operands.
        obstacle: why a term that is not zero keeps a branch open; "{node}" stands for its node.

    Example:
        >>> Kind.SUM == "sum", Kind.SUM.zero.value, Kind("mix").mixes
        (True, 'all operands are', True)
    """

    zero: Zero
    length: int
    entries: Entries
    does: str
    obstacle: str

    MOVE = "move", Zero.OPERAND, Length.NONE, Entries.MOVED, "unchanged: moved, selected, repeated, padded"
    MIX = "mix", Zero.OPERAND, Length.RESAMPLE, Entries.SEVERAL, "in fixed linear combinations of its entries"
    POOL = "pool", Zero.OPERAND, Length.RESAMPLE, Entries.SEVERAL, "as the largest of neighbouring entries"
    SCALE = "scale", Zero.OPERAND, Length.SCALE, Entries.SAME, "multiplied by fixed numbers"
    NORM = "norm", Zero.OPERAND, Length.SCALE, Entries.SEVERAL, "rescaled by its own statistics"
    MAP = "map", Zero.OPERAND, Length.NONLINEAR, Entries.SAME, "through a nonlinear function with f(0) = 0"
    ZERO = "zero", Zero.ALWAYS, Length.NONLINEAR, Entries.OWN, "not at all"
    GATE = (
        "gate", Zero.NEVER, Length.NONLINEAR, Entries.SAME, "through a function that is not 0 at 0",
        "{node} is not zero if its operand is",
    )  # fmt: skip
    PRODUCT = "product", Zero.ANY, Length.SCALE, Entries.SAME, "multiplied; bilinear if both carry data"
    CONTRACT = "contract", Zero.ANY, Length.WEIGHT, Entries.MIXED, "multiplied by a parameter: a weight site"
    SUM = "sum", Zero.ALL, Length.NONE, Entries.SAME, "added to something else"
    CONCAT = "concat", Zero.ALL, Length.RESAMPLE, Entries.MOVED, "side by side with something else"
    RECURRENT = (
        "recurrent", Zero.UNREAD, Length.NONLINEAR, Entries.MIXED, "through a recurrence",
        "{node} is a recurrent layer, which does not map zero to zero",
    )  # fmt: skip
    UNKNOWN = (
        "unknown", Zero.NEVER, Length.NONLINEAR, Entries.MIXED, "in an unknown way",
        "nothing is known of the operator {node}",
    )  # fmt: skip
    INPUT = (
        "input", Zero.GIVEN, Length.NONE, Entries.OWN, "",
        "an input of the model enters the branch after its last parameter",
    )  # fmt: skip
    PARAMETER = "parameter", Zero.GIVEN, Length.NONE, Entries.OWN, ""
    CONSTANT = "constant", Zero.NEVER, Length.NONE, Entries.OWN, "", "{node} is fixed and not zero"

    def __new__(cls, word: str, zero: Zero, length: int, entries: Entries, does: str, obstacle: str = "") -> Kind:
        """Make the member of a row of the table."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.zero, member.length, member.entries = zero, length, entries
        member.does, member.obstacle = does, obstacle
        return member

    __repr__ = str.__repr__

    @cached_property
    def can_be_zero(self) -> bool:
        """Whether some values of the inputs and parameters make the term zero."""
        return self.zero is not Zero.NEVER

    @cached_property
    def multiplies(self) -> bool:
        """Whether one zero operand is enough to make the term zero."""
        return self.zero is Zero.ANY

    @cached_property
    def passes(self) -> bool:
        """Whether the term consists of the values of its operands, without products of them."""
        return self.zero is Zero.OPERAND or self.zero is Zero.ALL

    @cached_property
    def mixes(self) -> bool:
        """Whether an entry of the term depends on several entries of an operand."""
        return self.entries is Entries.SEVERAL or self.entries is Entries.MIXED

    @cached_property
    def keeps_axes(self) -> bool:
        """Whether the axes of the term are those of its operand."""
        return self.entries is Entries.SAME or self.entries is Entries.SEVERAL

    @cached_property
    def is_function(self) -> bool:
        """Whether the term is a nonlinear function of its operand: an activation."""
        return self.keeps_axes and self.length == Length.NONLINEAR

    @cached_property
    def is_proportional(self) -> bool:
        """Whether each entry of the term is one of its only operand's, times a fixed number at most."""
        return self.zero is Zero.OPERAND and not self.mixes and self.length < Length.NONLINEAR

    @cached_property
    def resamples(self) -> bool:
        """Whether the term moves and resamples its only operand at most."""
        return self.zero is Zero.OPERAND and self.length <= Length.RESAMPLE

    def vanishes(self, zeros: Sequence[bool]) -> bool:
        """Return whether a term of this kind is zero, given of each operand whether it is.

        Example:
            >>> Kind.PRODUCT.vanishes([True, False]), Kind.SUM.vanishes([True, False]), Kind.GATE.vanishes([True])
            (True, False, False)
        """
        if self.multiplies:
            return any(zeros)
        return self.zero is Zero.ALWAYS or (self.passes and bool(zeros) and all(zeros))
