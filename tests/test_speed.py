"""`idfx bench speed`, and what its figures rest on, counted and not timed: calls, forward passes, entries written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import idfx
from idfx.analysis.structure import build_structure
from idfx.bench.counts import calls, entries_written, forwards, operators
from idfx.bench.growth import Chain
from idfx.bench.ratios import Ratio, markdown
from idfx.bench.speed import MODELS
from idfx.bench.stages import write_raw
from idfx.capture.tracing import capture
from idfx.core.errors import ResourceError
from idfx.core.records import Example
from idfx.fills import fill_
from idfx.fills.geometry import _remembered
from idfx.planning.apply import apply_
from idfx.planning.make import make_plan

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 10}


def read(net: nn.Module, x: torch.Tensor) -> Any:
    return build_structure(capture(net, Example((x,))))


def small() -> tuple[nn.Module, torch.Tensor]:
    return timm.create_model("vit_tiny_patch16_224", **VIT).eval(), torch.randn(2, 3, 32, 32)


# Operation counts: what must not grow unnoticed


@pytest.mark.parametrize("stage", ["capture", "analysis", "plan"])
def test_each_stage_visits_so_many_nodes_per_block_whatever_the_depth(stage):
    """The calls of idfx's own functions that 40 more blocks cost are the same behind 20 and behind 60 blocks."""
    make_plan(read(Chain(2), torch.ones(1, 2)))  # what is looked up once
    made = {}
    for blocks in (20, 60, 100):
        net, example = Chain(blocks), Example((torch.ones(1, 2),))
        if stage == "capture":
            made[blocks] = calls(lambda net=net, example=example: capture(net, example), "/idfx/")
            continue
        captured = capture(net, example)
        if stage == "analysis":
            made[blocks] = calls(lambda captured=captured: build_structure(captured), "/idfx/")
            continue
        structure = build_structure(captured)
        made[blocks] = calls(lambda structure=structure: make_plan(structure), "/idfx/")
    first, second = made[60] - made[20], made[100] - made[60]
    assert first > 40 and abs(second - first) <= 0.02 * first


def test_calls_of_something_quadratic_would_be_noticed():
    def quadratic(count: int) -> int:
        return calls(lambda: [abs(Ratio("", "", (1.0,)).median) for _ in range(count * count)], "ratios")

    assert quadratic(100) - quadratic(60) > 1.5 * (quadratic(60) - quadratic(20))


def test_reading_and_planning_cost_the_same_for_any_number_of_parameters_and_touch_none():
    made = []
    for width in (100, 30_000):  # 2 × 10^5 and 1.8 × 10^10 parameters, the latter 72 GB if it had values
        with torch.device("meta"):
            net, x = Chain(10, width), torch.ones(1, width)
        read(net, x)
        made.append(calls(lambda net=net, x=x: make_plan(read(net, x)), "/idfx/"))
    assert made[0] == made[1]


@pytest.mark.parametrize("scheme", ["idinit", "kaiming"])
def test_idinit_is_one_pass_over_each_weight(scheme):
    """It writes zeros and a few entries in each row, which cost some numbers more; random values take many passes."""
    net, x = nn.Sequential(nn.Linear(2048, 2048), nn.Linear(2048, 2048)), torch.randn(2, 2048)
    plan = make_plan(read(net, x), scheme)
    entries = sum(parameter.numel() for parameter in net.parameters())
    written = entries_written(lambda: apply_(net, plan))
    if scheme == "idinit":
        assert entries <= written <= 1.1 * entries
    else:
        assert written > 5 * entries  # and the counter sees them


@pytest.mark.parametrize(("fill", "shape", "most"), [
    ("idi", (48, 48), 40), ("idi", (96, 48), 40), ("idiz", (48, 48), 12), ("idic", (8, 8, 3, 3), 40),
    ("idizc", (16, 8, 3, 3), 12), ("constant", (48,), 1),
])  # fmt: skip
def test_a_weight_of_a_shape_that_was_seen_costs_few_operators(fill, shape, most):
    """Where its entries are is known then; what is left is to clear, to draw the noise and to write them."""
    arguments = {"value": 1.0} if fill == "constant" else {}
    first, second, other = torch.empty(shape), torch.empty(shape), torch.empty(shape)
    cold = operators(lambda: fill_(first, fill, arguments, parameter="w", seed=0))
    assert operators(lambda: fill_(other, fill, arguments, parameter="v", seed=0)) <= min(most, cold)
    fill_(second, fill, arguments, parameter="w", seed=0)
    _remembered.cache_clear()
    fill_(other, fill, arguments, parameter="w", seed=0)
    assert torch.equal(first, second) and torch.equal(first, other)


