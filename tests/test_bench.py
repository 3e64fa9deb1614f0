"""`idfx bench train`: data, models, choice of the rate, statistics, and a results directory that outlives kills."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

from idfx.bench.data import Data, Tensors, crop_flip, generator_of, load_data, split
from idfx.bench.data.texts import corpus
from idfx.bench.models import MODELS, Task, build_model
from idfx.bench.runs import RunsFile, read_runs
from idfx.bench.starts import begin, starts
from idfx.bench.statistics import choose, compare, holm
from idfx.bench.study import Study, chosen, ready
from idfx.bench.suites import Settings, Suite, read_suite, suite_names
from idfx.bench.summary import markdown
from idfx.bench.training import Run, loss_of, optimiser_of, train
from idfx.bench.watching import Watch
from idfx.core.errors import UsageError

TINY = """
about = "small"
data = "digits"
epochs = 2
lr = [0.1, 0.01]
schemes = ["default", "kaiming", "rezero", "idinit"]
seeds = 3
[models.mlp]
build = "mlp(depth=3, width=16)"
[models.resmlp]
build = "resmlp(depth=4, width=8)"
"""
# default, kaiming and idinit on both models, rezero on the residual one: 4 of selection and 1 more on each
RUNS = 7 * 5
CPU = torch.device("cpu")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def without_times(records: list[dict]) -> list[dict]:
    kept = [{key: value for key, value in record.items() if key != "seconds"} for record in records]
    return sorted(kept, key=lambda record: json.dumps(record, sort_keys=True))


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "idfx", "bench", "train", "--suite", "tiny.toml", "--plots", "none", *words]


# The results directory


def test_a_study_killed_in_the_middle_goes_on_and_ends_like_one_that_was_not(run, tiny):
    words = program("-o", "killed", "--jobs", "2")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = Path("killed/runs.jsonl")
    limit = time.monotonic() + 60
    while not file.exists() or file.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    limit = time.monotonic() + 60
    while any(_alive(int(child)) for child in children):  # nobody trains on for a file that nobody writes
        assert len(children) >= 2 and time.monotonic() < limit
        time.sleep(0.01)
    before = file.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert 4 <= whole.count(b"\n") < RUNS
    file.write_bytes(whole + b'{"suite": "tiny", "model": "mlp", "sch')  # what a kill in the middle of a write leaves
    code, out, _ = run("bench train -o killed --plots none -q --json")
    assert (code, json.loads(out)) == (0, {"output": "killed", "done": RUNS, "total": RUNS})
    assert file.read_bytes().startswith(whole)

    code, out, _ = run("bench train --suite tiny.toml -o whole --plots png")
    assert code == 0 and f"{RUNS} of {RUNS} runs" in out
    records = read_runs("whole")
    assert without_times(read_runs("killed")) == without_times(records)
    runs = [record for record in records if "lr" in record]
    keys = [tuple(record[key] for key in ("model", "scheme", "lr", "seed")) for record in runs]
    assert len({*keys}) == len(keys) == RUNS
    wanted = {"suite", "model", "scheme", "seed", "lr", "weight_decay", "epochs", "seconds", "diverged", "versions"}
    assert all(wanted <= record.keys() for record in runs)
    lasted = [record for record in runs if not record["diverged"]]
    assert all(len(record["test_accuracy"]) == len(record["train_loss"]) == 2 for record in lasted)
    left_out = [record for record in records if record.get("applies") is False]
    assert [(r["model"], r["scheme"]) for r in left_out] == [("mlp", "rezero")]
    assert left_out[0]["reason"] == "it writes nothing in this model"
    assert "`rezero` was not run: it writes nothing in this model." in Path("whole/summary.md").read_text()
    pictures = sorted(path.name for path in Path("whole").glob("*.png"))
    assert pictures == ["mlp-curves.png", "mlp-rates.png", "resmlp-curves.png", "resmlp-rates.png"]
    assert min(min(Image.open(f"whole/{name}").size) for name in pictures) > 300


def test_ctrl_c_leaves_whole_lines_and_says_how_to_go_on(tiny):
    process = subprocess.Popen(program("-o", "out"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    while b"[2/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.decode().splitlines()[-1]
    assert last.startswith("idfx: interrupted; ") and last.endswith("Resume with `idfx bench train -o out`.")
    lines = Path("out/runs.jsonl").read_text().splitlines()
    assert len(lines) >= 2 and all(isinstance(json.loads(line), dict) for line in lines)


def test_a_directory_begun_otherwise_is_refused_with_what_differs_and_may_grow(run, tiny):
    start = "bench train --suite tiny.toml --plots none -q -o out --models mlp --seeds 2"
    assert run(f"{start} --lr-grid 0.1 --epochs 1 --schemes default")[0] == 0
    first = Path("out/runs.jsonl").read_bytes()
    for words, told in (
        ("--lr-grid 0.2 --epochs 1 --schemes default", "models.mlp.lr was [0.1] and is [0.2]"),
        ("--lr-grid 0.1 --epochs 2 --schemes default", "models.mlp.epochs was 1 and is 2"),
        ("--lr-grid 0.1 --epochs 1 --schemes kaiming", "schemes: default is missing"),
        ("--lr-grid 0.1 --epochs 1 --schemes default --watch", "watch was False and is True"),
    ):
        code, _, err = run(f"{start} {words}")
        assert code == 2 and f"started with a different configuration: {told}; expected the same one." in err
    changed = json.loads(Path("out/config.json").read_text())
    real = changed["versions"]["torch"]
    changed["versions"]["torch"] = "1.0"
    Path("out/config.json").write_text(json.dumps(changed))
    assert f"versions.torch was '1.0' and is '{real}'" in run("bench train -o out")[2]
    changed["versions"]["torch"] = real
    Path("out/config.json").write_text(json.dumps(changed))
    assert Path("out/runs.jsonl").read_bytes() == first

    code, _, err = run(f"{start[:-1]}3 --lr-grid 0.1 --epochs 1 --schemes idinit,default")
    assert (code, err) == (0, "") and Path("out/runs.jsonl").read_bytes().startswith(first)
    keys = [(record["scheme"], record["seed"]) for record in read_runs("out")]
    assert keys == [
        *((scheme, seed) for seed in (0, 1) for scheme in ("default",)),
        ("default", 2),
        *(("idinit", seed) for seed in range(3)),
    ]

    text = Path("out/runs.jsonl").read_text()
    plan = next(record["plan"] for record in read_runs("out") if record["scheme"] == "idinit")
    Path("out/runs.jsonl").write_text(text.replace(plan, "0" * 16))
    code, _, err = run("bench train -o out")
    assert code == 2 and f"idinit on mlp had the plan {'0' * 16} and has {plan} now" in err


def test_a_wider_grid_goes_on_and_chooses_anew(run, tiny):
    start = "bench train --suite tiny.toml --plots none -q -o out --models mlp --seeds 3 --epochs 1 --schemes default"
    assert run(f"{start} --lr-grid 1e-9")[0] == 0
    first = Path("out/runs.jsonl").read_bytes()
    code, out, _ = run(f"{start} --lr-grid 0.1,1e-9 --json")
    # two seeds at the new rate and, as nothing is learnt at the old one, the third; its old one is not of the plan now
    assert (code, json.loads(out)) == (0, {"output": "out", "done": 5, "total": 5})
    assert Path("out/runs.jsonl").read_bytes().startswith(first)
    assert [(r["lr"], r["seed"]) for r in read_runs("out")] == [
        *((1e-9, s) for s in range(3)),
        *((0.1, s) for s in range(3)),
    ]
    (tiny / "tiny.toml").write_text(TINY.replace('about = "small"', 'about = "a wider grid"'))
    assert run(f"{start} --lr-grid 0.1,1e-9")[0] == 0  # what a study is for may be said otherwise
    assert json.loads(Path("out/config.json").read_text())["about"] == "a wider grid"
    code, _, err = run(f"{start} --lr-grid 0.1")
    assert code == 2 and "models.mlp.lr was [0.1, 1e-09] and is [0.1]" in err


def test_words_behind_a_scheme_change_what_it_writes(run, tiny):
    start = "bench train --suite tiny.toml --plots none -q -o out --models mlp --seeds 2 --lr-grid 0.1 --epochs 1"
    schemes = "kaiming,kaiming + role:head=keep,kaiming + role:head=0 + role:bias=keep,kaiming + role:tail=keep"
    assert run([*start.split(), "--schemes", schemes])[0] == 0
    plans = {record["scheme"]: record["plan"] for record in read_runs("out")}
    assert len({*plans.values()}) == 4 and plans["kaiming + role:tail=keep"] == ""
    told = next(r["reason"] for r in read_runs("out") if r["scheme"] == "kaiming + role:tail=keep")
    assert "set role:tail: nothing in this model has that role" in told
    code, _, err = run([*start.split(), "--schemes", "kaiming + role:head"])
    assert code == 2 and "--set 'role:head': expected PATTERN=FILL" in err


def test_one_process_writes_at_a_time_and_a_broken_line_is_an_error(tmp_path):
    with RunsFile(tmp_path) as runs:
        runs.append({"seed": 0})
        with pytest.raises(UsageError, match="another process is writing to it"):
            RunsFile(tmp_path)
    file = tmp_path / "runs.jsonl"
    file.write_bytes(b'{"seed": 0}\n{"seed": \n{"seed": 2}\n')
    with pytest.raises(UsageError, match=r"runs\.jsonl, line 2: not a JSON object"):
        RunsFile(tmp_path)
    file.write_bytes(b'{"seed": 0}\n{"seed": 1}')
    with RunsFile(tmp_path) as runs:
        assert runs.records == [{"seed": 0}]
        runs.append({"seed": 2})
    assert file.read_bytes() == b'{"seed": 0}\n{"seed": 2}\n'


def test_a_budget_begins_no_run_that_would_not_end_in_time(run, tiny):
    code, _, err = run("bench train --suite tiny.toml --plots none -o out --budget 0.001")
    assert code == 0 and "note: the budget of 0.001 s is used; " in err
    began = time.perf_counter()
    code, out, _ = run("bench train --suite tiny.toml --plots none -o whole -q --json")
    whole = time.perf_counter() - began
    assert code == 0 and json.loads(out)["done"] == RUNS
    code, out, _ = run(f"bench train -o out --plots none --budget {whole / 2} -q --json")
    assert code == 0 and 0 < json.loads(out)["done"] < RUNS


# What is said on the command line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("-o out", "-o out: there is no study here to resume; expected --suite. See docs/bench.md."),
        ("-o out --suite digit", "--suite digit: unknown; expected"),
        ("-o out --suite no.toml", "--suite no.toml: No such file or directory; expected a TOML file."),
        ("-o out --suite tiny.toml --schemes idinti", "scheme 'idinti': unknown; expected"),
        ("-o out --suite tiny.toml --schemes idinit(epps=1)", "unknown option 'epps'"),
        ("-o out --suite tiny.toml --schemes default,,zero", "expected comma-separated names"),
        (
            "-o out --suite tiny.toml --models ml",
            "--models ml: unknown; expected some of mlp, resmlp. Did you mean mlp",
        ),
        ("-o out --suite tiny.toml --lr-grid 0.1,x", "expected comma-separated numbers"),
        ("-o out --suite tiny.toml --lr-grid 0.1,0.1", "expected different numbers"),
        ("-o out --suite tiny.toml --seeds 0", "0 is not in the range x>=1"),
        ("-o tiny.toml --suite tiny.toml", "-o tiny.toml: this is not a folder"),
        ("-o . --suite tiny.toml", "-o .: has other files; expected a new folder or that of a study."),
        ("-o out --suite cifar10", "data cifar10: no --data; expected the folder that contains cifar-10-batches-py."),
        ("-o out --suite cifar10 --data .", "cifar-10-batches-py is missing or incomplete"),
        ("-o out --suite imagenet --data .", "data imagefolder: .; expected a folder with train/CLASS/FILE"),
        ("-o out --suite sst2 --data .", "data sst2: .: no train.tsv and no dev.tsv; expected a folder with"),
        ("-o out --suite trec6", "data trec6: no --data; expected a folder with train_5500.label and TREC_10.label."),
    ],
)
def test_errors_are_one_line_that_says_what_to_do_and_leave_nothing(run, tiny, words, told):
    code, out, err = run(f"bench train {words}")
    assert (code, out) == (2, "") and told in err and err.count("\n") == 1
    assert sorted(path.name for path in tiny.iterdir()) == ["tiny.toml"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("epochs = 2.5", "suite odd: models → a: epochs is 2.5; expected a whole number"),
        ("epochs = 0", "epochs is 0; expected a number from 1"),
        ("epoch = 2", "unknown key 'epoch'; expected build, data, epochs"),
        ('optimiser = "lion"', "optimiser is 'lion'; expected 'sgd', 'adam' or 'adamw'"),
        ("lr = [0.1, -1]", "lr → 1 is -1; expected a number above 0"),
        ("seeds = 0", "suite odd: seeds is 0; expected a number from 1"),
    ],
)
def test_a_suite_that_cannot_be_read_says_why(tmp_path, change, told):
    (tmp_path / "odd.toml").write_text(f'data = "digits"\n{change}\n[models.a]\nbuild = "mlp"\n')
    with pytest.raises(UsageError) as error:
        read_suite(str(tmp_path / "odd.toml"))
    assert told in str(error.value)


def test_the_suites_that_come_along_name_models_and_data_that_exist():
    from idfx.bench.data import DATA

    for name in suite_names():
        for settings in read_suite(name).models.values():
            assert settings.data.partition("(")[0] in DATA
            assert settings.build.startswith("timm:") or settings.build.partition("(")[0] in MODELS
            assert settings.epochs >= 5 and len(settings.grid) >= 3


# The choice of the rate


def record(scheme: str, lr: float, seed: int, validation: float, test: float = 0.5, diverged: bool = False) -> dict:
    curves = {"validation_accuracy": [validation], "validation_loss": [1 - validation], "test_accuracy": [test]}
    curves |= {"test_loss": [1 - test], "train_loss": [0.1], "certificate": "passed", "plan": scheme, "seconds": 1.0}
    if diverged:
        curves |= {name: [] for name in ("validation_accuracy", "validation_loss", "test_accuracy", "test_loss")}
    key = {"model": "m", "scheme": scheme, "lr": lr, "weight_decay": 0.0, "seed": seed}
    return {**key, **curves, "diverged": diverged}


def study(schemes: tuple[str, ...] = ("default", "idinit"), seeds: int = 5, full: bool = False) -> Study:
    settings = Settings(build="mlp", data="digits", lr=(0.3, 0.1, 0.03))
    return Study(Suite("s", "", {"m": settings}, schemes, seeds), full=full)


def test_the_rate_is_chosen_on_validation_alone_and_on_the_seeds_of_the_choice_alone():
    scores = {(0.3, 0): 0.9, (0.3, 1): 0.6, (0.1, 0): 0.8, (0.1, 1): 0.8, (0.03, 0): 0.7, (0.03, 1): 0.7}
    rng = random.Random(0)
    for _ in range(20):  # whatever the test figures and those of other seeds are
        runs = [record("default", lr, seed, value, rng.random()) for (lr, seed), value in scores.items()]
        runs += [record("default", lr, seed, 1.0, 1.0) for lr in (0.3, 0.03) for seed in (2, 3)]
        assert chosen(study(), runs, "m", "default") == (0.1, 0.0)
    lost = [record("default", *key, value, diverged=key == (0.1, 1)) for key, value in scores.items()]
    assert chosen(study(), lost, "m", "default") == (0.3, 0.0)
    tied = [record("default", lr, 0, 0.5) for lr in (0.3, 0.03, 0.1)]
    assert choose(tied) == (0.03, 0.0)
    tied[0]["validation_loss"] = [0.2]
    assert choose(tied) == (0.3, 0.0)


def test_the_remaining_seeds_wait_for_the_choice():
    from idfx.bench.starts import Start

    plain = {("m", "default"): Start("default"), ("m", "idinit"): Start("", "it cannot be planned")}
    first = list(ready(study(), plain, []))
    assert {(run.scheme, run.lr, run.seed) for run in first} == {
        ("default", lr, seed) for lr in (0.3, 0.1, 0.03) for seed in (0, 1)
    }
    done = [record("default", run.lr, run.seed, run.lr) for run in first[:-1]]
    assert list(ready(study(), plain, done)) == [first[-1]]
    assert list(ready(study(), plain, done, [first[-1]])) == []
    done.append(record("default", first[-1].lr, first[-1].seed, first[-1].lr))
    rest = list(ready(study(), plain, done))
    assert rest == [Run("m", "default", 0.3, 0.0, seed) for seed in (2, 3, 4)]
    assert study().planned == len(first) + len(rest)
    assert len(list(ready(study(full=True), plain, []))) == study(full=True).planned == 15


# Statistics


def test_the_paired_comparison_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    for count in (2, 5, 8):
        a, b = rng.normal(size=count), rng.normal(0.3, size=count)
        found = compare(dict(enumerate(a)), {**dict(enumerate(b)), 99: 1.0})
        assert found is not None and found.seeds == count
        d = a - b
        error = np.std(d, ddof=1) / math.sqrt(count)
        assert found.difference == pytest.approx(d.mean())
        assert found.effect == pytest.approx(d.mean() / np.std(d, ddof=1))
        assert found.t == pytest.approx(2 * stats.t.sf(abs(d.mean() / error), count - 1))
        # the interval holds exactly those shifts that the test does not refuse at 5%
        for edge in (found.low, found.high):
            assert 2 * stats.t.sf(abs((d.mean() - edge) / error), count - 1) == pytest.approx(0.05)
        ranks = np.argsort(np.argsort(abs(d))) + 1
        least = min(ranks[d > 0].sum(), ranks[d < 0].sum())
        every = [sum(r for r, sign in zip(ranks, signs, strict=True) if sign) for signs in
                 itertools.product((0, 1), repeat=count)]  # fmt: skip
        assert found.wilcoxon == pytest.approx(min(1.0, 2 * np.mean([total <= least for total in every])))
    assert compare({0: 1.0}, {0: 2.0}) is None
    same = compare({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same is not None and (same.difference, same.t, same.wilcoxon) == (0.0, 1.0, 1.0)


def test_holm_refuses_what_the_step_down_procedure_refuses():
    rng = np.random.default_rng(1)
    for _ in range(50):
        values = list(rng.uniform(0, 0.1, size=6))
        corrected = holm([*values, math.nan])
        assert math.isnan(corrected[-1])
        for level in (0.01, 0.05, 0.1):
            refused = set()
            for rank, at in enumerate(np.argsort(values)):  # stop at the first that is above its own level
                if values[at] > level / (len(values) - rank):
                    break
                refused.add(int(at))
            assert {at for at, value in enumerate(corrected[:-1]) if value <= level} == refused


def test_the_summary_tells_mean_spread_epochs_and_what_did_not_run():
    scores = {"default": [0.5, 0.6, 0.7, 0.55, 0.65], "idinit": [0.9, 0.8, 0.95, 0.85, 0.0]}
    runs = []
    for scheme, values in scores.items():
        for lr, seed in itertools.product((0.3, 0.1, 0.03), (0, 1)):
            runs.append(record(scheme, lr, seed, 0.9 if lr == 0.1 else 0.1, values[seed] if lr == 0.1 else 0.99))
        runs += [record(scheme, 0.1, seed, 0.1, values[seed], diverged=not values[seed]) for seed in (2, 3, 4)]
    text = markdown(study(), runs, 18, 18, {})
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    table = {line.split("`")[1]: [cell.strip() for cell in line.split("|")] for line in text.splitlines()
             if line.startswith("| `") and "(n = " in line}  # fmt: skip
    assert len(lines) == len(table) == 2
    for scheme, values in scores.items():
        assert table[scheme][3] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} (n = 5)"
        assert table[scheme][2] == "0.1"
    assert table["idinit"][6] == "1" and table["idinit"][5] == "1 (1 to never), 1 never"
    level = 0.9 * statistics.fmean(scores["idinit"])
    assert f"epochs to {level:.3f} (90% of the best)" in text
    p = stats.ttest_rel(scores["idinit"], scores["default"]).pvalue
    assert table["idinit"][9] == table["idinit"][10] == f"{p:.2g}"
    assert "0.990" not in text  # a test figure of a rate that was not chosen
    few = markdown(study(seeds=3), runs, 14, 14, {})
    assert "(n = 3†)" in few and "**3 seeds are too few: for orientation only.**" in few


# Training


class Spy:
    """Samples that remember which were asked for, in training and in measuring."""

    def __init__(self, samples: Tensors) -> None:
        self.samples, self.trained, self.measured = samples, [], []

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, numbers, generator):
        x, y = self.samples.take(numbers, generator)
        (self.measured if generator is None else self.trained).append((numbers.tolist(), x))
        return x, y


def watched_data() -> tuple[Data, Spy, Spy]:
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 4
    train_part, test_part = Spy(Tensors(x, y, "crop-flip", 2)), Spy(Tensors(x + 1, y))
    return Data(Task("images", (1, 8, 8), 4), train_part, test_part), train_part, test_part


SETTINGS = Settings(build="resmlp(depth=4, width=8)", data="none", epochs=2, batch=8, lr=(0.1,), validation=0.25)


def test_schemes_of_a_seed_meet_the_same_batches_and_other_seeds_others():
    seen = {}
    for scheme, seed in itertools.product(("default", "kaiming", "rezero", "idinit"), (0, 1)):
        data, train_part, _ = watched_data()
        train(SETTINGS, data, Run("m", scheme, 0.1, 0.0, seed), CPU)
        held = {number for numbers, _ in train_part.measured[1:] for number in numbers}
        used = [number for numbers, _ in train_part.trained for number in numbers]
        assert len(held) == 10 and not held & {*used}
        assert len(train_part.trained) == 2 * (30 // 8)
        seen[scheme, seed] = train_part.trained
    for seed in (0, 1):
        first = seen["default", seed]
        for scheme in ("kaiming", "rezero", "idinit"):
            other = seen[scheme, seed]
            assert [numbers for numbers, _ in other] == [numbers for numbers, _ in first]
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(other, first, strict=True))
    assert [numbers for numbers, _ in seen["default", 0]] != [numbers for numbers, _ in seen["default", 1]]


def test_the_default_start_is_the_same_whatever_other_schemes_draw():
    data = watched_data()[0]
    example = data.train.take(torch.arange(2), None)[0]
    kept = [dict(begin(SETTINGS.build, data.task, example, scheme, 3)[0].named_parameters()) for scheme in
            ("default", "rezero")]  # fmt: skip
    assert torch.equal(kept[0]["1.weight"], kept[1]["1.weight"])
    torch.manual_seed(3)
    assert torch.equal(kept[0]["1.weight"], build_model(SETTINGS.build, data.task)[1].weight)


def test_learned_scalars_train_and_only_matrices_decay():
    data = watched_data()[0]
    x, y = data.train.take(torch.arange(16), None)
    model, said = begin(SETTINGS.build, data.task, x[:2], "rezero", 0)
    assert said["certificate"] == "passed"
    optimiser = optimiser_of(model, SETTINGS.optimiser, 0.1, 0.5, 0.0)
    held = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    decaying = {id(p) for group in optimiser.param_groups if group["weight_decay"] for p in group["params"]}
    assert decaying == {id(p) for p in model.parameters() if p.dim() >= 2}
    alpha = next(p for name, p in model.named_parameters() if name.endswith("alpha"))
    loss_of(model(x), y).backward()
    optimiser.step()
    assert alpha.item() != 0


def test_a_run_that_diverges_is_recorded_as_such():
    data = watched_data()[0]
    found = train(SETTINGS, data, Run("m", "default", 1e30, 0.0, 0), CPU)
    assert found["diverged"] and len(found["train_loss"]) < 2
    json.dumps(found, allow_nan=False)


def test_watching_changes_nothing_and_counts_dead_units():
    data = watched_data()[0]
    run = Run("m", "idinit", 0.1, 0.0, 0)
    plain, watched = train(SETTINGS, data, run, CPU), train(SETTINGS, data, run, CPU, watch=True)
    looks, shapes = watched.pop("watch"), watched.pop("isometry")
    assert len(shapes) == 2 and all(shape["chi"] > 0 for shape in shapes)
    assert {**plain, "seconds": 0} == {**watched, "seconds": 0} and len(looks) == 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        net[1].bias[:2] = -1e6  # these never fire
        net[3].weight[:, 2] = 0  # nothing of this one is read
    samples = Tensors(*data.train.take(torch.arange(40), None))
    found = Watch(samples, CPU).look(net, ranks=True)
    assert (found["1.weight"]["units"], found["1.weight"]["dead"]) == (6, 3)
    assert (found["3.weight"]["dead"], found["3.weight"]["rank"]) == (0, 4)
    x, y = samples.take(torch.arange(40), None)
    loss_of(net(x), y).backward()
    assert found["3.weight"]["gradient"] == pytest.approx(float(net[3].weight.grad.norm()), rel=1e-4)
    told = Watch(samples, CPU).isometry(net)
    four = samples.take(torch.randperm(40, generator=generator_of("watch"))[:4], None)[0]
    values = torch.linalg.svdvals(torch.autograd.functional.jacobian(net, four).reshape(16, 256).double())
    assert told["chi"] == pytest.approx(float(values.square().mean()), rel=1e-3)
    assert told["largest"] == pytest.approx(float(values.max()), rel=1e-4) and told["block_chi"] is None


def test_a_scheme_that_does_nothing_of_its_own_says_so():
    data = load_data("digits")
    example = data.train.take(torch.arange(2), None)[0]
    schemes = ("default", "kaiming", "zero-gamma", "skipinit", "rezero", "mimetic", "kaiming(mode=fan_in)")
    plain = starts("resnet(depth=8, norm=false)", data.task, example, schemes)
    assert [name for name, start in plain.items() if start.applies] == ["default", "kaiming", "skipinit", "rezero"]
    assert plain["zero-gamma"].reason == plain["kaiming(mode=fan_in)"].reason
    assert plain["zero-gamma"].reason == "in this model it writes exactly what kaiming writes"
    assert starts("resnet(depth=8)", data.task, example, schemes)["zero-gamma"].applies
    alone = starts("resnet(depth=8, norm=false)", data.task, example, ("zero-gamma",))
    assert not alone["zero-gamma"].applies


# Models


TASKS = {
    "images": Task("images", (3, 16, 16), 7),
    "signals": Task("signals", (1, 16), 7),
    "sequences": Task("sequences", (12,), 5, 30),
    "language": Task("language", (12,), 30, 30),
    "masked": Task("masked", (12,), 30, 31),
}
KINDS = {
    "gpt": "language",
    "bert": "masked",
    **dict.fromkeys(("textcnn", "textrnn", "encoder"), "sequences"),
    **dict.fromkeys(("conv1d", "resnet1d", "transformer1d", "rnn1d"), "signals"),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_models_give_logits_and_every_parameter_a_gradient_and_refuse_other_data(name):
    task = TASKS[KINDS.get(name, "images")]
    torch.manual_seed(0)
    net = build_model(name, task)
    x = torch.randint(0, task.vocabulary, (2, *task.shape)) if task.vocabulary else torch.randn(2, *task.shape)
    logits = net(x)
    assert logits.shape == (2, *(task.shape if task.kind in ("language", "masked") else ()), task.classes)
    logits.square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    other = TASKS["sequences" if task.kind == "images" else "images"]
    with pytest.raises(UsageError, match=f"model {name}: the data is of the kind {other.kind}; expected {task.kind}"):
        build_model(name, other)


def test_the_resnet_has_the_size_of_the_paper():
    """He et al. count 0.27 M for ResNet-20 on CIFAR-10: 269,722, and here two projections with their norms more."""
    net = build_model("resnet(depth=20)", Task("images", (3, 32, 32), 10))
    assert sum(p.numel() for p in net.parameters()) == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convs) == 19
    plain = build_model("convnet(depth=20)", Task("images", (3, 32, 32), 10))
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in plain.modules()) == 20


def test_a_gpt_reads_backwards_only_and_a_bert_both_ways():
    for name, kind, reads in (("gpt", "language", False), ("bert", "masked", True)):
        torch.manual_seed(0)
        net = build_model(name, TASKS[kind]).eval()
        x = torch.randint(0, 30, (1, 12))
        other = x.clone()
        other[0, 8] = (x[0, 8] + 1) % 30
        assert torch.equal(net(x)[0, :8], net(other)[0, :8]) is not reads
        assert not torch.equal(net(x)[0, 8:], net(other)[0, 8:])


def test_a_model_of_a_source_gets_the_classes_and_channels_of_the_data():
    task = Task("images", (1, 32, 32), 10)
    torch.manual_seed(5)
    first = build_model("timm:test_resnet", task)
    assert first(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    torch.manual_seed(6)
    other = build_model("timm:test_resnet(num_classes=3)", task)
    assert other(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_unknown_models_and_options_are_refused():
    for text, told in (("resnett", "Did you mean resnet"), ("resnet(dept=3)", "unknown option 'dept'")):
        with pytest.raises(UsageError, match=told):
            build_model(text, TASKS["images"])
    with pytest.raises(UsageError, match="unknown option 'blok'"):
        load_data("topics(blok=3)")


# Data


def test_digits_are_split_without_overlap_the_same_way_for_each_seed():
    data = load_data("digits")
    parts = {}
    for seed in (0, 1):
        seen, held = split(data, seed, 0.15)
        assert (len(seen), len(held), len(data.test)) == (1145, 202, 450)
        rows = [{tuple(row) for row in part.take(torch.arange(len(part)), None)[0].flatten(1).tolist()} for part in
                (seen, held, data.test)]  # fmt: skip
        assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
        assert torch.equal(held.numbers, split(data, seed, 0.15)[1].numbers)
        parts[seed] = {*held.numbers.tolist()}
    assert parts[0] != parts[1]


def test_crop_and_flip_is_that_of_loops():
    x = torch.randn(50, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    found = crop_flip(x, 2, generator_of("test"))
    padded = torch.zeros(50, 2, 9, 10)
    padded[:, :, 2:7, 2:8] = x
    seen = set()
    for image, whole in zip(found, padded, strict=True):
        ways = {}
        for top, left, flip in itertools.product(range(5), range(5), (False, True)):
            part = whole[:, top : top + 5, left : left + 6]
            ways[top, left, flip] = part.flip(2) if flip else part
        seen |= {way for way, expected in ways.items() if torch.equal(image, expected)}
        assert any(torch.equal(image, expected) for expected in ways.values())
    assert len(seen) > 25 and {flip for _, _, flip in seen} == {False, True}


def test_the_corpus_is_large_and_its_windows_ask_for_the_next_character():
    text = corpus()
    assert len(text) > 500_000 and text == corpus()
    letters = sorted({*text})
    data = load_data("topics(block=32)")
    assert data.task.vocabulary == len(letters) and len(data.facts["sha256"]) == 64
    told = {}
    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        x, y = part.take(torch.arange(len(part)), None)
        assert torch.equal(x[:, 1:], y[:, :-1])
        told[name] = {"".join(letters[number] for number in row) for row in torch.cat((x, y[:, -1:]), 1).tolist()}
        assert all(window in text for window in itertools.islice(told[name], 20))
    assert 0.08 < len(data.test) / (len(data.train) + len(data.test) + len(data.validation)) < 0.11
    # windows that recur in the text itself (rules, signatures, examples) are left out of what is not for training
    assert not told["test"] & (told["train"] | told["validation"]) and not told["validation"] & told["train"]


@pytest.mark.parametrize(("name", "extra"), [("topics", 1), ("masked-topics", 0)])
def test_what_training_has_seen_is_left_out_and_nothing_else(name, extra):
    text, block = corpus(), 32
    cut: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for number, start in enumerate(range(0, len(text), 4096)):
        chunk = text[start : start + 4096]
        part = {4: "validation", 9: "test"}.get(number % 10, "train")
        cut[part] += [chunk[at : at + block + extra] for at in range(0, len(chunk) - block - extra + 1, block)]
    seen = {*cut["train"]}
    cut["validation"] = [window for window in cut["validation"] if window not in seen]
    cut["test"] = [window for window in cut["test"] if window not in seen | {*cut["validation"]}]
    letters = sorted({*text})
    data = load_data(f"{name}(block={block})")
    for part, windows in cut.items():
        found = getattr(data, part).x.tolist()
        assert ["".join(letters[number] for number in row) for row in found] == [window[:block] for window in windows]


@pytest.mark.parametrize("name", ["topics", "masked-topics"])
def test_the_first_characters_of_the_corpus_are_a_data_set_of_their_own(name):
    data = load_data(f"{name}(characters=81920)")  # twenty chunks: two for the test, two for validation
    assert data.facts["characters"] == 81920 and data.facts["sha256"] != load_data(name).facts["sha256"]
    windows = {"topics": (4096 - 1) // 64, "masked-topics": 4096 // 64}[name]
    assert len(data.train) == 16 * windows
    for part in (data.validation, data.test):  # a few windows that training has seen are left out
        assert 1.9 * windows < len(part) <= 2 * windows
    for characters in ("1000", "many", "true"):
        with pytest.raises(UsageError, match="expected at least 40960: one chunk in ten is for testing"):
            load_data(f"{name}(characters={characters})")


def test_hidden_characters_are_asked_for_and_no_others():
    data = load_data("masked-topics(block=32)")
    mask = data.task.vocabulary - 1
    plain = data.train.x[:200]
    for generator in (None, generator_of("a")):
        x, y = data.train.take(torch.arange(200), generator)
        hidden = y != -100
        assert torch.equal(x == mask, hidden) and torch.equal(y[hidden], plain[hidden])
        assert torch.equal(x[~hidden], plain[~hidden]) and bool(hidden.any(1).all())
        assert 0.12 < hidden.float().mean().item() < 0.19
    first, again = (data.test.take(torch.arange(50), None)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_files_of_sentences_are_read(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na good film \t1\na bad , bad film \t0\n")
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood unseen\t1\n")
    data = load_data("sst2(length=6)", tmp_path)
    x, y = data.train.take(torch.arange(2), None)
    assert y.tolist() == [1, 0] and (x > 0).sum(1).tolist() == [3, 5]
    assert x[0, 0] == x[1, 0] and x[0, 2] == x[1, 4] and x[1, 1] == x[1, 3]
    test_x, test_y = data.test.take(torch.arange(1), None)
    assert test_y.tolist() == [1] and test_x[0].tolist() == [int(x[0, 1]), 1, 0, 0, 0, 0]
    (tmp_path / "train_5500.label").write_text("DESC:manner How did it end ?\nNUM:date When ?\n", encoding="latin-1")
    (tmp_path / "TREC_10.label").write_text("NUM:dist How far ?\n", encoding="latin-1")
    data = load_data("trec6", tmp_path)
    assert data.task.classes == 2 and data.test.take(torch.arange(1), None)[1].tolist() == [1]
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood\n")
    with pytest.raises(UsageError, match="a line without a label 0 or 1"):
        load_data("sst2", tmp_path)


def test_folders_of_images_are_read_whole_in_measuring_and_in_parts_in_training(tmp_path):
    for part, name in itertools.product(("train", "val"), ("a", "b")):
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((40, 60, 3), 200 if name == "b" else 100, dtype=np.uint8)
            pixels[:, :6], pixels[:, -6:] = 0, 255  # outside of the middle square
            Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    data = load_data("imagefolder(size=8)", tmp_path)
    x, y = data.test.take(torch.arange(4), None)
    assert y.tolist() == [0, 0, 1, 1] and x.shape == (4, 3, 8, 8)
    value = (100 / 255 - 0.485) / 0.229
    assert torch.allclose(x[0, 0], torch.full((8, 8), value), atol=1e-4)
    a, b = (data.train.take(torch.arange(4), generator_of("draw"))[0] for _ in range(2))
    other = data.train.take(torch.arange(4), generator_of("other"))[0]
    assert torch.equal(a, b) and not torch.equal(a, other)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_cifar_is_read_from_its_folder_or_the_one_above(tmp_path, monkeypatch):
    """Batches as the archive has them, of four images; what is not at hand is the sum of their bytes."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name in names:
        pixels = rng.integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(number) for number in range(10)]}))
    data = load_data("cifar10", folder)
    assert (len(data.train), len(data.test), data.task.classes) == (20, 4, 10)
    x, y = data.test.take(torch.arange(4), None)
    assert y.tolist() == [0, 1, 2, 9]
    red = pixels.reshape(4, 3, 32, 32)[:, 0] / 255
    assert np.allclose(x[:, 0].numpy(), (red - 0.485) / 0.229, atol=1e-5)
    assert load_data("cifar10", tmp_path).facts == data.facts
    moved = data.train.take(torch.arange(20), generator_of("a"))[0]
    assert not torch.equal(moved, data.train.take(torch.arange(20), None)[0])
