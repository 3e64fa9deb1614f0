"""How a parameter enters the data: the records that the reading of sites, of recurrent layers and of roles share."""

from __future__ import annotations

from dataclasses import dataclass, field

from idfx.core.records import Layout


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

    `how` is "weight", "gain" (a factor inside a weight expression), "table", "recurrent", "bias", "norm scale",
    "norm shift", "scale", "position" (rows looked up by fixed indices), "offset" (added), "token" (put beside the
    data), "fixed" (a layer within an expression that no input enters) or "other". `rows` is the range of
    the outputs of a weight that it takes, None for all; `slices` the axis along which each slice of it is divided by
    its own norm; `axes` is the number of axes along which what meets the data has more than one entry; `places` are
    those that it has in a recurrent layer, none where they are not read.
    """

    parameter: str
    how: str
    term: int
    layout: Layout | None = None
    activation: str = ""
    rows: tuple[int, int] | None = None
    slices: int | None = None
    axes: int = 0
    places: tuple[RecurrentSlot, ...] = ()
