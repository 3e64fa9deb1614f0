"""docs/evidence is what its runs say: summaries come of runs.jsonl, tables are quoted, suites are the ones that ran."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from idfx.bench.conduct import all_starts
from idfx.bench.data import load_data
from idfx.bench.study import Study, differences, key_of, read_config, suite_of, wanted
from idfx.bench.suites import read_suite
from idfx.bench.summary import markdown

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
STUDIES = sorted(path.parent.name for path in EVIDENCE.glob("*/config.json"))


def study_of(name: str) -> tuple[Study, list[dict]]:
    config = read_config(EVIDENCE / name)
    assert config is not None
    study = Study(suite_of(config), config["full"], config["watch"], config["device"], None, config["data"])
    lines = (EVIDENCE / name / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    return study, [json.loads(line) for line in lines]


def test_there_are_studies():
    assert len(STUDIES) > 5


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_whole_and_its_summary_is_that_of_its_runs(name):
    study, records = study_of(name)
    summary = (EVIDENCE / name / "summary.md").read_text(encoding="utf-8")
    done, total = map(int, re.search(r"(\d+) of (\d+) runs", summary.splitlines()[0]).groups())
    pictures = {model: re.findall(rf"!\[({re.escape(model)}-\S+)\]", summary) for model in study.suite.models}
    assert summary == markdown(study, records, done, total, pictures)
    runs = [key_of(record) for record in records if "lr" in record]
    counted = {*wanted(study, all_starts(study), records)}
    assert done == total == len(counted) and counted <= {*runs} and len({*runs}) == len(runs)
    # where a wider grid has changed the choice, the remaining seeds at the old one stay, and nothing else does
    left: dict[tuple, set[int]] = {}
    for run in {*runs} - counted:
        left.setdefault((run.model, run.scheme, run.lr, run.weight_decay), set()).add(run.seed)
    for (model, _, *point), seeds in left.items():
        assert tuple(point) in study.suite.models[model].grid
        assert seeds == {*range(study.suite.seeds)} - {*study.selection}
    assert all((EVIDENCE / name / picture).is_file() for found in pictures.values() for picture in found)


@pytest.mark.parametrize("name", STUDIES)
def test_the_suite_that_a_study_names_is_the_one_that_was_run(name):
    study, _ = study_of(name)
    given = read_suite(str(EVIDENCE / f"{name}.toml"))
    again = Study(given, study.full, study.watch, study.device, None, study.facts).config()
    old = {key: value for key, value in study.config().items() if key != "versions"}
    new = {key: value for key, value in again.items() if key != "versions"}
    assert differences(json.loads(json.dumps(old)), json.loads(json.dumps(new))) == []


@pytest.mark.parametrize("name", STUDIES)
def test_schemes_write_today_what_they_wrote_in_the_runs(name, monkeypatch):
    """The runs called idinit and idfx are older than some defaults of today.

    Those of idinit are the literal reading, those of idfx treat queries as other weights.
    """
    from idfx.schemes import idfx, idinit

    for options, old in ((idinit.Options, {"published": True}), (idfx.Options, {"even": False})):
        names = list(options.__dataclass_fields__)
        values = (old.get(name, value) for name, value in zip(names, options.__init__.__defaults__, strict=True))
        monkeypatch.setattr(options.__init__, "__defaults__", tuple(values))
    study, records = study_of(name)
    today = {data: load_data(data).facts for data in study.facts}
    if today != study.facts:  # texts of another Python have another vocabulary, which is the shape of a weight
        pytest.skip(f"{name} ran on the texts of another Python, {read_config(EVIDENCE / name)['versions']['python']}")
    plans = {(r["model"], r["scheme"]): r["plan"] for r in records}
    assert {key: start.plan for key, start in all_starts(study).items()} == plans


def test_every_table_of_the_page_stands_in_the_results():
    page = (EVIDENCE.parent / "evidence.md").read_text(encoding="utf-8")
    results = [*EVIDENCE.glob("*/summary.md"), *EVIDENCE.glob("*.txt"), *EVIDENCE.glob("*/*.txt")]
    known = {line for path in results for line in path.read_text(encoding="utf-8").splitlines()}
    rows = [line for line in page.splitlines() if re.match(r"\| (`|\d)", line)]
    assert len(rows) > 50
    assert [row for row in rows if row not in known] == []
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert (EVIDENCE.parent / picture).is_file()
