"""`idfx bench zoo`: problems and what chance is, runs that outlive kills, limits, and verdicts."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from idfx.bench.isolated import Limits, run_isolated
from idfx.bench.runs import read_runs
from idfx.bench.zoo import Problem, learner, members
from idfx.bench.zoo.learning import batch_of
from idfx.bench.zoo.page import markdown, read_config
from idfx.bench.zoo.problems import TRUTH, patterns, topics
from idfx.bench.zoo.results import VERDICTS, Result, Row, best, rows, totals
from idfx.bench.zoo.sets import timm as timm_set
from idfx.bench.zoo.sets import transformers as transformers_set
from idfx.bench.zoo.small.gan import energy_distance
from idfx.core.torch_private import pytree


class Nothing(nn.Module):
    """A model whose output is what one says who has not looked: zeros of the shapes of another's output."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = other

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return pytree.tree_map_only(Tensor, torch.zeros_like, self.other(*args, **kwargs))


class AsIs(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, x.new_zeros(len(x))


def shown(problem: Problem, model: nn.Module, batches: int) -> float:
    """The mean loss that a problem reports of a model."""
    losses = []
    for step in range(batches):
        loss = problem.loss(model, batch_of(problem, 7, step))
        losses.append(float((loss[1] if isinstance(loss, tuple) else loss).detach()))
    return sum(losses) / batches


@pytest.mark.parametrize("name", [name for name in members(["small"]) if name not in ("small:flow", "small:gan")])
def test_chance_is_the_loss_of_zeros(name: str) -> None:
    """Of a class: ln of their number; of a mean square: the variance; of an adapter: the base unchanged."""
    made = learner(name, 0)
    assert made.problem.chance is not None
    own = name in ("small:lora", "small:dora")  # these start as their base
    found = shown(made.problem, made.model if own else Nothing(made.model), 20)
    assert found == pytest.approx(made.problem.chance, rel=0.06)


def test_chance_of_densities() -> None:
    flow = learner("small:flow", 0).problem
    assert flow.chance == pytest.approx(2 * 1.4189385)  # the entropy of a standard normal number, twice
    assert shown(flow, AsIs(), 20) == pytest.approx(flow.chance, rel=0.01)
    gan = learner("small:gan", 0).problem
    circle = torch.cat([batch_of(gan, 0, step)[0] for step in range(8)])
    assert float(energy_distance(circle, 1e-6 * circle)) == pytest.approx(gan.chance, rel=0.02)


@pytest.mark.parametrize("name", ["transformers:gpt2", "timm:test_vit", "torchvision:lraspp_mobilenet_v3_large"])
def test_chance_of_models_of_libraries(name: str) -> None:
    made = learner(name, 0)
    assert made.problem.chance is not None
    assert shown(made.problem, Nothing(made.model), 1) == pytest.approx(made.problem.chance, rel=1e-5)
    made.model(*made.example.args, **made.example.kwargs)


def test_timm_has_a_model_of_every_module_or_says_what_is_left_out() -> None:
    """A model belongs to the module that its constructor is in."""
    listed = {name.partition("(")[0] for name in timm_set.names()} | {*timm_set.LEFT_OUT}
    here = filter(timm.is_model, listed)  # an older timm lacks some of those that are left out
    modules = {timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in here}
    assert {*timm.list_modules()} <= modules
    assert len(transformers_set.names()) >= 40


def test_a_model_of_a_library_takes_arguments_and_small_images() -> None:
    made = learner("timm:beit_base_patch16_224(depth=1, embed_dim=48, num_heads=2)", 0)
    assert made.facts == {"input": [8, 3, 64, 64]}
    assert sum(name.endswith("attn.qkv.weight") for name, _ in made.model.named_parameters()) == 1


def flat(batch: Any) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    return torch.cat([leaf.flatten().float() for leaf in leaves])


@pytest.mark.parametrize(
    "name", [*members(["small"]), "transformers:bert", "torchvision:ssdlite320_mobilenet_v3_large"]
)
def test_data_never_repeats_and_is_the_same_for_all(name: str) -> None:
    first, again = learner(name, 0).problem, learner(name, 0).problem
    drawn = [flat(batch_of(first, seed, step)) for seed in range(2) for step in range(3)]
    for number, one in enumerate(drawn):
        assert all(len(one) != len(other) or not torch.equal(one, other) for other in drawn[:number])
    assert torch.equal(drawn[4], flat(batch_of(again, 1, 1)))


def test_patterns_and_topics() -> None:
    known = patterns((3, 16, 16), 4, 0)
    assert torch.allclose(known.square().flatten(1).mean(1), torch.ones(4), atol=1e-5)
    assert not torch.equal(known, patterns((3, 16, 16), 4, 1))
    labels = torch.arange(4).repeat(500)
    text = topics(range(10, 51), 9, 4, 0)(labels, torch.Generator().manual_seed(0))
    assert text.shape == (2000, 9) and bool((text[:, -1] == 50).all()) and int(text[:, :-1].max()) < 50
    words = [set(text[labels == kind][:, :-1].flatten().tolist()) for kind in range(4)]
    counts = torch.bincount(text[labels == 0][:, :-1].flatten(), minlength=51)
    assert all(len(one) == 40 for one in words)
    assert float(counts.topk(10).values.sum() / counts.sum()) == pytest.approx(TRUTH + (1 - TRUTH) / 4, abs=0.02)


# The command


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "idfx", "bench", "zoo", "--plots", "none", *words]