def test_of_large_weights_no_places_are_remembered():
    _remembered.cache_clear()
    fill_(torch.empty(20_000, 2), "idi", {}, parameter="w", seed=0)
    assert _remembered.cache_info().currsize == 0
    fill_(torch.empty(20, 2), "idi", {}, parameter="w", seed=0)
    assert _remembered.cache_info().currsize == 1


def test_a_plan_is_checked_once_for_weights_that_are_alike(monkeypatch):
    net, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(12)), nn.Linear(8, 4)), torch.randn(2, 8)
    plan, checked = make_plan(read(net, x)), []
    monkeypatch.setattr("idfx.planning.apply.check_fill", lambda decision, shape, *rest: checked.append(shape))
    apply_(net, plan)
    assert sorted(checked) == [(4,), (4, 8), (8,), (8, 8)]


def test_capture_analysis_and_plan_write_no_weight():
    """What they write is numbers of rows, vectors, and samples of weights, so a wide model tells it from weights."""
    net, x = timm.create_model("vit_tiny_patch16_224", **(VIT | {"embed_dim": 768})).eval(), torch.randn(2, 3, 32, 32)
    entries = sum(parameter.numel() for parameter in net.parameters())
    with torch.no_grad():
        alone = entries_written(lambda: net(x))
    assert alone > 0
    before = {name: value.clone() for name, value in net.state_dict().items()}
    make_plan(read(net, x))  # tries each new operator once, on numbers of its own
    assert entries_written(lambda: make_plan(read(net, x))) < 0.01 * entries
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_forward_runs_once_to_capture_and_twice_to_certify():
    net, x = small()
    example = Example((x,))
    assert forwards(net, lambda: capture(net, example)) == 1
    captured = capture(net, example)
    assert forwards(net, lambda: make_plan(build_structure(captured))) == 0
    made: list[Any] = []
    assert forwards(net, lambda: made.append(idfx.init_(net, (x,)))) == 3
    assert made[0].certificate.passed


def test_capture_calls_each_operator_once():
    net, x = small()
    seen: list[Any] = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func._schema.name.startswith("aten::empty"):  # a meta tensor for each value, nothing computed
                seen.append(func)
            return func(*args, **(kwargs or {}))

    meta = {name: value.to("meta") for name, value in net.state_dict(keep_vars=True).items()}
    with Seen(), torch.no_grad():
        torch.func.functional_call(net, meta, (x.to("meta"),))
    bare = len(seen)
    seen.clear()
    with Seen():
        captured = capture(net, Example((x,)))
    nodes = sum(node.op == "call_function" for node in captured.graph.nodes)
    assert 0 < nodes <= bare and len(seen) <= 1.1 * bare


def test_the_file_is_the_weights_and_little_else(tmp_path):
    net, x = small()
    report = idfx.init_(net, (x,))
    raw = write_raw(net, str(tmp_path / "raw"))
    assert raw == sum(value.numel() * value.element_size() for value in net.state_dict().values())
    assert raw == (tmp_path / "raw").stat().st_size
    saved = idfx.save(net, tmp_path / "weights.safetensors", plan=report.plan)
    assert raw < saved.bytes < raw + 1000 * len(net.state_dict())


# The counters themselves


def test_entries_written_are_counted_by_operator():
    x, y = torch.zeros(3, 4), torch.ones(3, 4)
    assert entries_written(lambda: x.add_(1)) == 12
    assert entries_written(lambda: torch.empty(100)) == 0
    assert entries_written(lambda: x.t()) == 0
    assert entries_written(lambda: x.to("meta") + 1) == 0
    assert entries_written(lambda: x + y) == 12
    rows, two, four = torch.tensor([0, 2]), torch.ones(2), torch.ones(4)
    assert entries_written(lambda: x.index_put_((rows, rows), two)) == 2
    assert entries_written(lambda: x.index_put_((rows,), four)) == 8


