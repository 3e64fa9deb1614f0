"""Capture → structure: the residual joins, the weight uses and the role of every parameter, as records."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import networkx as nx

from idfx.analysis.arguments import argument
from idfx.analysis.blocks import Finder
from idfx.analysis.dataflow import Dataflow, read
from idfx.analysis.graph import ROOT, reached
from idfx.analysis.paths import Paths
from idfx.analysis.record import Analysis
from idfx.analysis.roles import assign_roles
from idfx.analysis.rows import Exclusive, Ranges
from idfx.analysis.sides import Blocks
from idfx.analysis.sites import ParameterUses, find_sites
from idfx.analysis.uses import Use
from idfx.analysis.zero_sets import ZeroedParameter, flatten
from idfx.core.records import Capture, End, Join, Structure, Sum, first_names, not_writable_reason
from idfx.ops.kinds import Length
from idfx.ops.semantics import operator_name


def _kind(length: int) -> str:
    for unit, kind in ((Length.WEIGHT, "projection"), (Length.SCALE, "scaled"), (Length.RESAMPLE, "resampled")):
        if length >= unit:
            return kind
    return "identity"


def _names(flow: Dataflow, positions: list[int]) -> dict[int, str]:
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


class _Closing:
    """Of each parameter that ends branches, the terms at which it does, what is added there, and the joins."""

    def __init__(self, ends: Mapping[int, list[ZeroedParameter]]) -> None:
        self.acting: dict[str, set[int]] = {}
        self.joins: dict[str, set[int]] = {}
        self.added: dict[str, set[float]] = {}
        for position, leaves in ends.items():
            for leaf in leaves:
                self.acting.setdefault(leaf.parameter, set()).add(leaf.term)
                self.joins.setdefault(leaf.parameter, set()).add(position)
                self.added.setdefault(leaf.parameter, set()).add(leaf.added)


class _Assembly:
    """Turns what was found into records."""

    def __init__(self, flow: Dataflow, paths: Paths, blocks: Blocks, sites: ParameterUses) -> None:
        self.flow, self.paths, self.blocks, self.sites = flow, paths, blocks, sites
        self.names = _names(flow, sorted((*blocks.sides, *blocks.refused)))
        self._first_names = first_names(flow.capture.info)
        self._branches = self._branch_sites()
        self._shortcuts: dict[int, list[str]] = {}
        for term, join in blocks.shortcut.items():
            names = (site.parameter for site in sites.at.get(term, ()))
            self._shortcuts.setdefault(join, []).extend(names)

    def joins(self) -> tuple[Join, ...]:
        """The joins; one that shares its end with a use that ends no branch cannot be closed.

        Joins that a parameter ends together are closed together: what refuses one of them may refuse the others.
        """
        found = {position: self._join(position) for position in sorted(self.blocks.sides)}
        ends = {position: self.blocks.cuts[position].leaves() for position, join in found.items() if join.zeroable}
        while True:
            closing = _Closing(ends)
            refused = {
                position: reason
                for position, leaves in ends.items()
                if (reason := next((why for leaf in leaves if (why := self._refused_end(leaf, position, closing))), ""))
            }
            if not refused:
                return tuple(found.values())
            for position, reason in refused.items():
                found[position] = replace(found[position], zeroable=False, reason=reason)
                del ends[position]

    def carried(self, joins: tuple[Join, ...]) -> tuple[Join, ...]:
        """Mark each join that the inputs reach with every branch closed."""
        positions = dict(zip(sorted(self.blocks.sides), joins, strict=True))
        closed = {
            leaf.term
            for position, join in positions.items()
            if join.zeroable
            for leaf in flatten(self.blocks.cuts[position].ends)
        }
        opened = nx.subgraph_view(self.flow.data_graph, filter_node=lambda term: term not in closed)
        carried = set(reached(opened, (ROOT,)))
        return tuple(j if position in carried else replace(j, carries=False) for position, j in positions.items())

    def _refused_end(self, leaf: ZeroedParameter, join: int, closing: _Closing) -> str:
        """The reason why a parameter that ends the branch of a join cannot be zero, or ""."""
        capture = self.flow.capture
        name = self._first_names.get(leaf.parameter, leaf.parameter)
        info = capture.info[name]
        if self.blocks.rows[join][leaf] is None and self._escapes(leaf.term, closing.joins[leaf.parameter]):
            return f"{leaf.parameter} (at {self.flow.terms[leaf.term].node}) also reaches the outputs by another path"
        if not_writable_reason(info):
            return f"its end {name} cannot be written: {not_writable_reason(info)}"
        if len(closing.added[leaf.parameter]) > 1:
            return f"its end {name} is used with different numbers added, and would need several values"
        for alias in (name, *info.aliases):
            for use in self.sites.uses.get(alias, ()):
                elsewhere = use.term not in closing.acting[leaf.parameter] and not self._apart(leaf, use)
                if elsewhere and self._escapes(use.term, closing.joins[leaf.parameter]):
                    where = self.flow.module(use.term) or capture.model
                    return f"its end {name} is also used in {where} (as {use.how}), where it ends no branch"
        return ""

    def _escapes(self, term: int, joins: set[int]) -> bool:
        """Whether a term reaches an output otherwise than through the branches of some joins.

        If it does not, and they are closed, it changes nothing more when it is zero.
        Written by hand: an edge is crossed or not according to the operand of the join that it leads to.
        """
        stack, seen = [term], {term}
        while stack:
            position = stack.pop()
            if position in self.flow.outputs:
                return True
            for user in self.flow.users.get(position, ()):
                through = user in joins and self.blocks.sides[user].operand != position
                if not through and user not in seen:
                    seen.add(user)
                    stack.append(user)
        return False

    def _apart(self, leaf: ZeroedParameter, use: Use) -> bool:
        """Whether a use takes other rows of a weight than the end does."""
        own = self.sites.rows(leaf.parameter, leaf.term)
        return own is not None and use.rows is not None and (own[1] <= use.rows[0] or use.rows[1] <= own[0])

    def _end(self, leaf: ZeroedParameter, found: Ranges) -> End:
        return End(leaf.parameter, self._rows(leaf, found), leaf.added)

    def _rows(self, leaf: ZeroedParameter, found: Ranges) -> Ranges | None:
        """The rows of the parameter, given those of the part of it that is used; None for all."""
        own = self.sites.rows(leaf.parameter, leaf.term)
        if own is None:
            return found or None
        return tuple((own[0] + start, own[0] + stop) for start, stop in found or ((0, own[1] - own[0]),))

    def sums(self) -> tuple[Sum, ...]:
        return tuple(self._sum(position, *why) for position, why in sorted(self.blocks.refused.items()))

    def _branch_sites(self) -> dict[int, list[str]]:
        """Parameters of the weight sites in each branch, those of inner branches included."""
        own: dict[int, list[str]] = {position: [] for position in self.blocks.sides}
        for position in sorted(self.sites.at):
            for join in self.blocks.around(position):
                own[join].extend(site.parameter for site in self.sites.at[position])
        return own

    def _join(self, position: int) -> Join:
        flow, side, cut = self.flow, self.blocks.sides[position], self.blocks.cuts[position]
        leaves = [] if cut.obstacle else flatten(cut.ends)
        rows = self.blocks.rows[position]
        parent = self.blocks.parent.get(position)
        given = argument(flow, position, side.operand)
        return Join(
            name=self.names[position],
            kind=_kind(side.length),
            module=flow.module(position),
            fork=self._place(side.fork),
            shortcut=tuple(dict.fromkeys(self._shortcuts.get(position, ()))),
            branch=tuple(dict.fromkeys(self._branches[position])),
            ends=tuple(dict.fromkeys(self._end(leaf, rows[leaf] or ()) for leaf in leaves)),
            scales=tuple(dict.fromkeys(leaf.parameter for leaf in flatten(cut.scales))) if leaves else (),
            zeroed_biases=tuple(dict.fromkeys(leaf.parameter for leaf in flatten(cut.zeroed_biases))) if leaves else (),
            zeroable=bool(leaves),
            reason=cut.obstacle,
            step=flow.step(position),
            operand=given.operand,
            end_steps=tuple(dict.fromkeys(flow.step(leaf.term) for leaf in leaves)),
            gain=cut.gain if leaves else None,
            parent=None if parent is None else self.names[parent],
            part=given.part,
            zeroed=given.zeroed,
            fork_node=flow.terms[side.fork].node,
        )

    def _place(self, position: int) -> str:
        """Name a value: the join that makes it, or otherwise its operator and module."""
        if position in self.names:
            return self.names[position]
        node = self.flow.terms[position].node
        if self.flow.nodes[node].op != "call_function":
            return node
        operator = operator_name(self.flow.nodes[node].target).rpartition(".")[2].rstrip("_")
        module = self.flow.module(position)
        return f"{module} ({operator})" if module else operator

    def _sum(self, position: int, kind: str, reason: str) -> Sum:
        fork = self.paths.dominator.get(position, ROOT)
        return Sum(
            name=self.names[position],
            kind=kind,
            module=self.flow.module(position),
            fork=self._place(fork) if fork != ROOT else "",
            reason=reason,
            step=self.flow.step(position),
        )


def build_structure(capture: Capture) -> Structure:
    """Return the structure of a captured model: its joins, its weight uses and the role of every parameter.

    Args:
        capture: the graph of one forward pass.

    Raises:
        StructureError: a parameter has contradictory roles.
    """
    with _collector_paused():
        flow = read(capture)
        paths = Paths(flow)
        exclusive = Exclusive(flow, paths)
        blocks = Finder(flow, paths, exclusive).find()
        return _structure(Analysis(flow, paths, exclusive, find_sites(flow), blocks))


def end_at_scales(structure: Structure) -> Structure:
    """Return a new structure whose branches end at scales near the join, if there are any, rather than at weights.

    Args:
        structure: of the model; role overrides are dropped.
    """
    with _collector_paused():
        found = analysis_of(structure)
        blocks = Finder(found.flow, found.paths, found.exclusive, prefer_scale_ends=True).find()
        return _structure(replace(found, blocks=blocks))


def analysis_of(structure: Structure) -> Analysis:
    """Return the analysis of a structure; it is computed now if the structure does not have one."""
    found = structure.analysis or build_structure(structure.capture).analysis
    assert isinstance(found, Analysis)
    return found


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector: many small, long-lived objects are created, and scanning them would find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _structure(found: Analysis) -> Structure:
    flow, blocks, sites = found.flow, found.blocks, found.uses
    assembly = _Assembly(flow, found.paths, blocks, sites)
    joins = assembly.carried(assembly.joins())
    by_term = dict(zip(sorted(blocks.sides), joins, strict=True))
    roles = assign_roles(flow, found.paths, sites, blocks.stem, blocks.shortcut, assembly.names, by_term)
    return Structure(
        model=flow.capture.model,
        parameters=flow.capture.info,
        sites=tuple(site for position in sorted(sites.at) for site in sites.at[position]),
        joins=joins,
        sums=assembly.sums(),
        roles=roles,
        unknown=flow.unknown,
        capture=flow.capture,
        analysis=found,
    )
