"""Data flow → residual joins: their forks, shortcuts, branches and ends, by definition.

A sum of two tensors that carry data is a residual join if one operand, the shortcut, comes from a fork by a
linear path, and the other, the branch, depends on the same fork by a less direct one. The branch ends at the
parameters that silence it when they are zero. docs/structure.md tells the definitions at length.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from idfx.cuts import Cut, Cuts, Leaf, flatten
from idfx.flow import Flow, operator_name, read
from idfx.paths import NONLINEAR, RESAMPLE, ROOT, SCALE, WEIGHT, Paths
from idfx.records import Capture, End, Join, Structure
from idfx.roles import assign_roles
from idfx.rows import Exclusive
from idfx.sites import Sites, find_sites

_MIXERS = frozenset({"contract", "mix", "pool", "norm", "recurrent", "unknown"})


@dataclass(frozen=True)
class Side:
    """One operand of a sum taken for its shortcut, with the terms between fork and join on the other side."""

    operand: int
    others: tuple[int, ...]
    fork: int
    length: int
    region: tuple[int, ...]


@dataclass
class Blocks:
    """The residual joins found so far, by term; inner ones are found before the outer."""

    sides: dict[int, Side] = field(default_factory=dict)
    cuts: dict[int, Cut] = field(default_factory=dict)
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    parent: dict[int, int] = field(default_factory=dict)
    stem: dict[int, int] = field(default_factory=dict)
    shortcut: dict[int, int] = field(default_factory=dict)


class _Finder:
    def __init__(self, flow: Flow, paths: Paths) -> None:
        self.flow, self.paths, self.blocks = flow, paths, Blocks()
        self.terms = flow.terms
        self.exclusive = Exclusive(flow, paths)
        self._inner: dict[int, tuple[Cut, int]] = {}
        self._by_weight = Cuts(flow, self._inner)
        self._by_scale = Cuts(flow, self._inner, prefer_scales=True)

    def find(self) -> Blocks:
        for position, term in enumerate(self.terms):
            if term.kind == "sum" and len(self.flow.addends(position)) >= 2:
                self._look(position)
        return self.blocks

    def _look(self, position: int) -> None:
        addends = self.flow.addends(position)
        sides = [side for addend in addends if (side := self._side(position, addend)) is not None]
        sides.sort(key=lambda side: side.length)
        refusal = self._refusal(position, sides)
        if refusal is None:
            self._join(position, sides[0])
        else:
            self.blocks.refused[position] = refusal

    def _refusal(self, position: int, sides: list[Side]) -> tuple[str, str] | None:
        """Why a sum is no residual join: what it is instead, and the evidence."""
        if not sides:
            return "fusion", "no operand comes by a linear path from a fork that the other depends on"
        if len(sides) > 1 and sides[0].length == sides[1].length:
            return "parallel", "its operands come from the fork by equally direct paths"
        if position not in self.paths.signal:
            return "gate", "it steers another value and carries none itself"
        side = sides[0]
        if not any(self._mixes(term) for term in side.region):
            return "elementwise", "nothing between fork and join mixes entries"
        if side.length >= WEIGHT:
            if len(sides) > 1 and side.length // WEIGHT == sides[1].length // WEIGHT:
                return "parallel", "its operands cross as many weights and nonlinear operators"
            if any(self._is_stream(other) for other in side.others):
                return "fusion", "beside a projection stands a stream with residual joins of its own"
            if any(self.terms[term].tag == "upsample" for term in side.region):
                return "fusion", "the branch returns from another resolution beside a projection"
        weighted = any(self._weighted(term) for term in side.region)
        if self._negated(side.operand) or (not weighted and any(map(self._negated, side.others))):
            return "difference", "one operand is subtracted"
        return None

    def _is_stream(self, position: int) -> bool:
        """Whether a term is the output of a residual join, moved and resampled at most."""
        while self.terms[position].kind in ("move", "mix", "pool") and len(self.flow.sources(position)) == 1:
            position = self.flow.sources(position)[0]
        return position in self.blocks.sides

    def _weighted(self, position: int) -> bool:
        """Whether a parameter enters at a term."""
        operands = (self.terms[operand] for operand in self.terms[position].operands)
        return any(operand.parametric and not operand.data for operand in operands)

    def _negated(self, position: int) -> bool:
        return self.terms[position].kind == "scale" and (self.terms[position].factor or 0.0) < 0

    def _mixes(self, position: int) -> bool:
        term = self.terms[position]
        if term.kind == "product":
            return term.tag in ("", "attention") and self.paths.step(term.operands[-1], position) == NONLINEAR
        return term.kind in _MIXERS or term.tag == "reduce"

    def _side(self, position: int, operand: int) -> Side | None:
        """Take one operand for the shortcut: its fork is the nearest term on its linear path that the rest needs.

        Going back from the other operands in order of execution, only terms behind the fork are visited.
        """
        others = tuple(other for other in self.flow.addends(position) if other != operand)
        for skip in (True, False):  # first past the inner branches, which costs nothing, then through them
            region: list[int] = []
            heap, seen, fork = [-other for other in others], set(others), operand
            while heap:
                nearest = -heap[0]
                while fork > nearest:
                    fork = self.paths.dominator.get(fork, ROOT)
                length = self.paths.length[operand] - self.paths.length[fork]
                if fork == ROOT or length >= NONLINEAR:
                    break
                if fork == nearest:
                    return Side(operand, others, fork, length, tuple(reversed(region)))
                heapq.heappop(heap)
                region.append(nearest)
                for source in self._behind(nearest, skip):
                    if source not in seen:
                        seen.add(source)
                        heapq.heappush(heap, -source)
            if fork == ROOT or not any(term in self.blocks.sides for term in region):
                break
        return None

    def _behind(self, position: int, skip: bool) -> tuple[int, ...]:
        side = self.blocks.sides.get(position)
        return (side.operand,) if side is not None and skip else self.flow.sources(position)

    def _join(self, position: int, side: Side) -> None:
        blocks = self.blocks
        cut = self._by_weight.of(side.region, side.others)
        if cut.obstacle or not self._exclusive(cut, position):
            other = self._by_scale.of(side.region, side.others)
            if not other.obstacle and self._exclusive(other, position):
                cut = other
        blocks.sides[position], blocks.cuts[position] = side, cut
        self._inner[position] = (cut, side.operand)
        for term in side.region:
            blocks.stem.setdefault(term, position)
            if term in blocks.sides and term != position:
                blocks.parent.setdefault(term, position)
        for term in self._between(side.fork, side.operand):
            blocks.shortcut.setdefault(term, position)

    def _exclusive(self, cut: Cut, position: int) -> bool:
        return all(self.exclusive.rows(leaf.term, position) is not None for leaf in flatten(cut.ends))

    def _between(self, fork: int, operand: int) -> Iterator[int]:
        """The terms on the way from the fork to the shortcut operand, inner branches left out."""
        stack, seen = [operand], {fork}
        while stack:
            position = stack.pop()
            if position not in seen and position > fork:
                seen.add(position)
                yield position
                stack.extend(self._behind(position, True))


def _kind(length: int) -> str:
    for unit, kind in ((WEIGHT, "projection"), (SCALE, "scaled"), (RESAMPLE, "resampled")):
        if length >= unit:
            return kind
    return "identity"


def _names(flow: Flow, positions: list[int]) -> dict[int, str]:
    """Name each sum after its module, numbered where a module has several."""
    modules = {position: flow.module(position) or flow.capture.model for position in positions}
    several = {module for module, count in Counter(modules.values()).items() if count > 1}
    numbers: Counter[str] = Counter()
    names = {}
    for position in positions:
        module = modules[position]
        numbers[module] += 1
        names[position] = f"{module}#{numbers[module]}" if module in several else module
    return names


class _Assembly:
    """Turns what was found into records."""

    def __init__(self, flow: Flow, paths: Paths, blocks: Blocks, sites: Sites, exclusive: Exclusive) -> None:
        self.flow, self.paths, self.blocks, self.sites, self.exclusive = flow, paths, blocks, sites, exclusive
        self.names = _names(flow, sorted((*blocks.sides, *blocks.refused)))
        self._canonical = {
            alias: info.name for info in flow.capture.info.values() for alias in (info.name, *info.aliases)
        }
        self._branches = self._branch_sites()
        self._shortcuts: dict[int, list[str]] = {}
        for term, join in blocks.shortcut.items():
            names = (site.parameter for site in sites.at.get(term, ()))
            self._shortcuts.setdefault(join, []).extend(names)

    def joins(self) -> tuple[Join, ...]:
        """The joins; one that shares its end with something that is no end cannot be silenced."""
        found = {position: self._join(position) for position in sorted(self.blocks.sides)}
        ends = {position: flatten(self.blocks.cuts[position].ends) for position, join in found.items() if join.zeroable}
        while True:
            acting: dict[str, set[int]] = {}
            for leaf in (leaf for leaves in ends.values() for leaf in leaves):
                acting.setdefault(leaf.parameter, set()).add(leaf.term)
            refused = {
                position: reason
                for position, leaves in ends.items()
                if (reason := next((why for leaf in leaves if (why := self._refused_end(leaf, acting))), ""))
            }
            if not refused:
                return tuple(found.values())
            for position, reason in refused.items():
                found[position] = replace(found[position], exclusive=False, zeroable=False, reason=reason)
                del ends[position]

    def carried(self, joins: tuple[Join, ...]) -> tuple[Join, ...]:
        """Say of each join whether the inputs reach it with every branch closed."""
        positions = dict(zip(sorted(self.blocks.sides), joins, strict=True))
        closed = {
            leaf.term
            for position, join in positions.items()
            if join.zeroable
            for leaf in flatten(self.blocks.cuts[position].ends)
        }
        reached: list[bool] = []
        for position, term in enumerate(self.flow.terms):
            through = position not in closed and any(reached[source] for source in self.flow.sources(position))
            reached.append(term.kind == "input" or through)
        return tuple(replace(join, carries=reached[position]) for position, join in positions.items())

    def _refused_end(self, leaf: Leaf, acting: Mapping[str, set[int]]) -> str:
        """Why a parameter cannot be zeroed although it ends a branch, if so."""
        capture = self.flow.capture
        name = self._canonical.get(leaf.parameter, leaf.parameter)
        info = capture.info[name]
        if not info.requires_grad:
            return f"its end {name} is frozen"
        for alias in (name, *info.aliases):
            for use in self.sites.uses.get(alias, ()):
                if use.term not in acting[leaf.parameter]:
                    where = self.flow.module(use.term) or capture.model
                    return f"its end {name} is also used in {where}, as a {use.how} that ends no branch"
        return ""

    def sums(self) -> tuple[Join, ...]:
        return tuple(self._sum(position, *why) for position, why in sorted(self.blocks.refused.items()))

    def _branch_sites(self) -> dict[int, list[str]]:
        """Parameters of the weight sites in each branch, those of inner branches included."""
        own: dict[int, list[str]] = {position: [] for position in self.blocks.sides}
        for position in sorted(self.sites.at):
            join = self.blocks.stem.get(position)
            while join is not None:
                own[join].extend(site.parameter for site in self.sites.at[position])
                join = self.blocks.parent.get(join)
        return own

    def _argument(self, position: int, operand: int) -> int:
        for index, argument in enumerate(self.flow.nodes[self.flow.terms[position].node].args):
            if self.flow.positions.get(getattr(argument, "name", "")) == operand:
                return index
        return -1

    def _join(self, position: int) -> Join:
        flow, side, cut = self.flow, self.blocks.sides[position], self.blocks.cuts[position]
        leaves = [] if cut.obstacle else flatten(cut.ends)
        rows = {leaf: self.exclusive.rows(leaf.term, position) for leaf in leaves}
        shared = [leaf for leaf in leaves if rows[leaf] is None]
        reason = cut.obstacle
        if shared:
            node = flow.terms[shared[0].term].node
            reason = f"{shared[0].parameter} (at {node}) also reaches the outputs by another way"
        parent = self.blocks.parent.get(position)
        return Join(
            name=self.names[position],
            kind=_kind(side.length),
            module=flow.module(position),
            fork=self._place(side.fork),
            shortcut=tuple(dict.fromkeys(self._shortcuts.get(position, ()))),
            branch=tuple(dict.fromkeys(self._branches[position])),
            ends=tuple(dict.fromkeys(End(leaf.parameter, rows[leaf] or None) for leaf in leaves)),
            scales=tuple(dict.fromkeys(leaf.parameter for leaf in flatten(cut.scales))) if leaves else (),
            silenced=tuple(dict.fromkeys(leaf.parameter for leaf in flatten(cut.silenced))) if leaves else (),
            exclusive=bool(leaves) and not shared,
            zeroable=bool(leaves) and not shared,
            reason=reason,
            step=flow.step(position),
            operand=self._argument(position, side.operand),
            parent=None if parent is None else self.names[parent],
        )

    def _place(self, position: int) -> str:
        """Name a value: the join that makes it, or else its operator and module."""
        if position in self.names:
            return self.names[position]
        node = self.flow.terms[position].node
        if self.flow.nodes[node].op != "call_function":
            return node
        operator = operator_name(self.flow.nodes[node].target).rpartition(".")[2].rstrip("_")
        module = self.flow.module(position)
        return f"{module} ({operator})" if module else operator

    def _sum(self, position: int, kind: str, reason: str) -> Join:
        flow = self.flow
        fork = self.paths.dominator.get(position, ROOT)
        return Join(
            name=self.names[position],
            kind=kind,
            module=flow.module(position),
            fork=self._place(fork) if fork != ROOT else "",
            shortcut=(),
            branch=(),
            ends=(),
            scales=(),
            silenced=(),
            exclusive=False,
            zeroable=False,
            reason=reason,
            step=flow.step(position),
            operand=-1,
        )


def analyse(capture: Capture) -> Structure:
    """Return the structure of a captured model: its joins, its weight sites and the role of every parameter.

    Args:
        capture: the graph of one forward pass.

    Raises:
        StructureError: one parameter is asked to be two things.
    """
    flow = read(capture)
    paths = Paths(flow)
    finder = _Finder(flow, paths)
    blocks = finder.find()
    sites = find_sites(flow)
    assembly = _Assembly(flow, paths, blocks, sites, finder.exclusive)
    joins = assembly.carried(assembly.joins())
    roles = assign_roles(flow, paths, sites, blocks.stem, blocks.shortcut, assembly.names, joins)
    return Structure(
        model=capture.model,
        parameters=capture.info,
        sites=tuple(site for position in sorted(sites.at) for site in sites.at[position]),
        joins=joins,
        sums=assembly.sums(),
        roles=roles,
        unknown=flow.unknown,
        capture=capture,
    )
