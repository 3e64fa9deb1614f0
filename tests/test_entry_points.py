"""Schemes and fills of other packages, made known by an entry point: they work, and a broken one is named."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SMALL = "docs/examples/small.py:Small"

# What a package `thirds` brings: a fill, and a scheme that writes it into biases with an option of its own.
THIRDS = '''
from __future__ import annotations

from dataclasses import dataclass

from idfx.core.errors import UsageError
from idfx.fills import fills
from idfx.fills.matrices import Target
from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.schemes.scheme import Keep, scheme


@fills.register("thirds-ramp")
def ramp(target: Target, *, step: float = 1.0) -> None:
    """0, step, 2 step, ... along the first axis."""
    span = target.span(0)
    for place, number in enumerate(range(span.start, span.stop)):
        target.tensor[place] = step * number


@dataclass(frozen=True)
class Options:
    step: float = 1.0

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise UsageError(f"step {self.step!r}; expected a number above 0. Write 1.")


@scheme("thirds", Options)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """Thirds: every bias is a ramp, weights are kept."""
    if role.name == "bias":
        return Decision(parameter.name, "thirds-ramp", {"step": options.step}, "a bias is a ramp", role.evidence)
    return Keep("only biases are written")
'''

# Fills with an `eps`, of which one says that it is the size of what it calls zero.
ALMOST_ZERO = '''
from __future__ import annotations

from idfx.fills import fills
from idfx.fills.matrices import Target


@fills.register("thirds-silent")
def silent(target: Target, *, eps: float = 1e-6, layout: object = None) -> None:
    """eps, and nothing said of it."""
    target.tensor.fill_(eps)


@fills.register("thirds-zero", zero="size")
def zero(target: Target, *, size: float = 1e-9, layout: object = None) -> None:
    """One entry in each row."""
    target.tensor.zero_()
    target.tensor[:, :1] = size


@fills.register("thirds-all", zero="eps")
def everywhere(target: Target, *, eps: float = 0.0) -> None:
    """Every entry of a row."""
    target.tensor.fill_(eps)
'''

TAKEN_SCHEME = '''
from idfx.schemes.scheme import Keep, NoOptions, scheme


@scheme("idinit", NoOptions)
def decide(parameter, role, network, options):
    """Mine."""
    return Keep("as it was")
'''

TAKEN_FILL = '''
from idfx.fills import fills


@fills.register("uniform")
def uniform(target):
    """Mine."""
'''

Result = tuple[int, str, str]


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[str], Callable[..., Result]]:
    """Lay out a distribution as pip does, of one module with an entry point; return the program run beside it."""

    def install(source: str, value: str = "thirds_idfx") -> Callable[..., Result]:
        site = tmp_path / "site"
        info = site / "thirds-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirds\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[idfx.schemes]\nramps = {value}\n")
        (info / "RECORD").write_text("thirds_idfx.py,,\n")
        (site / "thirds_idfx.py").write_text(source)
        path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))

        def run(*words: str) -> Result:
            command = [sys.executable, "-m", "idfx", *words]
            environment = {**os.environ, "PYTHONPATH": path}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
            return done.returncode, done.stdout, done.stderr

        return run

    return install


def test_a_scheme_of_another_package_is_listed_and_plans_with_its_options(installed):
    run = installed(THIRDS)
    code, out, _ = run("list", "schemes")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["thirds"] == "Thirds: every bias is a ramp, weights are kept." and "idinit" in lines
    code, out, err = run("plan", SMALL, "--scheme", "thirds(step=0.5)", "--json")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert (plan["scheme"], plan["options"]) == ("thirds", {"step": 0.5})
    for name, entry in plan["parameters"].items():
        written = (entry.get("fill"), entry.get("arguments"), entry.get("keep"))
        bias = ("thirds-ramp", {"step": 0.5}, None)
        assert written == (bias if name.endswith("bias") else (None, None, "only biases are written"))


def test_the_options_of_a_scheme_of_another_package_are_checked(installed):
    run = installed(THIRDS)
    for scheme, message in (("thirds(step=0)", "expected a number above 0"), ("thirds(stop=1)", "Did you mean step?")):
        code, out, err = run("plan", SMALL, "--scheme", scheme)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_fill_of_another_package_writes_what_its_plan_says(installed, tmp_path):
    """The scheme's own plan first; then a plan from a file, which names the fill and no scheme that would bring it."""
    run = installed(THIRDS)
    file, plan_file = tmp_path / "weights.pt", tmp_path / "plan.json"
    assert run("init", SMALL, "--scheme", "thirds(step=0.5)", "-o", str(file))[0] == 0
    state = torch.load(file, weights_only=True)
    assert state["gated.conv1.bias"].tolist() == [0.5 * number for number in range(8)]
    assert run("plan", SMALL, "--scheme", "kaiming", "-o", str(plan_file))[0] == 0
    plan = json.loads(plan_file.read_text())
    plan["parameters"]["head.bias"] = {"shape": [10], "fill": "thirds-ramp", "arguments": {"step": 2}}
    plan_file.write_text(json.dumps(plan))
    assert run("init", SMALL, "--plan", str(plan_file), "-o", str(file))[0] == 0
    state = torch.load(file, weights_only=True)
    assert state["head.bias"].tolist() == [2.0 * number for number in range(10)]
    assert state["gated.conv1.weight"].std().item() == pytest.approx(math.sqrt(2 / (8 * 9)), rel=0.1)