def test_no_model_is_at_chance_that_its_author_makes_learn(run, tmp_path) -> None:
    """A share of the zoo that takes seconds: of text, of images and of a function (docs/universal.md has the rest).

    Read literally, IDInit leaves the first two at chance.
    """
    models = ["small:kan", "timm:test_vit", "transformers:gpt2"]
    line = f"bench zoo --models {','.join(models)} --rates 0.003 --seconds 300 -q --json -o {tmp_path}/zoo"
    code, out, _ = run(line)
    assert code == 0
    for counts in json.loads(out)["schemes"].values():
        assert counts["at chance"] == counts["failed"] == counts["unfinished"] == 0
        assert counts["better"] + counts["same"] + counts["worse"] == 3
    found = rows(read_runs(tmp_path / "zoo"))
    assert [row.model for row in found] == models
    assert all(row.learns("default") for row in found)
    assert (
        "timm:test_vit" in (tmp_path / "zoo" / "zoo.md").read_text() and (tmp_path / "zoo" / "zoo.png").stat().st_size
    )


def without_times(records: list[dict[str, Any]]) -> list[str]:
    kept = [{key: value for key, value in record.items() if "seconds" not in key} for record in records]
    return sorted(json.dumps(record, sort_keys=True) for record in kept)


def test_a_killed_sweep_goes_on_and_ends_like_one_that_was_not(run, tmp_path) -> None:
    words = ("--models", "small:kan,small:lora", "--schemes", "idinit", "--steps", "20", "-q")
    process = subprocess.Popen(program(*words, "-o", str(tmp_path / "killed")), stderr=subprocess.DEVNULL)
    file = tmp_path / "killed" / "runs.jsonl"
    limit = time.monotonic() + 90
    while not file.exists() or file.read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = file.read_bytes()
    for name in ("killed", "whole"):
        assert run([*program(*words)[3:], "-o", str(tmp_path / name)])[0] == 0
    assert file.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    records = read_runs(tmp_path / "killed")
    assert without_times(records) == without_times(read_runs(tmp_path / "whole"))
    assert len(records) == 2 * 2 * 3
    # nothing is left to do; more rates are added
    assert run([*program(*words)[3:], "-o", str(tmp_path / "killed")])[0] == 0
    assert len(read_runs(tmp_path / "killed")) == 12
    assert run([*program(*words)[3:], "--rates", "1e-3,0.1", "-o", str(tmp_path / "killed")])[0] == 0
    assert {record["lr"] for record in read_runs(tmp_path / "killed")} == {0.001, 0.003, 0.01, 0.1}
    code, _, err = run([*program(*words)[3:], "--steps", "21", "-o", str(tmp_path / "killed")])
    assert code == 2 and "steps was 20 and is 21" in err


def test_ctrl_c_leaves_a_page_of_what_is_finished(tmp_path) -> None:
    words = program("--models", "small:kan,small:dit", "--schemes", "idinit", "-o", str(tmp_path / "zoo"))
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    file = tmp_path / "zoo" / "runs.jsonl"
    limit = time.monotonic() + 90
    while not file.exists() or file.read_bytes().count(b"\n") < 7:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted; finished runs are in" in err and "Traceback" not in err
    assert "`small:kan`" in (tmp_path / "zoo" / "zoo.md").read_text()


def test_what_fails_is_named(run, tmp_path) -> None:
    folder = tmp_path / "zoo"
    line = f"bench zoo --models small:kan,timm:resnet1 --schemes zero --steps 2 --rates 0.01 --plots none -o {folder}"
    code, out, err = run(line)
    assert code == 0 and "zero: " in out and "1 failed" in out
    assert "timm:resnet1" in err and "unknown model" in err
    page = (folder / "zoo.md").read_text()
    assert "- `timm:resnet1` from `default`: build for default: timm:resnet1: unknown model" in page
    failed = [record for record in read_runs(folder) if "failed" in record]
    assert [(record["model"], record["scheme"]) for record in failed] == [
        ("timm:resnet1", "default"),
        ("timm:resnet1", "zero"),
    ]
    run(line)
    assert len(read_runs(folder)) == 2 + 2  # what failed is tried again only on request
    for wrong in ("--set smal", "--only '('", "--schemes idini", "--models kan"):
        code, _, err = run(f"bench zoo {wrong} -q -o {tmp_path}/other")
        assert code == 2 and "expected" in err, wrong


