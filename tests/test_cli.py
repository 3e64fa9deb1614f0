"""The program: its results, its refusals, its exit codes and what it prints where."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from idfx_cli.main import cli, main
from safetensors import safe_open
from safetensors.torch import load_file

import idfx

MAIN = "init timm:test_resnet -o weights.safetensors"
SLOW = "init net.py:slow --input-shape 2,4 -o weights.pt"
COMMANDS = ("analyze", "audit", "bench", "diff", "doctor", "explain", "init", "list", "plan")
BENCH = ("bench speed", "bench train")

FILE = '''
import os
import signal
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))

def make(width=4):
    return Block(width)

def behind():
    """A branch that cannot start at zero: what stands behind its end is frozen at 1."""
    model = Block()
    model.b.bias.requires_grad_(False).fill_(1.0)
    return model

def nan():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].bias.requires_grad_(False).fill_(float("nan"))
    return model

def deaf():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.requires_grad_(False).zero_()
    return model

class Raises(Block):
    def forward(self, x):
        return self.inner(x)

class Inner(nn.Module):
    def forward(self, x):
        raise ValueError("the first line\\nand a second one, " + "long " * 200)

def raises():
    model = Raises()
    model.inner = Inner()
    return model

class Silent(Block):
    def forward(self, x):
        return "no tensor"

class Derives(Block):
    """Runs as any model does, but only where gradients are recorded."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        return x + torch.autograd.grad(self.a(x).square().sum(), x)[0]

class Strange(Block):
    def forward(self, x):
        return x + torch.ops.idfx_test_cli.odd(self.b(torch.relu(self.a(x))))

class Hungry(Block):
    def forward(self, x):
        raise MemoryError("no more")

class Scaled(Block):
    """With what has no axes and what has a trained batch statistic."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean.fill_(0.5)

    def forward(self, x):
        return super().forward(self.norm(x))

def text():
    return "no module"

def hungry():
    raise MemoryError("no more")

def huge():
    return nn.Linear(10**7, 10**7)

def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    return make()

def slow():
    import time
    open("started", "w").close()
    time.sleep(60)
'''


@torch.library.custom_op("idfx_test_cli::odd", mutates_args=())
def _odd(x: torch.Tensor) -> torch.Tensor:
    """An operator that idfx does not know."""
    return x.flip(0)


@_odd.register_fake
def _(x):
    return torch.empty_like(x)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "folder.pt").mkdir()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("idfx_source_")]:
        del sys.modules[name]


@pytest.fixture
def run(capfd):
    """Run the program in this process: exit code, stdout, stderr."""

    def call(line: str, *more: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([*line.split(), *more])
        out, err = capfd.readouterr()
        return int(exit_.value.code or 0), out, err

    return call


def _files() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"net.py", "broken.py", "folder.pt", "__pycache__"}


def _plan(run, spec: str = "net.py:make --input-shape 2,4", name: str = "plan.json") -> dict:
    code, _, _ = run(f"plan {spec} -o {name}")
    assert code == 0
    return json.loads(Path(name).read_text())


# Help, version, and what is not imported


@pytest.mark.parametrize("command", (*(name for name in COMMANDS if name != "bench"), *BENCH))
def test_every_command_has_help_with_an_example_and_the_common_options(run, command):
    code, out, err = run(f"{command} --help")
    assert (code, err) == (0, "")
    assert f"idfx {command} " in out.partition("Example:")[2].partition("Options:")[0]
    assert "--json" in out and "-q, --quiet" in out
    if command not in ("list", "doctor", *BENCH):
        assert "--input-shape" in out and "--model-arg" in out


def test_the_program_has_the_commands_and_options_of_the_issue(run):
    assert tuple(cli.list_commands(None)) == COMMANDS
    assert [name for name in BENCH if name.removeprefix("bench ") not in run("bench --help")[1]] == []
    _, out, _ = run("--help")
    assert all(command in out for command in COMMANDS) and "Example:" in out
    _, out, _ = run("init --help")
    wanted = (
        "-o, --output --scheme --seed --device --dtype --tau --eps --loosen --conv-order --model-arg --input-shape"
        " --plan --strict --no-certify --keep-going --debug --set --only --keep --from"
    )
    assert [option for option in wanted.split() if option not in out] == []
    assert "--dot" in run("analyze --help")[1]


def test_version(run):
    code, out, err = run("--version")
    told = re.fullmatch(
        r"idfx (\S+) \(python (\S+), torch (\S+), torchvision (\S+), timm (\S+), networkx (\S+)\)\n", out
    )
    assert (code, err) == (0, "") and told is not None
    assert told[1] == idfx.__version__ and told[3] == torch.__version__.partition("+")[0]


def test_doctor_says_what_idfx_runs_with(run, tmp_path):
    code, out, err = run("doctor --json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["versions"]["timm"] == timm.__version__ and found["versions"]["idfx"] == idfx.__version__
    assert found["devices"][0] == "cpu" and len(found["devices"]) == 1 + torch.cuda.device_count()
    assert found["threads"] == torch.get_num_threads() and found["tracer"] == "record"
    text = run("doctor")[1]
    assert all(word in text for word in ("python", "devices", found["versions"]["networkx"]))


NOISY = """
import sys
import torch