@pytest.mark.parametrize(
    ("fill", "status"),
    [
        ("thirds-silent", "unclaimed"),
        ("thirds-zero", "identity"),
        ("thirds-zero(size=0.1)", "unclaimed"),
        ("thirds-all", "identity"),
        ("thirds-all(eps=1e-9)", "unclaimed"),
    ],
)
def test_a_fill_of_another_package_claims_what_it_declares(installed, tmp_path, fill, status):
    run = installed(ALMOST_ZERO)
    word, file = f"role:end={fill}", str(tmp_path / "weights.pt")
    code, out, err = run("init", SMALL, "--scheme", "kaiming", "--set", word, "-o", file, "--json")
    assert code == 0, err
    assert [check["status"] for check in json.loads(out)["certificate"]["checks"]] == [status] * 2


def test_a_fill_that_calls_what_it_does_not_take_zero_is_refused(installed):
    code, _, err = installed(ALMOST_ZERO.replace('zero="size"', 'zero="eps"'))("list", "fills")
    assert code == 2 and "ValueError: fill 'thirds-zero': zero='eps' is none of its arguments" in err


BROKEN = {
    "it raises on several lines": ("raise ValueError('one\\n\\ntwo')\n", "thirds_idfx", "ValueError: one two"),
    "it leaves": ("import sys\n\nsys.exit(5)\n", "thirds_idfx", "SystemExit: 5"),
    "there is no such module": ("", "thirds_gone", "ModuleNotFoundError: No module named 'thirds_gone'"),
    "it has no such attribute": (
        "",
        "thirds_idfx:make",
        "AttributeError: module 'thirds_idfx' has no attribute 'make'",
    ),
    "its scheme is taken": (TAKEN_SCHEME, "thirds_idfx", "ValueError: scheme 'idinit' is registered twice"),
    "its fill is taken": (TAKEN_FILL, "thirds_idfx", "ValueError: fill 'uniform' is registered twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_entry_point_is_named_in_one_line(installed, case):
    source, value, message = BROKEN[case]
    code, out, err = installed(source, value)("list", "schemes")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"scheme entry point ramps = {value}: {message}" in err
    assert err.endswith("Repair or uninstall thirds.\n") and "Traceback" not in err


@pytest.mark.parametrize("case", ["it leaves", "its fill is taken"])
def test_beside_a_broken_entry_point_nothing_is_written_and_the_rest_works(installed, tmp_path, case):
    source, value, message = BROKEN[case]
    run = installed(source, value)
    file = tmp_path / "weights.pt"
    code, out, err = run("init", SMALL, "--scheme", "xavier", "-o", str(file))
    assert (code, out, err.count("\n")) == (2, "", 1) and f"ramps = {value}: {message}" in err
    assert not file.exists()
    assert run("list", "operators")[0] == 0


def test_a_broken_entry_point_is_named_each_time_that_it_is_asked_for(installed, tmp_path):
    """In Python the first error may be caught: the schemes are not then silently those that were found before it."""
    installed("1 / 0\n")
    code = (
        "from idfx.core.errors import UsageError\nfrom idfx.schemes.scheme import SCHEMES\n"
        "for _ in range(2):\n    try:\n        list(SCHEMES)\n    except UsageError as error:\n        print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    first, second = done.stdout.splitlines()
    assert first == second and "ramps = thirds_idfx: ZeroDivisionError" in first
