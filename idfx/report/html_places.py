"""Places on the audit page: the boxes in the drawing of the structure, and the places of findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx

from idfx.core.findings import Audit, Finding, ParameterState

_STEM = -1  # around the blocks that lie in no branch


@dataclass(frozen=True)
class Places:
    """The places of one audit, by their numbers in its records.

    A box represents one parameter and the parameters that belong to it: each matrix has a box; a module without a
    matrix, such as a normalisation, has one box for all its parameters.
    """

    audit: Audit

    @cached_property
    def parameters(self) -> Mapping[str, int]:
        """The number of each parameter by its name."""
        return {one.name: number for number, one in enumerate(self.audit.parameters)}

    @cached_property
    def blocks(self) -> Mapping[str, int]:
        """The number of each block by its name."""
        return {one.name: number for number, one in enumerate(self.audit.blocks)}

    @cached_property
    def points(self) -> Mapping[str, int]:
        """The number of each point of the forward pass by its name; the first of several."""
        return {one.name: number for number, one in reversed(list(enumerate(self.audit.profile)))}

    @cached_property
    def parents(self) -> tuple[int | None, ...]:
        """The block around each block; None on the main stem, and for blocks that form a cycle."""
        known = [self.blocks.get(one.parent or "", _STEM) for one in self.audit.blocks]
        around: nx.DiGraph[int] = nx.DiGraph((above, number) for number, above in enumerate(known))
        nested = nx.descendants(around, _STEM) if _STEM in around else set()
        return tuple(above if number in nested and above != _STEM else None for number, above in enumerate(known))

    @cached_property
    def home(self) -> tuple[int | None, ...]:
        """The block whose branch contains each parameter; None on the main stem."""
        inner = {name: number for number in self._outer_first for name in self.audit.blocks[number].branch}
        return tuple(self.blocks.get(one.block or "", inner.get(one.name)) for one in self.audit.parameters)

    @cached_property
    def _outer_first(self) -> list[int]:
        above = (_STEM if parent is None else parent for parent in self.parents)
        around: nx.DiGraph[int] = nx.DiGraph((parent, number) for number, parent in enumerate(above))
        depth = nx.single_source_shortest_path_length(around, _STEM) if self.audit.blocks else {}
        return sorted(range(len(self.audit.blocks)), key=depth.__getitem__)

    @cached_property
    def over(self) -> Mapping[int, int]:
        """The block on whose shortcut a parameter stands, the innermost if there are several."""
        found: dict[int, int] = {}
        for block, one in enumerate(self.audit.blocks):  # inner ones come first
            for name in one.shortcut:
                if name in self.parameters and self.home[self.parameters[name]] != block:
                    found.setdefault(self.parameters[name], block)
        return found

    @cached_property
    def box(self) -> tuple[int, ...]:
        """The parameter whose box each parameter shares; itself if it has its own box."""
        modules = [one.name.rpartition(".")[0] for one in self.audit.parameters]
        first: dict[str, int] = {}
        for number, one in enumerate(self.audit.parameters):
            if is_matrix(one):
                first.setdefault(modules[number], number)
        return tuple(
            number if is_matrix(one) else first.setdefault(modules[number], number)
            for number, one in enumerate(self.audit.parameters)
        )

    def tree(self) -> list[Any]:
        """Return the contents of the main stem, in order of execution as far as it is known.

        A number is the box of a parameter; {"block", "branch", "over"} is a block with the contents of its branch and
        the boxes on its shortcut.
        """
        inside: dict[int | None, list[tuple[int, Any]]] = {}
        begins: dict[int, int] = {}
        order = self._order
        shown: list[dict[str, Any]] = [{"block": n, "branch": [], "over": []} for n in range(len(self.audit.blocks))]
        for number in sorted(set(self.box), key=lambda number: (order[number], number)):
            if (block := self.over.get(number)) is not None:
                shown[block]["over"].append(number)
            else:
                inside.setdefault(self.home[number], []).append((order[number], number))
        for block in reversed(self._outer_first):
            items = sorted(inside.get(block, []), key=lambda item: item[0])
            shown[block]["branch"] = [item for _, item in items]
            begins[block] = items[0][0] if items else self._join_order(block)
            inside.setdefault(self.parents[block], []).append((begins[block], shown[block]))
        return [item for _, item in sorted(inside.get(None, []), key=lambda item: item[0])]

    @cached_property
    def _order(self) -> list[int]:
        """The position of each parameter in execution order; one without a known use follows the previous one."""
        seen: dict[str, int] = {}
        for position, point in enumerate(self.audit.profile):
            seen.setdefault(point.parameter, position)
        found: list[int] = []
        for number, one in enumerate(self.audit.parameters):
            before = found[-1] if found else 0
            found.append(seen.get(one.name, before) if seen else number)
        return found

    def _join_order(self, block: int) -> int:
        return self.points.get(self.audit.blocks[block].name, len(self.audit.profile) + len(self.audit.parameters))

    @cached_property
    def shown_at(self) -> tuple[tuple[str, int] | None, ...]:
        """Where the drawing shows each point: ("p", parameter) for a box, ("b", block) for a join, or None.

        A function is shown at the box of the last weight before it in the same block.
        """
        last: dict[str | None, int] = {}
        found: list[tuple[str, int] | None] = []
        for point in self.audit.profile:
            if (number := self.parameters.get(point.parameter)) is not None and point.kind == "weight":
                last[point.block] = self.box[number]
            if point.kind == "join":
                join = self.blocks.get(point.name)
                found.append(None if join is None else ("b", join))
            else:
                shown = last.get(point.block)
                found.append(None if shown is None else ("p", shown))
        return tuple(found)

    def of(self, finding: Finding) -> str:
        """Return the row of the page for a finding: p, b or s with a number, or "".

        Example:
            >>> one = Finding("error", "dead", "w", "", 1, 0, "", "")
            >>> Places(Audit("m", (one,), {}, (), parameters=(ParameterState("w", (2,), "", "", None, 0.0),))).of(one)
            'p0'
        """
        if (number := self.parameters.get(finding.parameter)) is not None:
            return f"p{number}"
        for kind, known in (("b", self.blocks), ("s", self.points)):
            if finding.site in known:
                return f"{kind}{known[finding.site]}"
        return ""


def is_matrix(one: ParameterState) -> bool:
    """Return whether a parameter has two axes or more."""
    return len(one.shape) > 1
