"""The graph of a structure → text that other programs read: GraphML, node-link JSON, or the DOT language."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from idfx.core.errors import ExportError, UsageError


def writer(path: Path) -> Callable[[nx.DiGraph[str]], str]:
    """Return the function that makes the text of a file, by the suffix of its name.

    Raises:
        UsageError: another suffix than .graphml, .json, .dot or .gv.

    Example:
        >>> writer(Path("model.gv")) is dot
        True
    """
    found = _WRITERS.get(path.suffix.lower())
    if found is None:
        suffix = f"the suffix is {path.suffix!r}" if path.suffix else "it has no suffix"
        raise UsageError(
            f"{path}: {suffix}; expected .graphml (GraphML), .json (node-link JSON), .dot or .gv (graphviz). "
            f"Write --graph {path.with_suffix('.graphml')}."
        )
    return found


def graphml(graph: nx.DiGraph[str]) -> str:
    """Return a graph as GraphML, which `networkx.read_graphml`, Gephi and yEd read.

    Raises:
        ExportError: networkx before 3.3, which cannot write GraphML where NumPy 2 is installed.
    """
    try:
        return "\n".join(nx.generate_graphml(graph, named_key_ids=True)) + "\n"
    except AttributeError as error:  # it asks NumPy for types that are no longer there
        found = f"networkx {nx.__version__} cannot write it with this NumPy version"
        raise ExportError(
            f"GraphML: {found}; networkx 3.3 or later was expected. Install it, or write a .json file."
        ) from error


def node_link(graph: nx.DiGraph[str]) -> str:
    """Return a graph as node-link JSON, with "nodes" and "edges"; `networkx.node_link_graph` reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of networkx 3.4 and 3.5, which called the edges "links"
        data = nx.node_link_data(graph)
    return json.dumps({"edges" if key == "links" else key: value for key, value in data.items()}, indent=1) + "\n"


def dot(graph: nx.DiGraph[str]) -> str:
    """Return a graph in the DOT language: a node's label is what it does, its tooltip all that is known of it.

    Parameters are boxes, joins circles, gates dashed arrows; the arrow that brings a join's shortcut is thick.

    Example:
        >>> print(dot(nx.DiGraph([("a", "b", {"gate": True})])), end="")
        digraph "" {
          "a" [label="a", tooltip="", shape=ellipse];
          "b" [label="b", tooltip="", shape=ellipse];
          "a" -> "b" [style=dashed];
        }
    """
    lines = [f"digraph {_quoted(graph.name)} {{"]
    for node, found in graph.nodes(data=True):
        tooltip = "\n".join(f"{key}: {value}" for key, value in found.items())
        lines.append(
            f"  {_quoted(node)} [label={_quoted(_label(node, found))}, tooltip={_quoted(tooltip)}, {_form(found)}];"
        )
    for source, target, found in graph.edges(data=True):
        thick = graph.nodes[target].get("shortcut") == source
        style = "style=dashed" if found.get("gate") else "penwidth=3" if thick else ""
        lines.append(f"  {_quoted(source)} -> {_quoted(target)}{f' [{style}]' if style else ''};")
    return "\n".join([*lines, "}"]) + "\n"


def _label(node: str, found: Mapping[str, Any]) -> str:
    name = found.get("join") or found.get("parameter") or node
    return "\n".join(str(part) for part in (name, found.get("kind"), found.get("shape")) if part)


def _form(found: Mapping[str, Any]) -> str:
    if found.get("kind") == "parameter":
        return "shape=box"
    return "shape=circle" if "join" in found else "shape=ellipse"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


_WRITERS = {".graphml": graphml, ".json": node_link, ".dot": dot, ".gv": dot}
