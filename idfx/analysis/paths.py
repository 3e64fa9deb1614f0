"""Paths through the data flow: dominators, the most direct path, what carries the signal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import networkx as nx

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.graph import ROOT, SINK, reached


class Paths:
    """Dominators and best paths of one data flow, each computed once.

    `dominator` maps a data term to the nearest term that every path from the inputs to it runs through, `length`
    to the length of its most direct path from the inputs. That path runs through all its dominators, so the
    length between a term and one of its dominators is the difference of the two.
    """

    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.dominator = self._dominators()
        self.length = self._lengths()
        self._post_dominator = self._post_dominators()
        self.zeroable = self._zeroable()
        self.signal = self._signal()

    def _dominators(self) -> dict[int, int]:
        return {**nx.immediate_dominators(self.flow.data_graph, ROOT), ROOT: ROOT}  # networkx 3.6 leaves ROOT out

    def _post_dominators(self) -> dict[int, int]:
        return {**nx.immediate_dominators(self.flow.data_graph.reverse(copy=False), SINK), SINK: SINK}

    def _lengths(self) -> dict[int, int]:
        found = nx.single_source_dijkstra_path_length(self.flow.data_graph, ROOT, weight="length")
        return cast("dict[int, int]", found)  # sums of whole numbers, though networkx says float

    def step(self, source: int, position: int) -> int:
        """Return the length of the step from a source into a term."""
        return int(self.flow.data_graph.get_edge_data(source, position)["length"])

    def common_dominator(self, positions: Iterable[int]) -> int:
        """Return the nearest term through which every path to each of some terms runs, ROOT if there is none.

        Written by hand: networkx looks for the lowest common ancestor in the whole tree, not along the two paths up.
        """
        common, *others = positions
        for other in others:
            while common != other:  # each term comes after its dominator
                if common > other:
                    common = self.dominator[common]
                else:
                    other = self.dominator[other]
        return common

    def only_through(self, position: int, gate: int) -> bool:
        """Return whether a term reaches the outputs through `gate` alone (or through nothing at all).

        Written by hand: a few steps up the tree of post-dominators, no further than the gate.
        """
        while position != gate:
            position = self._post_dominator.get(position, SINK)
            if position == SINK or position > gate:
                return False
        return True

    def reaches_output(self, position: int) -> bool:
        """Return whether a term has a path to an output."""
        return position in self._post_dominator

    def _zeroable(self) -> tuple[bool, ...]:
        """Whether some values of the inputs and parameters make a term zero."""
        terms = self.flow.terms
        zeroable: list[bool] = []
        for term in terms:
            if not term.kind.can_be_zero:
                zeroable.append(False)
            elif term.kind.multiplies:
                zeroable.append(any(zeroable[operand] for operand in term.operands))
            else:
                offset = any(terms[operand].kind == "gate" and not terms[operand].data for operand in term.operands)
                carried = all(zeroable[operand] for operand in term.operands if terms[operand].data)
                zeroable.append(carried and not offset)
        return tuple(zeroable)

    def values(self, position: int) -> tuple[int, ...]:
        """Return the data operands whose value a term passes on: of a product, the factors that can be zero.

        A factor that cannot be zero is a gate of one that can.
        """
        term = self.flow.terms[position]
        operands = tuple(operand for operand in term.operands if self.flow.terms[operand].data)
        if term.kind != "product":
            return operands
        return tuple(operand for operand in operands if self.zeroable[operand]) or operands

    def _signal(self) -> frozenset[int]:
        """The terms whose value reaches an output, not only as the gate of another value.

        Whole numbers among the outputs (labels, indices) are made of values and are none, if there are others.
        """
        terms = self.flow.terms
        continuous = {output for output in self.flow.outputs if terms[output].tag != "integer"}
        values: nx.DiGraph[int] = nx.DiGraph()
        values.add_nodes_from(self.flow.outputs)
        for position, term in enumerate(terms):
            if not (continuous and term.tag == "integer"):
                values.add_edges_from((position, value) for value in self.values(position))
        return frozenset(reached(values, continuous or self.flow.outputs))