class Model(torch.nn.Module):
    def __init__(self, ends=None):
        super().__init__()
        print("printed by the constructor")
        self.layer, self.ends = torch.nn.Linear(4, 4), ends

    def forward(self, x):
        print("printed by the forward")
        if self.ends == "exit":
            sys.exit(7)
        return self.forward(x) if self.ends == "never" else self.layer(x)


def noisy():
    return Model()


def exits():
    return Model("exit")


def never_ends():
    return Model("never")


def exits_early():
    sys.exit()


def never_made():
    return never_made()
"""


@pytest.mark.parametrize("command", ["analyze", "plan", "audit", "explain", "init -o weights.pt"])
def test_what_a_model_prints_does_not_get_into_the_result(run, tmp_path, monkeypatch, command):
    (tmp_path / "noisy.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)
    word, *rest = command.split()
    spec = ["noisy.py:noisy", *(["layer.weight"] if word == "explain" else [])]
    code, out, err = run(" ".join([word, *spec, "--input-shape", "1,4", "--json", *rest]))
    json.loads(out)
    assert code == 0 and "printed" not in out
    assert "printed by the constructor" in err and "printed by the forward" in err


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (
            "exits",
            "the model's code ended the program (sys.exit(7)); expected a constructor and a forward that return.",
        ),
        ("exits_early", "the model's code ended the program (sys.exit(None)); expected"),
        ("never_ends", "RecursionError in its own forward"),
        ("never_made", "the factory raised RecursionError"),
    ],
)
def test_a_model_that_does_not_return_is_an_error_that_says_so(run, tmp_path, monkeypatch, factory, told):
    (tmp_path / "noisy.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(f"init noisy.py:{factory} --input-shape 1,4 -o weights.pt")
    assert (code, out) == (2, "") and told in err and not (tmp_path / "weights.pt").exists()
    assert "--input-shape" not in err and "--model-arg" not in err  # inputs and arguments are not the cause


def test_options_of_the_scheme_are_named_where_they_are_not_the_defaults(run, tmp_path, monkeypatch):
    (tmp_path / "noisy.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)

    def scheme(options):
        out = run(f"init noisy.py:noisy --input-shape 1,4 -o weights.pt {options}")[1]
        return next(line for line in out.splitlines() if line.startswith("scheme")).split(maxsplit=1)[1]

    assert scheme("") == "idinit, seed 0"
    assert scheme("--tau 2 --eps 1e-6") == "idinit, seed 0, tau=2"
    assert "depthwise=auto" in scheme("-v")


def test_neither_help_nor_import_loads_anything_heavy():
    code = """
