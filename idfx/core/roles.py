"""The possible purposes of a parameter: the names of the roles, each with its meaning and its properties.

docs/structure.md shows the same table. Schemes and metrics use the properties of a role's name, or compare it with
the plain word.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from functools import cached_property


class Acts(Enum):
    """How a parameter acts on the data."""

    WEIGHT = "is a weight, read as matrices"
    FORM = "is a weight of another form"
    SHIFT = "is added to the output of a weight, a normalisation or a branch"
    FACTOR = "multiplies"
    VALUE = "is a value of its own among the data"
    TABLE = "is looked up"
    NONE = "does nothing"
    OTHER = "has no rule"


class RoleName(StrEnum):
    """The name of a role. A member is the plain word, with the meaning of the role.

    Attributes:
        acts: how the parameter acts on the data.
        meaning: what is true of the parameter.

    Example:
        >>> RoleName.INNER == "inner", RoleName("norm shift").acts.name, RoleName.HEAD.is_weight
        (True, 'SHIFT', True)
    """

    acts: Acts
    meaning: str

    INPUT_STEM = "input stem", Acts.WEIGHT, "no weight comes before it"
    MAIN_STEM = "main stem", Acts.WEIGHT, "it is in no branch and has none of the other roles"
    TRANSITION = "transition", Acts.WEIGHT, "it is in no branch, but between residual joins"
    PROJECTION_SHORTCUT = "projection shortcut", Acts.WEIGHT, "it is on the shortcut of a join"
    INNER = "inner", Acts.WEIGHT, "it is between fork and join"
    END = "end", Acts.WEIGHT, "the branch of a join is zero if it is (or if some of its rows are)"
    HEAD = "head", Acts.WEIGHT, "no weight comes after it"
    END_SCALE = "end scale", Acts.FACTOR, "it multiplies a branch and ends it"
    BRANCH_SCALE = "branch scale", Acts.FACTOR, "it multiplies a branch after its end"
    BRANCH_SHIFT = "branch shift", Acts.SHIFT, "it is added in a branch after its end"
    NORM_SCALE = "norm scale", Acts.FACTOR, "it multiplies a normalised value"
    NORM_SHIFT = "norm shift", Acts.SHIFT, "it is added to a normalised value"
    BIAS = "bias", Acts.SHIFT, "it is added to the output of a weight"
    GAIN = "gain", Acts.FACTOR, "it is a factor inside a weight expression"
    SCALE = "scale", Acts.FACTOR, "it multiplies data"
    OFFSET = "offset", Acts.VALUE, "it is added to data"
    TOKEN = "token", Acts.VALUE, "it is concatenated with the data"
    POSITION = "position", Acts.VALUE, "its rows are looked up by fixed indices, or it is added and varies by position"
    ATTENTION_BIAS = "attention bias", Acts.VALUE, "it is added to scores"
    EMBEDDING = "embedding", Acts.TABLE, "its rows are looked up by an index"
    FIXED = "fixed", Acts.OTHER, "a layer turns it into a value that depends on no input"
    OTHER = "other", Acts.OTHER, "no rule covers its use"
    RECURRENT = "recurrent", Acts.FORM, "it belongs to a recurrent layer; its traits are its place there and its gates"
    BILINEAR_FORM = "bilinear form", Acts.FORM, "it multiplies two values by each other, with one matrix per output"
    UNRESOLVED = "unresolved", Acts.FORM, "it is a weight whose matrix could not be read"
    UNUSED = "unused", Acts.NONE, "the example does not use it"

    def __new__(cls, word: str, acts: Acts, meaning: str) -> RoleName:
        """Make the member of a row of the table."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.acts, member.meaning = acts, meaning
        return member

    __repr__ = str.__repr__

    @cached_property
    def is_weight(self) -> bool:
        """Whether it is filled as a matrix."""
        return self.acts is Acts.WEIGHT

    @cached_property
    def is_shift(self) -> bool:
        """Whether it is added to another value, so that 0 leaves that value unchanged."""
        return self.acts is Acts.SHIFT

    @cached_property
    def is_free(self) -> bool:
        """Whether its size is free: a value, a table, or a factor that no normalisation determines."""
        return self.acts in (Acts.VALUE, Acts.TABLE, Acts.FACTOR) and self is not RoleName.NORM_SCALE

    @cached_property
    def multiplies(self) -> bool:
        """Whether zeros in it can block a gradient."""
        return self.acts not in (Acts.SHIFT, Acts.VALUE, Acts.NONE)

    @cached_property
    def ends_branch(self) -> bool:
        """Whether zero makes the branch of a residual join zero."""
        return self in (RoleName.END, RoleName.END_SCALE)

    @cached_property
    def is_last(self) -> bool:
        """Whether it is the last weight of a branch or of the model, which may start at zero."""
        return self in (RoleName.END, RoleName.HEAD)

    @cached_property
    def in_branch(self) -> bool:
        """Whether it is a weight in the branch of a residual join."""
        return self in (RoleName.INNER, RoleName.END)

    @cached_property
    def is_stem(self) -> bool:
        """Whether it is a weight that all of the data passes through, neither in a residual branch nor a head."""
        return self in (RoleName.INPUT_STEM, RoleName.MAIN_STEM, RoleName.TRANSITION)

    @cached_property
    def is_given(self) -> bool:
        """Whether a user may give it to a parameter; roles of weights of another form follow only from the graph."""
        return self.acts not in (Acts.FORM, Acts.NONE)


WEIGHTS = tuple(name for name in RoleName if name.is_weight)
GIVEN = tuple(name for name in RoleName if name.is_given)
