"""Ratios that were measured pair by pair in one run, and tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """A ratio in every round of a run; `detail` is further information as text."""

    section: str
    name: str
    values: tuple[float, ...]
    detail: str = ""

    @property
    def median(self) -> float:
        """The median over rounds."""
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        """Return the ratio as plain JSON values.

        Example:
            >>> Ratio("fill", "idfx / zero_", (1.0, 3.0, 2.0)).as_json()["median"]
            2.0
        """
        rounded = [round(value, 4) for value in self.values]
        ends = {"median": round(self.median, 4), "least": min(rounded), "most": max(rounded)}
        return {"section": self.section, "name": self.name, **ends, "rounds": len(rounded), "detail": self.detail}


def markdown(ratios: Sequence[Ratio], machine: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Return a page with a table of all ratios, and the machine they were measured on."""
    told = ", ".join(f"{key} {value}" for key, value in {**machine, **versions}.items())
    lines = ["# Speed of idfx", "", f"Machine: {told}.", ""]
    lines += [
        "Ratios of pairs that were measured alternately in one run: median (minimum to maximum). Processes and stages "
        "use torch's default number of threads, everything else uses one.",
        "",
    ]
    lines += ["| section | what | ratio | rounds | |", "|---|---|---|---|---|"]
    for ratio in ratios:
        span = f"{ratio.median:.2f} ({min(ratio.values):.2f} to {max(ratio.values):.2f})"
        lines.append(f"| {ratio.section} | {ratio.name} | {span} | {len(ratio.values)} | {ratio.detail} |")
    return "\n".join(lines) + "\n"