# The command


def test_the_command_gives_ratios_of_every_section_that_is_asked_for(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("bench speed --only depth,parameters --runs 2 --max-blocks 10 -o speed --json -q")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told == json.loads(Path("speed/speed.json").read_text())
    assert torch.__version__.startswith(told["versions"]["torch"]) and told["machine"]["cores"] == os.cpu_count()
    sections = [row["section"] for row in told["ratios"]]
    assert sections == ["depth"] * 3 + ["parameters"] * 5
    for row in told["ratios"]:
        assert row["rounds"] == 2 and 0 < row["least"] <= row["median"] <= row["most"]
    assert told["ratios"][3]["median"] == 1.0 and "10^10" in told["ratios"][-1]["name"]
    page = Path("speed/speed.md").read_text()
    assert page.count("\n| depth |") == 3 and f"torch {told['versions']['torch']}" in page


def test_what_was_measured_stands_in_the_files_when_a_later_section_fails(run, tmp_path, monkeypatch):
    def broken(runs: int) -> list[Ratio]:
        raise ResourceError("no memory; expected some. Free it.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("idfx.bench.growth.parameters", broken)
    code, out, err = run("bench speed --only depth,parameters --runs 1 --max-blocks 10 -o speed -q")
    assert code != 0 and out == "" and "no memory" in err
    told = json.loads(Path("speed/speed.json").read_text())
    assert [row["section"] for row in told["ratios"]] == ["depth"] * 3
    assert Path("speed/speed.md").read_text().count("\n| depth |") == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--only fill --max-parameters 1M", "there is no such model; expected at least 5,717,416"),
        (
            "--only reed",
            "--only reed: unknown; expected some of process, stages, fill, whole, read, depth, parameters. Did",
        ),
        ("--max-parameters many", "not a number of parameters; expected one such as 100M or 1e9"),
        ("--device gpu", "--device gpu: unknown device"),
        ("-o file --only depth", "-o file: File exists; expected a folder."),
    ],
)
def test_errors_are_one_line(run, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    code, out, err = run(f"bench speed {words}")
    assert (code, out, err.count("\n")) == (2, "", 1) and told in err


def test_the_sizes_of_the_models_are_their_sizes():
    for name in list(MODELS)[:2]:
        assert sum(parameter.numel() for parameter in timm.create_model(name).parameters()) == MODELS[name]


def test_a_table_tells_median_and_range():
    page = markdown([Ratio("fill", "ours / zero_", (1.0, 4.0, 2.0), "5 GiB/s")], {"cores": 2}, {"torch": "2.6"})
    assert "| fill | ours / zero_ | 2.00 (1.00 to 4.00) | 3 | 5 GiB/s |" in page


def test_fills_and_whole_initialisations_are_measured_on_a_device(run):
    code, out, _ = run("bench speed --only fill,whole --runs 1 --max-parameters 6M --json -q")
    fills, whole = json.loads(out)["ratios"]
    assert code == 0 and "GiB/s" in fills["detail"] and "on cpu" in fills["name"]
    assert whole["name"].startswith("timm:vit_tiny_patch16_224: build, init and certificate") and whole["median"] > 0


@pytest.mark.slow
def test_the_processes_and_their_stages_are_measured(run):
    code, out, _ = run("bench speed --only process,stages --runs 1 --max-parameters 6M --json -q")
    names = [row["name"] for row in json.loads(out)["ratios"]]
    assert code == 0 and "vit_tiny_patch16_224: idfx init / timm and torch.save" in names
    assert sum("/ its floor" in name for name in names) == 6


@pytest.mark.cuda
def test_fills_are_measured_on_the_device(run):
    code, out, _ = run("bench speed --only fill,whole --runs 2 --max-parameters 6M --device cuda --json -q")
    assert code == 0 and all("on cuda" in row["name"] for row in json.loads(out)["ratios"])
