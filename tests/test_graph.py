"""The graph of a structure: networkx alone finds its joins, forks, shortcuts and ends, and reads its files again."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import networkx as nx
import pytest
import torch
from click.testing import CliRunner
from idfx_cli.main import cli
from torch import nn

import idfx
from idfx.analysis import blocks, dataflow, paths, structure
from idfx.analysis.graph import before, behind, reached
from idfx.analysis.structure import build_structure
from idfx.building.build import build
from idfx.capture.tracing import capture
from idfx.core.errors import ExportError, UsageError
from idfx.core.records import Structure

SPECS = (
    "timm:resnet50",
    "timm:vit_tiny_patch16_224",
    "transformers:llama",
    "torchvision:retinanet_resnet50_fpn",
)
NONLINEAR = 2**60  # docs/structure.md, "The graph"
OLD = tuple(map(int, nx.__version__.split(".")[:2])) < (3, 4)
EDGES = "link" if OLD else "edges"
SMALL = "docs/examples/small.py:Small"


def read(spec: str) -> Structure:
    if spec.startswith("transformers:"):
        pytest.importorskip("transformers")
    built = build(spec, arguments={"tiny": True} if spec.startswith("transformers:") else {}, device="cpu")
    return build_structure(
        capture(built.model, built.example, before_real=lambda: built.pending.materialize(built.model))
    )


class Net(nn.Module):
    """Two blocks, a projection behind them and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.up, self.down, self.short = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.b(self.a(x).relu())
        x = x + self.d(self.c(x).relu())
        return self.head(self.short(x) + self.down(self.up(x).relu()))


def data_of(graph: nx.DiGraph) -> tuple[nx.DiGraph, dict[str, str]]:
    """Return what carries data, and the immediate dominators in it ("" before the inputs)."""
    data = nx.DiGraph(graph.subgraph([node for node, carries in graph.nodes(data="data") if carries]))
    data.add_edges_from(("", node) for node, kind in graph.nodes(data="kind") if kind == "input")
    return data, nx.immediate_dominators(data, "")


def nearest(data: nx.DiGraph, fork: str, join: str) -> list[tuple[int, str]]:
    """Return the operands of a sum with the lengths of their ways from the fork, the most direct first."""
    between = data.subgraph({fork, join} | (nx.descendants(data, fork) & nx.ancestors(data, join)))
    length = nx.single_source_dijkstra_path_length(between, fork, weight="length")
    return sorted((length[operand], operand) for operand in data.predecessors(join))


@pytest.mark.parametrize("spec", SPECS)
def test_joins_forks_and_shortcuts_follow_from_the_graph_alone(spec: str) -> None:
    found = read(spec)
    graph = found.graph
    data, dominator = data_of(graph)
    recomputed = {}
    for node, kind in graph.nodes(data="kind"):
        if kind != "sum" or data.in_degree(node) < 2 or not graph.nodes[node]["data"]:
            continue
        refused = graph.nodes[node].get("refused", "")
        ways = nearest(data, dominator[node], node) if dominator[node] else []
        linear = len(ways) > 1 and ways[0][0] < NONLINEAR and ways[0][0] < ways[1][0]
        assert linear or refused, node
        assert not (linear and refused == "parallel") or ways[0][0] >= 2**40, node
        if not refused:
            recomputed[node] = dominator[node], ways[0][1]
    told = {node: (graph.nodes[node]["fork"], graph.nodes[node]["shortcut"]) for node in graph if
            "join" in graph.nodes[node]}  # fmt: skip
    assert recomputed == told
    assert [graph.nodes[node]["join"] for node in told] == [join.name for join in found.joins]
    assert [graph.nodes[fork]["node"] for fork, _ in told.values()] == [join.fork_node for join in found.joins]
    assert [graph.nodes[node]["step"] for node in told] == [join.step for join in found.joins]
    modules = zip(told, found.joins, strict=True)
    assert all(graph.nodes[node].get("module", "") == join.module for node, join in modules)


@pytest.mark.parametrize("spec", SPECS)
def test_the_ends_cut_the_branch_and_none_is_too_many(spec: str) -> None:
    found = read(spec)
    graph = found.graph
    data, _ = data_of(graph)
    by_name = {join.name: join for join in found.joins}
    assert any(join.zeroable for join in found.joins)
    for node, known in graph.nodes(data=True):
        if "join" not in known:
            continue
        ends = [n for n, closed in graph.nodes(data="end") if closed and node in closed.split(", ")]
        join = by_name[known["join"]]
        assert known["zeroable"] == join.zeroable == bool(ends)
        assert {graph.nodes[n]["parameter"] for n in ends} == {end.parameter for end in join.ends if join.zeroable}
        inside = nx.descendants(data, known["fork"]) & nx.ancestors(data, node) | {node, known["fork"]}
        branch = nx.DiGraph(data.subgraph(inside))
        branch.remove_edges_from([edge for edge in branch.edges if branch.edges[edge]["gate"]])
        branch.remove_edge(known["shortcut"], node)
        for end in ends:
            assert nx.has_path(branch.subgraph(inside.difference(ends) | {end}), known["fork"], node)
        assert not ends or not nx.has_path(branch.subgraph(inside.difference(ends)), known["fork"], node)


