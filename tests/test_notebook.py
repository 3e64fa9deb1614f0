"""Records in a notebook: what they show is what they hold."""

from __future__ import annotations

import dataclasses
import html.parser
import sys
from pathlib import Path

import pytest
import torch
from small_models import Small, lin
from torch import nn

import idfx
from idfx.core.errors import UsageError

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def report():
    model = Small(lambda m, x: m.head(x + m.b(torch.relu(m.a(x)))), a=lin(4, 8), b=lin(8, 4), head=lin(4, 3))
    return idfx.init_(model, (torch.randn(2, 4),), keep=["head.bias"])


@pytest.fixture(scope="module")
def audit():
    model = nn.Sequential(lin(8, 8), nn.ReLU(), lin(8, 2))
    nn.init.constant_(model[0].weight, 0.5)
    return idfx.audit(model, (torch.randn(8, 8),), batch=False)


class Cells(html.parser.HTMLParser):
    """The text of every cell; an error on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.open.append(tag)
        if tag == "td":
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.found[-1] += data


def test_a_structure_lists_its_weights_and_joins(report):
    weights, joins = report.structure.to_pandas(), report.structure.to_pandas("joins")
    assert [*weights["parameter"]] == ["a.weight", "a.bias", "b.weight", "b.bias", "head.weight", "head.bias"]
    assert weights.set_index("parameter")["role"]["b.weight"] == "end"
    assert [*joins["ends"]] == ["b.weight"] and bool(joins["can be closed"][0])


def test_a_plan_says_of_every_parameter_what_becomes_of_it(report):
    table = report.plan.to_pandas().set_index("parameter")
    assert {*table.index} == {*report.plan.shapes}
    assert table["fill"]["head.bias"] == "keep" and table["reason"]["head.bias"] == "set by --keep head.bias"
    assert table["shape"]["a.weight"] == (8, 4) and table["fill"]["b.weight"] == report.plan.decisions["b.weight"].fill
    checked = report.certificate.to_pandas()
    assert [*checked["status"]] == ["identity"] and checked["deviation"][0] == report.certificate.checks[0].deviation
    assert [*report.to_pandas("joins").columns] == [*checked.columns]


def test_an_audit_lists_its_findings_and_measures(audit):
    found = audit.to_pandas()
    assert {*zip(found["metric"], found["parameter"], strict=True)} >= {("rank", "0.weight"), ("replicas", "0.weight")}
    assert len(audit.to_pandas("measures")) == sum(map(len, audit.measures.values()))
    assert audit.to_pandas("parameters").set_index("parameter")["rms"]["0.weight"] == pytest.approx(0.5)


def test_html_has_a_cell_for_every_value_and_escapes_names(report, audit):
    for record in (report, report.structure, report.plan, report.certificate, audit):
        assert Cells(record._repr_html_()).found
    cells = Cells(report.plan._repr_html_()).found
    assert len(cells) == report.plan.to_pandas().size and "set by --keep head.bias" in cells
    odd = dataclasses.replace(report.plan, model="<script>", kept={"head.bias": "a < b & c"})
    shown = odd._repr_html_()
    assert "<script>" not in shown and "a < b & c" in Cells(shown).found


def test_long_tables_are_cut_and_say_so(report):
    many = {f"w{number}": "kept" for number in range(500)}
    plan = dataclasses.replace(report.plan, shapes=dict.fromkeys(many, (1,)), kept=many, decisions={})
    shown = plan._repr_html_()
    assert shown.count("<tr>") == 201 and "and 300 more: to_pandas() has all" in shown
    assert len(plan.to_pandas()) == 500


def test_an_unknown_table_and_a_missing_pandas_are_named(report, monkeypatch):
    with pytest.raises(
        UsageError, match=r"Structure: no table 'join'; expected one of weights, joins, sums\. Did you mean"
    ):
        report.structure.to_pandas("join")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pandas is not installed; expected it\. Run pip install 'idfx\[notebook\]'"):
        report.plan.to_pandas()


def test_show_writes_the_page_and_opens_it(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    model = nn.Sequential(lin(8, 8), nn.Tanh(), lin(8, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    where = idfx.show(model, (torch.randn(8, 8),), path=tmp_path / "page.html")
    assert where == tmp_path / "page.html" and opened == [where.as_uri()]
    assert "Sequential" in where.read_text() and all(torch.equal(model.state_dict()[n], v) for n, v in before.items())
    assert idfx.show(model, (torch.randn(8, 8),), batch=False, browser=False).is_file() and len(opened) == 1


def test_the_notebook_of_the_docs_runs(tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 4