def _sleep(job: float, tell: Any) -> None:
    tell({"stage": "sleep"})
    time.sleep(job)
    tell({"slept": job})


def _fill(job: int, tell: Any) -> None:
    kept = torch.ones(job)
    time.sleep(20)
    tell({"kept": float(kept.sum())})


def test_limits_end_a_process_and_say_why() -> None:
    said = [one for one in run_isolated(_sleep, [0.0, 60.0], Limits(15, 2**34), 2) if one[1] is None]
    assert {job: reason for job, _, reason in said} == {0.0: "", 60.0: "sleep: it took longer than 15 s"}
    (said,) = run_isolated(_fill, [2**28], Limits(60, 2**30), 1)
    assert "GiB of memory" in said[2]


# What is said of the runs


def row(author: float, own: float, chance: float | None = 1.0) -> Row:
    results = {"default": Result(0.1, {0: author}), "own": Result(0.1, {0: own})}
    return Row("a:b", chance, 1, results)


def test_verdicts() -> None:
    """One seed: a tenth of the author's loss and a hundredth of chance are noise."""
    assert row(0.5, 0.559).verdict("own") == "same" and row(0.5, 0.561).verdict("own") == "worse"
    assert row(0.5, 0.441).verdict("own") == "same" and row(0.5, 0.439).verdict("own") == "better"
    assert row(0.001, 0.01).verdict("own") == "same"
    assert row(0.5, 0.95).verdict("own") == "at chance" and row(0.5, 0.949).verdict("own") == "worse"
    assert row(0.96, 0.99).verdict("own") == "same"  # the author's start does not learn it either
    assert row(0.96, 0.5).verdict("own") == "better"
    assert row(0.5, math.inf).verdict("own") == "at chance" and row(math.inf, 0.5).verdict("own") == "better"
    assert row(math.inf, math.inf, None).verdict("own") == "same" and row(1.0, math.inf, None).verdict("own") == "worse"
    lost = Row("a:b", None, 1, {"default": Result(0.1, {0: 1.0}), "own": Result(failed="why")})
    assert totals([lost, row(0.5, 0.5)], "own") == {
        **dict.fromkeys(VERDICTS, 0),
        "same": 1,
        "failed": 1,
    }


def test_a_result_that_lacks_rates_is_unfinished() -> None:
    author, own = Result(0.1, {0: 0.5}, frozenset({0.1, 0.2})), Result(0.1, {0: 0.5}, frozenset({0.1}))
    assert Row("a:b", 1.0, 1, {"default": author, "own": own}).verdict("own") == "unfinished"


def test_several_seeds_must_agree() -> None:
    author = Result(0.1, {0: 0.3, 1: 0.5, 2: 0.4})
    agreed = Result(0.1, {0: 0.2, 1: 0.4, 2: 0.3})  # each 0.1 less
    split = Result(0.1, {0: 0.1, 1: 0.55, 2: 0.1})  # on average 0.15 less, between +0.05 and −0.3
    found = Row("a:b", 1.0, 1, {"default": author, "agreed": agreed, "split": split})
    assert found.verdict("agreed") == "better" and found.verdict("split") == "same"


def test_the_best_rate_is_that_with_the_lowest_mean() -> None:
    runs = {0.1: (1.0, 3.0), 0.2: (1.5, 1.5), 0.3: (0.1, None)}
    records = [
        {"lr": rate, "seed": seed, "last": last, "certificate": "passed"}
        for rate, lasts in runs.items()
        for seed, last in enumerate(lasts)
    ]
    found = best(records)
    assert (found.rate, found.mean, found.edge) == (0.2, 1.5, False)
    again = [{"failed": "why", "seed": 0}, *records]
    assert best([*records, {"failed": "why", "seed": 0}, {**records[1]}]).failed == "why"
    assert best(again) == found and best([*records, again[0]]).failed == "why"
    assert math.isinf(best([{"lr": 0.1, "seed": 0, "last": None, "certificate": None}]).mean)


def test_a_results_folder_is_one_of_a_zoo(run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"suite": "digits"}')
    code, _, err = run(f"bench zoo --models small:kan -q -o {tmp_path}")
    assert code == 2 and "zoo was None and is True" in err


def test_the_page_of_the_docs_is_that_of_its_runs() -> None:
    folder = Path(__file__).parent.parent / "docs" / "universal"
    page = (folder / "zoo.md").read_text(encoding="utf-8")
    assert page == markdown(rows(read_runs(folder)), read_config(folder), "zoo.png")
    quoted = (folder.parent / "universal.md").read_text(encoding="utf-8")
    assert page[page.index("| model |") :].strip() in quoted


def test_a_missing_library_is_told_before_anything_is_trained(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(f"bench zoo --models small:kan -q -o {tmp_path}")
    assert code == 2 and "matplotlib is not installed" in err and "--plots none" in err
    assert list(tmp_path.iterdir()) == []