def test_every_parameter_is_a_node_with_its_role() -> None:
    found = idfx.analyze(Net(), (torch.ones(2, 4),))
    nodes = found.graph.nodes.values()
    leaves = {node["parameter"]: node["role"] for node in nodes if node["kind"] == "parameter"}
    assert leaves == {name: role.name for name, role in found.roles.items()}
    sites = [node["parameter"] for node in nodes if node["kind"] == "contract"]
    assert sites == [site.parameter for site in found.sites]
    assert [node["shape"] for node in nodes if node.get("output")] == ["[2, 3]"]


def test_terms_inside_of_an_operator_are_named_after_it() -> None:
    graph = idfx.analyze(Net(), (torch.ones(2, 4),)).graph
    fx_names = {node.name for node in idfx.analyze(Net(), (torch.ones(2, 4),)).capture.graph.nodes}
    assert [node for node in graph if node not in fx_names] == [
        f"{graph.nodes[node]['node']}.contract" for node, kind in graph.nodes(data="kind") if kind == "contract"
    ]


def test_the_graph_is_made_once_and_follows_overridden_roles() -> None:
    net, x = Net(), (torch.ones(2, 4),)
    found = idfx.analyze(net, x)
    assert found.graph is found.graph
    assert [node["parameter"] for node in found.graph.nodes.values() if "end" in node] == [
        "b.weight", "d.weight", "down.weight",
    ]  # fmt: skip
    other = idfx.analyze(net, x, roles={"c.weight": "end"})
    assert [node["parameter"] for node in other.graph.nodes.values() if "end" in node] == [
        "b.weight", "c.weight", "down.weight",
    ]  # fmt: skip


def plain(graph: nx.DiGraph) -> tuple[Any, ...]:
    return graph.name, dict(graph.nodes), {edge: graph.edges[edge] for edge in graph.edges}


@pytest.mark.parametrize("suffix", [".graphml", ".json", ".GraphML"])
def test_a_file_read_by_networkx_is_the_graph(suffix: str, tmp_path) -> None:
    path = tmp_path / f"small{suffix}"
    run = CliRunner().invoke(cli, ["analyze", SMALL, "--graph", str(path), "-q"])
    if OLD and isinstance(run.exception, ExportError):
        pytest.skip(str(run.exception))
    assert run.exit_code == 0, run.output
    if suffix == ".json":
        again = nx.node_link_graph(json.loads(path.read_text()), **{EDGES: "edges"})
    else:
        again = nx.read_graphml(path)
    whole = read(SMALL).graph
    assert plain(again) == plain(whole)
    assert {type(value) for node in whole.nodes.values() for value in node.values()} <= {str, int, bool}


@pytest.mark.parametrize("suffix", [".dot", ".gv"])
def test_a_dot_file_has_each_node_and_edge_on_a_line(suffix: str, tmp_path) -> None:
    path = tmp_path / f"small{suffix}"
    assert CliRunner().invoke(cli, ["analyze", SMALL, "--graph", str(path), "-q"]).exit_code == 0
    whole, lines = read(SMALL).graph, path.read_text().splitlines()
    assert lines[0] == 'digraph "Small" {' and lines[-1] == "}"
    assert sum(" -> " in line for line in lines) == whole.number_of_edges()
    assert [line.split('"')[1] for line in lines[1:-1] if " -> " not in line] == list(whole)
    assert sum("penwidth=3" in line for line in lines) == 2


@pytest.mark.parametrize("name", ["small.txt", "small"])
def test_another_suffix_is_refused_before_anything_is_built(name: str, tmp_path) -> None:
    run = CliRunner().invoke(cli, ["analyze", "nothing:there", "--graph", str(tmp_path / name)])
    assert isinstance(run.exception, UsageError)
    assert all(suffix in str(run.exception) for suffix in (".graphml", ".json", ".dot"))
    assert list(tmp_path.iterdir()) == []


def test_one_initialisation_reads_the_flow_and_its_paths_once(monkeypatch) -> None:
    counts: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        own = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name if name != "__init__" else owner.__name__] += 1
            return own(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(dataflow._Reader, "read")
    counted(paths.Paths, "__init__")
    counted(structure, "find_sites")
    counted(blocks.Finder, "find")
    model, inputs = idfx.load("timm:vit_tiny_patch16_224")
    idfx.init_(model, inputs, scheme="mimetic")
    assert counts == {"read": 1, "Paths": 1, "find_sites": 1, "find": counts["find"]}
    assert 1 <= counts["find"] <= 3  # anew where branches are to end at scales
    counts.clear()
    idfx.audit(Net(), (torch.ones(2, 4),), batch=False)
    assert counts["read"] == counts["Paths"] == counts["find_sites"] == 1


def test_what_leads_where_takes_several_nodes() -> None:
    graph = nx.gn_graph(40, seed=3)
    for nodes in ([5, 17], [0], [39, 38, 2], []):
        assert behind(graph, nodes) == set().union(*(nx.descendants(graph, node) for node in nodes))
        assert before(graph, nodes) == set().union(*(nx.ancestors(graph, node) for node in nodes))
        assert set(reached(graph, nodes)) == behind(graph, nodes).union(nodes)
