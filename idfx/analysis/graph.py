"""Data flow → the graphs that networkx's algorithms run on: a node for each term, an edge for each operand and gate.

Nodes are positions of terms, so their order is that of the execution. An edge has `operand`, the index of its source
among the operands and then the gates of its target (the first, where it is there twice), `gate`, whether the source
only steers the target, and `length`, that of the step. Attributes of a node are those of its term.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import networkx as nx

from idfx.analysis.terms import DataflowNode
from idfx.ops.kinds import Kind, Length

ROOT = -1
SINK = -2


def term_graph(terms: Sequence[DataflowNode]) -> nx.DiGraph[int]:
    """Return the graph of all terms: inputs, parameters, constants and what is made of them.

    Args:
        terms: of the data flow of one forward pass.

    Example:
        >>> import torch
        >>> from idfx.analysis.dataflow import read
        >>> from idfx.capture.tracing import capture
        >>> from idfx.core.records import Example
        >>> flow = read(capture(torch.nn.Linear(3, 2), Example((torch.ones(1, 3),))))
        >>> [(flow.terms[a].kind, flow.terms[b].kind) for a, b in term_graph(flow.terms).edges]
        [('input', 'contract'), ('parameter', 'contract'), ('parameter', 'sum'), ('contract', 'sum')]
    """
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(terms)))
    graph.add_edges_from(edge for position in range(len(terms)) for edge in _steps(terms, position))
    return graph


def data_graph(terms: Sequence[DataflowNode], outputs: Iterable[int]) -> nx.DiGraph[int]:
    """Return the graph of the terms that carry data, between ROOT, which leads to the inputs, and SINK.

    Args:
        terms, outputs: of the data flow of one forward pass.

    Example:
        >>> import torch
        >>> from idfx.analysis.dataflow import read
        >>> from idfx.capture.tracing import capture
        >>> from idfx.core.records import Example
        >>> flow = read(capture(torch.nn.Linear(3, 2), Example((torch.ones(1, 3),))))
        >>> nx.shortest_path(data_graph(flow.terms, flow.outputs), ROOT, SINK)
        [-1, 0, 3, 4, -2]
    """
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from((ROOT, SINK))
    free = {"operand": 0, "gate": False, "length": Length.NONE}
    graph.add_edges_from((ROOT, position, free) for position, term in enumerate(terms) if term.kind is Kind.INPUT)
    steps = (edge for position, term in enumerate(terms) if term.data for edge in _steps(terms, position))
    graph.add_edges_from(edge for edge in steps if terms[edge[0]].data)
    graph.add_edges_from((output, SINK, free) for output in outputs if terms[output].data)
    return graph


def _steps(terms: Sequence[DataflowNode], position: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The edges into a term."""
    term = terms[position]
    first: dict[int, int] = {}
    for index, source in enumerate((*term.operands, *term.gates)):
        first.setdefault(source, index)
    steers = sum(terms[source].data for source in first) > 1
    for source, index in first.items():
        gate = index >= len(term.operands)
        bilinear = steers and term.kind is Kind.PRODUCT and not (term.tag == "share" and not index)
        length = Length.NONLINEAR if gate or bilinear else _length(terms[source], term)
        yield source, position, {"operand": index, "gate": gate, "length": length}


def _length(source: DataflowNode, term: DataflowNode) -> int:
    """The length of the step from an operand into a term, unless it is a product of data."""
    if term.kind is Kind.MOVE and term.shape is not None and source.shape is not None:
        return Length.NONE if math.prod(term.shape) == math.prod(source.shape) else Length.RESAMPLE
    return term.kind.length


def reached(graph: nx.DiGraph[int], sources: Iterable[int]) -> Iterator[int]:
    """Yield some nodes and all that they lead to, the nearest first.

    Unlike `nx.descendants`, it takes several nodes and does not compute the size of a graph view, which would traverse
    the whole graph.

    Example:
        >>> list(reached(nx.DiGraph([(1, 2), (2, 3), (4, 3)]), [2]))
        [2, 3]
    """
    return itertools.chain.from_iterable(nx.bfs_layers(graph, list(sources)))


def behind(graph: nx.DiGraph[int], nodes: Iterable[int]) -> set[int]:
    """Return the nodes that some of the given ones lead to; a given one only if another, or a circle, leads to it.

    Example:
        >>> behind(nx.DiGraph([(1, 2), (2, 3), (4, 3)]), [1, 2])
        {2, 3}
    """
    return set(reached(graph, {user for node in nodes for user in graph.successors(node)}))


def before(graph: nx.DiGraph[int], nodes: Iterable[int]) -> set[int]:
    """Return the nodes that lead to some of the given ones, as in `behind`.

    Example:
        >>> before(nx.DiGraph([(1, 2), (2, 3), (4, 3)]), [2, 3])
        {1, 2, 4}
    """
    return behind(graph.reverse(copy=False), nodes)
