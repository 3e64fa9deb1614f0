"""How a parameter enters the data: the records shared by the analysis of sites, recurrent layers and roles."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from idfx.core.records import Layout
from idfx.core.roles import RoleName


class How(StrEnum):
    """How a parameter acts where it enters the data, in the order in which one of several uses decides the role.

    Attributes:
        role: of a parameter that is used so; of a weight, its surroundings decide.
        evidence: for this role.
    """

    role: RoleName
    evidence: str

    TABLE = "table", RoleName.EMBEDDING, "its rows are looked up by an index"
    RECURRENT = "recurrent", RoleName.RECURRENT, "it belongs to a recurrent layer"
    NORM_SCALE = "norm scale", RoleName.NORM_SCALE, "it multiplies the output of a normalisation"
    NORM_SHIFT = "norm shift", RoleName.NORM_SHIFT, "it is added to the output of a normalisation"
    BIAS = "bias", RoleName.BIAS, "it is added to the output of a weight"
    GAIN = "gain", RoleName.GAIN, "it multiplies a weight before its use"
    SCALE = "scale", RoleName.SCALE, "it multiplies data elementwise"
    POSITION = "position", RoleName.POSITION, "its rows are looked up by fixed indices"
    OFFSET = "offset", RoleName.OFFSET, "it is added to data"
    TOKEN = "token", RoleName.TOKEN, "it is concatenated with the data"
    OTHER = "other", RoleName.OTHER, "idfx has no rule for how it acts on the data"
    FIXED = "fixed", RoleName.FIXED, "it makes a value that does not depend on the input, with its own weights"
    WEIGHT = "weight", RoleName.MAIN_STEM, "it is in no residual branch"

    def __new__(cls, word: str, role: RoleName, evidence: str) -> How:
        """Make the member of a row of the table."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.role, member.evidence = role, evidence
        return member

    __repr__ = str.__repr__


@dataclass(frozen=True, slots=True)
class RecurrentSlot:
    """What a parameter is in a recurrent layer, and the gates that its rows belong to, equally many each.

    `part` is "input weight", "hidden weight", "input bias", "hidden bias", "projection", "initial state" or "input".
    """

    part: str
    gates: tuple[str, ...] = ()
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Use:
    """One way in which a parameter enters the data: `how` it acts, and at which term.

    `rows` is the range of the outputs of a weight that it takes, None for all; `slices` the axis along which each slice
    of it is divided by its own norm; `axes` is the number of axes along which what meets the data has more than one
    entry; `places` are those that it has in a recurrent layer, none where they are not read; `added` is the number that
    is added to a scale before it multiplies.
    """

    parameter: str
    how: How
    term: int
    layout: Layout | None = None
    activation: str = ""
    rows: tuple[int, int] | None = None
    slices: int | None = None
    axes: int = 0
    places: tuple[RecurrentSlot, ...] = ()
    added: float = 0.0