import sys
import idfx
from idfx_cli.main import main
for line in (["--help"], ["init", "--help"], ["--version"]):
    try:
        main(line)
    except SystemExit as error:
        assert not error.code
heavy = {"torch", "timm", "torchvision", "numpy", "networkx", "pydantic", "rich", "safetensors", "transformers"}
sys.exit(", ".join(heavy & {*sys.modules}) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_idfx_is_the_same_program():
    for arguments in (["--help"], ["--version"], ["init"]):
        module = subprocess.run([sys.executable, "-m", "idfx", *arguments], capture_output=True, check=False)
        script = Path(sys.executable).with_name("idfx")
        if not script.exists():
            pytest.skip("idfx is not installed for this Python")
        program = subprocess.run([script, *arguments], capture_output=True, check=False)
        assert (module.returncode, module.stdout, module.stderr) == (
            program.returncode,
            program.stdout,
            program.stderr,
        )


@pytest.mark.parametrize("line", ["--help", "list operators"])
def test_a_reader_that_goes_away_gets_no_traceback(line):
    command = [sys.executable, "-m", "idfx", *line.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


# The main job


@pytest.mark.parametrize(
    ("name", "suffix"), [("test_resnet", ".pt"), ("test_vit", ".pth"), ("test_vit", ".safetensors")]
)
def test_init_writes_a_state_dict_that_loads_strictly(run, name, suffix):
    file = f"weights{suffix}"
    code, out, err = run(f"init timm:{name} -o {file}")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if not line.startswith("kept")] == [
        "model",
        "scheme",
        "written",
        "blocks",
        "signal",
        "gradient",
        "file",
    ]
    assert re.search(r"blocks +(\d+) of \1 residual blocks start as their shortcut; worst deviation", out)
    state = torch.load(file, weights_only=True) if suffix != ".safetensors" else load_file(file)
    fresh = timm.create_model(name)
    fresh.load_state_dict(state, strict=True)
    for buffer, value in fresh.named_buffers():
        assert torch.equal(value, state[buffer])
    first = Path(file).read_bytes()
    assert run(f"init timm:{name} -o again{suffix} -q")[0] == 0
    assert Path(f"again{suffix}").read_bytes() == first
    assert run(f"init timm:{name} -o other{suffix} -q --seed 1")[0] == 0
    assert Path(f"other{suffix}").read_bytes() != first


def test_init_equals_init_in_python(run):
    """The weights of the program are those of `init_` on timm's own model."""
    assert run("init timm:test_resnet -o weights.pt --seed 3")[0] == 0
    model = timm.create_model("test_resnet")
    idfx.init_(model, seed=3)
    state = torch.load("weights.pt", weights_only=True)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_metadata_of_safetensors(run):
    assert run("init timm:test_resnet -o weights.safetensors --seed 5")[0] == 0
    run("plan timm:test_resnet --seed 5 -o plan.json")
    with safe_open("weights.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["scheme"], about["seed"], about["idfx_version"]) == ("idinit", "5", idfx.__version__)
    assert about["plan_sha256"] == idfx.planning.export.digest(idfx.read_plan("plan.json"))


def test_options_reach_the_weights(run):
    line = "init net.py:make --input-shape 2,8 --model-arg width=8 -o weights.pt --tau 0.5 --eps 0.25 --loosen none"
    assert run(f"{line} --dtype float64 --device cpu --scheme idinit --conv-order tap")[0] == 0
    state = torch.load("weights.pt", weights_only=True)
    assert torch.equal(state["a.weight"], 0.5 * torch.eye(8, dtype=torch.float64))
    assert state["b.weight"].unique().tolist() == [-0.25, 0.0, 0.25]


def test_with_eps_0_the_deviation_is_exactly_0(run):
    code, out, _ = run("init timm:test_vit -o weights.pt --eps 0 --json")
    found = json.loads(out)["certificate"]
    assert code == 0 and found["passed"] and found["certified"] == found["joins"] == 12
    assert {(check["deviation"], check["tolerance"]) for check in found["checks"]} == {(0.0, 0.0)}


def test_buffers_are_in_the_file_and_right(run):
    assert run("init net.py:Scaled --input-shape 2,4 -o weights.pt")[0] == 0
    state = torch.load("weights.pt", weights_only=True)
    assert state["norm.running_mean"].tolist() == [0.5] * 4 and int(state["norm.num_batches_tracked"]) == 0


def test_no_certify_runs_nothing(run):
    code, out, _ = run("init net.py:behind --input-shape 2,4 -o weights.pt --no-certify")
    assert code == 0 and "not certified (--no-certify)" in out and Path("weights.pt").exists()


@pytest.mark.parametrize(
    ("factory", "what"),
    [
        ("behind", r"join Block deviates from its shortcut by"),
        ("nan", r"the output holds NaN or Inf"),
        ("deaf", r"two different inputs give the same output"),
    ],
)
def test_a_certificate_that_fails_is_exit_code_1(run, factory, what):
    line = f"init net.py:{factory} --input-shape 2,4 -o weights.pt"
    code, out, err = run(line)
    assert (code, out, _files()) == (1, "", set())
    assert re.search(rf"^idfx: net.py:{factory}: .*{what}.*--keep-going", err) and err.count("\n") == 1
    code, out, err = run(f"{line} --keep-going")
    assert code == 1 and re.search(what, err) and re.search(rf"failed +.*{what}", out)
    assert set(torch.load("weights.pt", weights_only=True)) and _files() == {"weights.pt"}
    code, out, _ = run(f"{line} --keep-going --json")
    assert code == 1 and json.loads(out)["certificate"]["passed"] is False


def test_eps_0_and_a_branch_that_deviates_is_an_error(run):
    code, _, err = run("init net.py:behind --input-shape 2,4 -o weights.pt --eps 0")
    assert code == 1 and "(at most 0)" in err and _files() == set()


def test_strict_refuses_an_unknown_operator(run):
    line = "init net.py:Strange --input-shape 2,4 -o weights.pt"
    code, out, err = run(f"{line} --strict")
    assert (code, out, _files()) == (2, "", set())
    assert re.match(r"idfx: net.py:Strange: 1 unknown operator: idfx_test_cli.odd .*--strict", err)
    code, out, err = run(line)
    assert code == 0 and err.startswith("note: 1 unknown operator: idfx_test_cli.odd") and "unknown" not in out
    assert run(f"{line} -q")[2] == ""
    assert "idfx_test_cli.odd" in run("analyze net.py:Strange --input-shape 2,4 -q")[1]


# The other commands


def test_every_command_speaks_json(run):
    model = "net.py:make --input-shape 2,4 --json"
    lines = {
        f"init {model} -o weights.pt": {"spec", "scheme", "seed", "options", "certificate", "file", "plan_sha256"},
        f"init {model} -o weights.pt --no-certify": {"certificate"},
        f"analyze {model}": {"model", "joins", "sums", "sites", "roles", "unknown", "captured"},
        f"plan {model}": {"idfx_plan", "scheme", "seed", "parameters"},
        f"plan {model} -o plan.json": {"parameters"},
        f"explain {model} a.weight": {"parameter", "role", "sites", "decision", "matrix"},
    }
    for line, keys in lines.items():
        for quiet in ("", " -q"):
            code, out, err = run(line + quiet)
            assert (code, err) == (0, ""), line
            assert set(json.loads(out)) >= keys, line
    for what in ("schemes", "sources", "operators"):
        code, out, err = run(f"list {what} --json")
        assert (code, err) == (0, "")
        assert all(entry["name"] and entry["summary"] for entry in json.loads(out))


def test_analyze_shows_the_structure_and_draws_it(run):
    code, out, err = run("analyze timm:test_resnet --dot graph.dot")
    assert (code, err) == (0, "")
    assert "4 residual joins" in out and "unknown operators: none" in out and "layer1.0.conv2.weight" in out
    assert "wide" in out or "tall" in out
    drawn = Path("graph.dot").read_text()
    assert drawn.startswith("digraph structure {") and drawn.count("shape=circle") == 4
    found = json.loads(run("analyze timm:test_resnet --json")[1])
    assert [join["zeroable"] for join in found["joins"]] == [True] * 4
    assert {"name", "kind", "shortcut", "branch", "ends", "zeroable", "fork"} <= set(found["joins"][0])


def test_analyze_and_plan_write_no_weights(run):
    run("analyze net.py:make --input-shape 2,4")
    run("plan net.py:make --input-shape 2,4")
    run("explain net.py:make a.weight --input-shape 2,4")
    assert _files() == set()


def test_explain_shows_everything_about_a_parameter(run):
    code, out, _ = run("explain net.py:make b.weight --input-shape 2,4")
    assert code == 0
    for label in ("parameter", "role", "site", "fill", "reason", "first 4 rows and 4 columns of 4 × 4"):
        assert label in out
    rows = [line.split() for line in out.partition("4 × 4:")[2].splitlines() if line.strip()]
    assert rows[:2] == [["1e-06", "-1e-06", "0", "0"], ["0", "1e-06", "-1e-06", "0"]]


@pytest.mark.parametrize("what", ["schemes", "sources", "operators"])
def test_list(run, what):
    code, out, err = run(f"list {what}")
    assert (code, err) == (0, "")
    known = {"schemes": ["idinit"], "sources": ["timm", "torchvision", "python"], "operators": ["aten.add"]}
    names = [line.split()[0] for line in out.splitlines()]
    assert [name for name in known[what] if not any(found.startswith(name) for found in names)] == []


# Plans


def test_a_plan_given_back_makes_the_same_file(run):
    _plan(run, "timm:test_resnet --seed 4 --eps 1e-5 --loosen dense --conv-order tap")
    assert run("init timm:test_resnet -o one.safetensors --plan plan.json")[0] == 0
    line = "init timm:test_resnet -o two.safetensors --seed 4 --eps 1e-5 --loosen dense --conv-order tap"
    assert run(line)[0] == 0
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()


def test_an_edited_plan_is_what_is_written(run):
    document = _plan(run)
    entries = document["parameters"]
    entries["b.weight"]["arguments"]["eps"] = 1e-4
    entries["a.bias"]["arguments"]["value"] = 0.5
    entries["b.bias"] = {"shape": [4], "keep": "mine"}
    Path("plan.json").write_text(json.dumps(document))
    code, out, _ = run("init net.py:make --input-shape 2,4 -o weights.pt --plan plan.json --keep-going")
    state = torch.load("weights.pt", weights_only=True)
    assert state["a.bias"].tolist() == [0.5] * 4
    assert state["b.weight"].max().item() == pytest.approx(1e-4)
    assert bool(state["b.bias"].any()) and "mine" in out
    assert code == 1  # nn.Linear's own bias is no zero


def test_a_plan_for_another_model_says_which_parameters_differ(run):
    _plan(run)
    cases = {
        "timm:test_resnet": ("not in the model: a.bias", "not in the plan: bn1.bias"),
        "net.py:make --model-arg width=8 --input-shape 2,8": (r"a.bias is \[8\] in the model and \[4\] in the plan",),
    }
    for spec, parts in cases.items():
        code, out, err = run(f"init {spec} -o weights.pt --plan plan.json")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert all(re.search(part, err) for part in parts) and "idfx plan" in err
    assert _files() == {"plan.json"}


def test_a_plan_with_one_bad_entry_writes_nothing(run):
    document = _plan(run)
    document["parameters"]["b.weight"]["fill"] = "idizz"
    Path("plan.json").write_text(json.dumps(document))
    code, _, err = run("init net.py:make --input-shape 2,4 -o weights.pt --plan plan.json")
    assert code == 2 and "Did you mean idiz" in err and _files() == {"plan.json"}


# Bad input: one line, no traceback, nothing written

GOOD = "init net.py:make --input-shape 2,4 -o weights.pt"
REFUSED = {
    # unknown models, sources, names without a source
    "init timm:resnet5O -o weights.pt": r"timm:resnet5O: unknown model; .*Did you mean .*resnet50",
    "init torchvision:resnet51 -o weights.pt": r"torchvision:resnet51: unknown model; .*Did you mean .*resnet50",
    "init resnet50 -o weights.pt": r"resnet50: no source; .*timm:resnet50 or torchvision:resnet50",
    "init resnt50 -o weights.pt": r"resnt50: no source; .*Did you mean timm:resn",
    "init tim:resnet50 -o weights.pt": r"tim:resnet50: 'tim' is neither .*Did you mean timm",
    "init timm: -o weights.pt": r"timm:: no model name; expected timm:NAME",
    "init timm:test_vit -o weights.pt --model-arg depht=2": r"timm:test_vit: .*depht.*--model-arg",
    # factories
    "init net.py:mak --input-shape 2,4 -o weights.pt": r"there is no 'mak' in .*net.py; .*Did you mean make",
    "init nett.py:make --input-shape 2,4 -o weights.pt": r"there is no file nett.py; .*Did you mean net.py",
    "init net.py --input-shape 2,4 -o weights.pt": r"net.py: no factory;",
    "init net.py:text --input-shape 2,4 -o weights.pt": r"returned an object of type str; expected a torch.nn.Module",
    "init broken.py:make --input-shape 2,4 -o weights.pt": r"importing broken.py raised SyntaxError",
    "init no.such.module:make --input-shape 2,4 -o weights.pt": r"'no.such.module' is neither a source nor a module",
    f"{GOOD} --model-arg depth=2": r"the factory raised TypeError: .*'depth'.*expected a model from make\(width=4\)",
    f"{GOOD} --model-arg width": r"--model-arg width: not of the form key=value",
    f"{GOOD} --model-arg width=4 --model-arg width=8": r"width is given twice",
    # example inputs
    "init net.py:make -o weights.pt": r"net.py:make: no example input.*--input-shape x=1,3,224,224",
    "init net.py:make --input-shape 2,5 -o weights.pt": r"module 'a' on inputs \(float32 \[2, 5\]\).*--input-shape",
    f"{GOOD} --input-shape 2,4": r"2 positional inputs; expected 1 \(x\)\. .*--input-shape",
    "init net.py:make --input-shape 2,4:int64 -o weights.pt": r"inputs \(int64 \[2, 4\]\).*--input-shape",
    "init timm:test_resnet --input-shape 1,4,64,64 -o weights.pt": r"float32 \[1, 4, 64, 64\].*--input-shape",
    "init net.py:make --input-shape 2x4 -o weights.pt": r"--input-shape 2x4: not a shape; .*1,3,224,224",
    "init net.py:make --input-shape 0,4 -o weights.pt": r"--input-shape 0,4: not a shape",
    "init net.py:make --input-shape 2,4:int -o weights.pt": r"--input-shape 2,4:int: not a shape; .*int64",
    # a forward that raises
    "init net.py:raises --input-shape 2,4 -o weights.pt": r"raised ValueError in module 'inner' .*: the first line and",
    # paths
    f"{GOOD[:-3]}.ptt": r"weights.ptt: the suffix is '.ptt'; .*Did you mean weights.pt\?",
    f"{GOOD[:-3]}": r"weights: there is no suffix; expected .pt, .pth or .safetensors",
    "init net.py:make --input-shape 2,4 -o no/weights.pt": r"no/weights.pt: no does not exist; .*mkdir",
    "init net.py:make --input-shape 2,4 -o folder.pt": r"folder.pt: this is a folder",
    "init net.py:make --input-shape 2,4 -o /proc/weights.pt": r"/proc/weights.pt: .*expected a writable folder",
    "init net.py:make --input-shape 2,4 -o net.py/weights.pt": r"net.py/weights.pt: ",
    "plan net.py:make --input-shape 2,4 -o no/plan.json": r"no/plan.json: no does not exist",
    "analyze net.py:make --input-shape 2,4 --dot no/graph.dot": r"no/graph.dot: no does not exist",
    # options
    f"{GOOD} --scheme idinti": r"scheme 'idinti': unknown; .*Did you mean idinit",
    f"{GOOD} --loosen diagnal": r"loosen 'diagnal'; .*Did you mean diagonal",
    f"{GOOD} --conv-order center": r"conv_order 'center'; .*Did you mean centre",
    f"{GOOD} --tau gian": r"tau 'gian'; .*Did you mean gain",
    f"{GOOD} --tau 0": r"tau 0",
    f"{GOOD} --tau nan": r"tau nan; expected a finite number",
    f"{GOOD} --eps -1": r"eps -1.0; expected a number of at least 0",
    f"{GOOD} --eps small": r"'--eps': 'small' is not a valid float",
    f"{GOOD} --seed x": r"'--seed': 'x' is not a valid integer",
    f"{GOOD} --dtype float23": r"--dtype float23: .*Did you mean .*float32",
    f"{GOOD} --device gpu": r"--device gpu: unknown device; expected auto, cpu, cuda or cuda:n",
    f"{GOOD} --device cuda:x": r"--device cuda:x: unknown device",
    f"{GOOD} --frobnicate": r"No such option:? '?--frobnicate.*idfx init --help",
    f"{GOOD} more": r"unexpected extra argument",
    "init net.py:make --input-shape 2,4": r"Missing option '-o'",
    "init": r"Missing argument 'SPEC'",
    "ini net.py:make": r"no command 'ini'; .*Did you mean init",
    "list scheme": r"'scheme' is not one of 'schemes'",
    "explain net.py:make a.wieght --input-shape 2,4": r"a.wieght: Block has no such parameter; .*Did you mean a.weight",
    # contradictions
    f"{GOOD} --no-certify --keep-going": r"--keep-going: given together with --no-certify",
    f"{GOOD} --plan p.json --eps 0": r"--plan: given together with --eps",
    f"{GOOD} --plan p.json --seed 0": r"--plan: given together with --seed",
    f"{GOOD} --plan p.json --scheme idinit": r"--plan: given together with --scheme",
    f"{GOOD} --plan p.json --conv-order tap": r"--plan: given together with --conv-order",
    # plans
    f"{GOOD} --plan p.json": r"p.json: No such file or directory; expected a plan",
    f"{GOOD} --plan net.py": r"net.py: Expecting value.*expected JSON",
    # memory
    "init net.py:hungry --input-shape 2,4 -o weights.pt": r"out of memory.*--dtype",
    "init net.py:Hungry --input-shape 2,4 -o weights.pt": r"out of memory.*--dtype",
    "init net.py:huge --input-shape 2,4 -o weights.pt": r"out of memory.*--dtype",
}


@pytest.mark.parametrize("line", [*REFUSED])
def test_bad_input_is_one_clear_line(run, line):
    code, out, err = run(line)
    assert (code, out, _files()) == (2, "", set())
    assert err.startswith("idfx: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert re.search(REFUSED[line], err), err
    assert len(err) < 700 and "Traceback" not in err and "defect" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_that_is_absent(run, device):
    code, out, err = run(f"{GOOD} --device {device}")
    assert (code, out, _files()) == (2, "", set())
    assert err == f"idfx: --device {device}: there is no CUDA device here; expected one. Use --device cpu.\n"


def test_a_model_that_cannot_be_captured_is_exit_code_3(run):
    code, out, err = run("init net.py:Silent --input-shape 2,4 -o weights.pt")
    assert (code, out, _files()) == (3, "", set())
    assert err.startswith("idfx: Silent: ") and err.count("\n") == 1


def test_a_forward_that_differentiates_is_captured_with_gradients(run):
    assert run("init net.py:Derives --input-shape 2,4 -o weights.pt")[0] == 0
    assert _files() == {"weights.pt"}


def test_debug_shows_the_traceback_and_keeps_line_and_exit_code(run):
    line = "init net.py:raises --input-shape 2,4 -o weights.pt"
    plain = run(line)
    code, out, err = run(f"{line} --debug")
    assert (code, out, _files()) == (2, "", set())
    assert "Traceback (most recent call last)" in err and "in forward" in err
    assert err.splitlines()[-1] + "\n" == plain[2]
    assert run("init net.py:behind --input-shape 2,4 -o weights.pt --debug")[0] == 1


def test_a_defect_is_one_line_too(run, monkeypatch):
    import idfx.analysis.structure

    def fails(capture):
        raise KeyError("surprise\nand more")

    monkeypatch.setattr(idfx.analysis.structure, "build_structure", fails)
    code, out, err = run(GOOD)
    assert (code, out, _files()) == (70, "", set())
    assert err.count("\n") == 1 and "KeyError" in err and "--debug" in err


@pytest.mark.parametrize("line", ["init net.py:interrupted -o weights.pt --input-shape 2,4"])
def test_ctrl_c_is_exit_code_130(run, line):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, out, err = run(line)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out, _files()) == (130, "", set())
    assert err.strip() == "idfx: interrupted; nothing was written"


def test_ctrl_c_while_working_leaves_no_file():
    command = [sys.executable, "-m", "idfx", *SLOW.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            if Path("started").exists():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "idfx: interrupted; nothing was written")
    assert _files() == {"started"}


def test_an_old_file_survives_a_failure(run):
    Path("weights.pt").write_bytes(b"precious")
    assert run("init net.py:behind --input-shape 2,4 -o weights.pt")[0] == 1
    assert run("init net.py:raises --input-shape 2,4 -o weights.pt")[0] == 2
    assert Path("weights.pt").read_bytes() == b"precious"
    assert run(GOOD)[0] == 0
    assert set(torch.load("weights.pt", weights_only=True)) == {"a.weight", "a.bias", "b.weight", "b.bias"}


# Where it prints


def test_quiet_says_nothing_on_stderr(run):
    line = f"{GOOD} --dtype bfloat16"
    assert run(line)[2].startswith("note: loosening: bfloat16")
    assert run(f"{line} -q")[2] == ""


def test_progress_is_shown_in_a_terminal_and_the_result_is_not_mixed_with_it(run):
    """One process with a terminal for stderr; elsewhere in this file stderr is none, and stays empty."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "idfx", *MAIN.split()]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.stdout is not None
        out = process.stdout.read().decode()
    os.close(master)
    assert process.returncode == 0
    assert out.startswith("model") and "\x1b" not in out and "load libraries" not in out
    assert b"load libraries" in shown
    assert sum(step in shown for step in (b"build", b"capture", b"analyze", b"fill", b"certify", b"write")) >= 2
    # Another process, the same bytes; and the same lines where nobody watches.
    assert run("init timm:test_resnet -o again.safetensors")[1].splitlines()[:-1] == out.splitlines()[:-1]
    assert Path("again.safetensors").read_bytes() == Path("weights.safetensors").read_bytes()


def test_an_interrupt_that_an_import_turns_into_another_error_is_an_interrupt(folder: Path) -> None:
    text = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    (folder / "cut.py").write_text(text + "raise AttributeError('module sympy has no attribute logic')\n")
    line = [sys.executable, "-m", "idfx", "analyze", "cut.py:Net"]
    found = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr.strip().splitlines()[-1] == "idfx: interrupted; nothing was written"


@pytest.mark.parametrize("group", ["", "bench"])
def test_a_group_without_a_command_shows_its_help(run, group):
    code, out, err = run(group)
    assert code in (0, 2) and err == ""  # by the version of click
    assert out.startswith(f"Usage: idfx {group}".rstrip()) and "\nCommands:\n" in out
