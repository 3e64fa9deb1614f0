"""Changing a plan: patterns, --set, --only, --keep, files of settings, and their errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from idfx_cli.main import main
from torch import nn

import idfx
from idfx.core.errors import PlanError, UsageError
from idfx.planning.file import from_json, to_json
from idfx.planning.form import schema

WIDTH = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(torch.relu(self.fc1(self.norm(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head, self.frozen = nn.Linear(WIDTH, 4), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).mean((2, 3))
        for block in self.blocks:
            x = block(x)
        return self.frozen(self.head(x))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def planned(**words: Any) -> idfx.Plan:
    return idfx.plan(idfx.analyze(Net(), (IMAGE,)), **words)


def names(*patterns: str) -> set[str]:
    """The parameters whose name begins so, found without the code under test."""
    return {name for name, _ in Net().named_parameters() if name.startswith(patterns)}


ALL = names("")
WRITTEN = ALL - names("frozen")


# Roles and traits as patterns


def test_a_role_or_a_trait_means_every_parameter_that_has_it():
    norms = {f"blocks.{at}.norm.weight" for at in range(3)}
    assert planned(only=["role:norm scale"]).decisions.keys() == norms
    ends = {f"blocks.{at}.fc2.weight" for at in range(3)}
    kept = planned(set={"role:end": "keep"}).kept
    assert ends <= kept.keys() and all(kept[name] == "set by --set role:end=keep" for name in ends)
    assert planned(only=["trait:wide"]).decisions.keys() == {"stem.weight", "head.weight"}  # 6 × 27 and 4 × 6
    again = idfx.analyze(Net(), (IMAGE,), roles={"role:inner": "main stem"})
    assert again.role_overrides == {f"blocks.{at}.fc1.weight": "main stem" for at in range(3)}


def test_a_role_or_a_trait_that_nothing_has_is_an_error_with_those_that_are_there():
    with pytest.raises(UsageError, match=r"keep role:heed: nothing in this model has that role; .*Did you mean head"):
        planned(keep=["role:heed"])
    with pytest.raises(UsageError, match=r"set trait:querie: nothing in this model has that trait; expected"):
        planned(set={"trait:querie": "keep"})


def test_without_a_word_the_plan_is_the_schemes():
    assert planned() == planned(only=(), keep=(), set={}) == planned(only=["*"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"keep": ["head"]}, WRITTEN - names("head.")),
        ({"keep": ["head.weight", "stem"]}, WRITTEN - {"head.weight"} - names("stem.")),
        ({"keep": ["blocks.*.fc1"]}, WRITTEN - {n for n in ALL if ".fc1." in n}),
        ({"keep": ["*.bias"]}, {n for n in WRITTEN if not n.endswith("bias")}),
        ({"only": ["blocks.1"]}, names("blocks.1.")),
        ({"only": ["blocks.[01].fc?.weight"]}, {f"blocks.{b}.fc{i}.weight" for b in (0, 1) for i in (1, 2)}),
        ({"only": ["blocks"], "keep": ["blocks.2"]}, names("blocks.0", "blocks.1")),
        ({"only": ["head"], "set": {"stem.bias": 0.5}}, names("head.") | {"stem.bias"}),
        ({"keep": ["head"], "set": {"head.bias": "constant(value=2)"}}, WRITTEN - {"head.weight"}),
        ({"set": {"head": "keep", "head.bias": 1}}, WRITTEN - {"head.weight"}),
        ({"set": {"head.bias": 1, "head": "keep"}}, WRITTEN - names("head.")),
    ],
)
def test_what_is_written(words, expected):
    plan = planned(**words)
    assert set(plan.decisions) == expected and set(plan.kept) == ALL - expected
    assert list(plan.decisions) == [n for n, _ in Net().named_parameters() if n in expected]


def test_what_is_kept_stays_bit_for_bit_and_says_why():
    net = Net()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    report = idfx.init_(net, (IMAGE,), only=["blocks"], set={"blocks.1.fc1.weight": "keep"})
    changed = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert changed <= names("blocks") - {"blocks.1.fc1.weight"} and "blocks.0.fc2.weight" in changed
    assert report.plan.kept["stem.weight"] == "set by --only blocks"
    assert report.plan.kept["blocks.1.fc1.weight"] == "set by --set blocks.1.fc1.weight=keep"
    assert "requires_grad" in report.plan.kept["frozen.weight"]


def test_a_fill_is_written_with_the_layout_and_order_that_idfx_reads():
    net = Net()
    words = {"stem.weight": "idic(loosen=none, tau=2)", "head.weight": {"fill": "idi", "tau": 3.0, "loosen": "none"}}
    idfx.init_(net, (IMAGE,), set={**words, "head.bias": 0.25})
    expected = torch.zeros(WIDTH, 3, 3, 3)
    for row in range(WIDTH):  # outside of branches the centre tap comes first; then the next one
        tap = (1, 1) if row < 3 else (0, 1)
        expected[row, row % 3][tap] = 2
    assert torch.equal(net.stem.weight.detach(), expected)
    assert torch.equal(net.head.weight.detach(), 3 * torch.eye(WIDTH)[:4]) and net.head.bias.tolist() == [0.25] * 4


def test_a_scalar_is_not_put_on_what_is_kept():
    kept = planned(scheme="rezero", keep=["blocks.0"])
    assert [scalar.join for scalar in kept.scalars] == [s.join for s in planned(scheme="rezero").scalars[1:]]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"keep": ["block.0"]}, UsageError, r"keep block.0: the model has no such parameter or module.*blocks.0"),
        ({"only": ["*.wieght"]}, UsageError, r"only \*.wieght"),
        ({"set": {"haed.weight": "keep"}}, UsageError, r"set haed.weight.*Did you mean head.weight"),
        ({"set": {"head.weight": "idizz"}}, UsageError, r"fill 'idizz': unknown.*Did you mean idiz"),
        ({"set": {"head.weight": "idiz(epss=1)"}}, PlanError, r"set head.weight: head.weight.*epss.*Did you mean eps"),
        ({"set": {"head.weight": "idiz(eps=-)"}}, PlanError, r"head.weight.*eps"),
        ({"set": {"head": "idiz"}}, PlanError, r"set head: head.bias has the shape \[4\]; fill 'idiz'"),
        ({"set": {"stem.weight": "idi"}}, PlanError, r"set stem.weight: .*taps"),
        ({"set": {"head.weight": "nonsense("}}, UsageError, r"set head.weight 'nonsense\('"),
        ({"set": {"head.bias": float("nan")}}, UsageError, r"set head.bias: nan; expected"),
        ({"set": {"head.bias": True}}, UsageError, r"set head.bias: True; expected"),
        ({"set": {"head.bias": {"value": 1}}}, UsageError, r"set head.bias: .*expected a fill"),
        ({"set": {"frozen": "idi"}}, UsageError, r"set frozen: frozen.weight is never written, it is frozen"),
    ],
)
def test_a_word_that_makes_no_sense_is_refused_and_nothing_is_written(words, error, message):
    net = Net()
    before = [value.clone() for value in net.parameters()]
    with pytest.raises(error, match=message):
        idfx.init_(net, (IMAGE,), **words)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


# On the command line.

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.fc(x))

def example_inputs():
    return torch.ones(2, 4)
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SOURCE)

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([*words])
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


def test_words_of_the_command_line_and_of_a_file(run):
    Path("words.toml").write_text(
        'keep = ["stem"]\n[roles]\n"stem.weight" = "transition"\n'
        '[set]\n"head.weight" = "idiz(eps=1e-4)"\n"fc.bias" = 0\n'
        '"head.bias" = {fill = "constant", value = 0.5}\n'
    )
    code, out, err = run("init", "net.py:Net", "-o", "w.pt", "--set", "words.toml", "--set", "head.bias=keep")
    assert code == 0 and err == "" and "set by --keep stem" in out
    state = torch.load("w.pt", weights_only=True)
    assert state["head.weight"].abs().max() == pytest.approx(1e-4) and bool(state["head.bias"].any())
    code, out, _ = run("plan", "net.py:Net", "--set", "words.toml", "--json")
    entries = json.loads(out)
    assert entries["parameters"]["head.bias"]["arguments"] == {"value": 0.5}
    assert entries["roles"] == {"stem.weight": "transition"}
    code, out, _ = run("explain", "net.py:Net", "head.weight", "--set", "head.*=keep")
    assert code == 0 and "set by --set head.*=keep" in out


def test_a_plan_from_a_file_can_be_steered_too(run):
    assert run("plan", "net.py:Net", "-o", "plan.json")[0] == 0
    code, out, _ = run("init", "net.py:Net", "--plan", "plan.json", "--keep", "head", "-o", "w.pt")
    assert code == 0 and "2 tensors: set by --keep head" in out


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("kep = []", r"unknown key 'kep'; expected only, keep, set, roles. Did you mean keep"),
        ('keep = "head"', r"keep is 'head'; expected a list of patterns"),
        ("only = [1]", r"only is \[1\]; expected a list of patterns"),
        ("set = 3", r"set is 3; expected a table of patterns"),
        ('[roles]\n"a" = 1', r"roles is .*; expected a table of patterns"),
        ("[set", r"expected a TOML file"),
        ('[set]\n"nothing.*" = "keep"', r"set nothing.\*: the model has no such parameter"),
        ('[set]\n"head.weight" = [1]', r"set head.weight: \[1\]; expected a fill"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_line(run, file, message):
    Path("words.toml").write_text(file)
    code, out, err = run("plan", "net.py:Net", "--set", "words.toml")
    assert (code, out, err.count("\n")) == (2, "", 1) and re.search(message, err), err


@pytest.mark.parametrize("word", ["head.weight", "=idi", "head.weight=", "no.toml"])
def test_a_word_without_two_sides_is_one_line(run, word):
    code, out, err = run("plan", "net.py:Net", "--set", word)
    assert (code, out, err.count("\n")) == (2, "", 1) and "Traceback" not in err


# The form of a plan.


def _schema() -> Any:
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.mark.parametrize("scheme", ["idinit", "rezero", "eoi", "zero-gamma"])
def test_plans_have_the_form_of_their_schema(scheme):
    plan = planned(scheme=scheme, keep=["head"])
    loaded = planned(scheme=scheme)
    _schema().validate(json.loads(to_json(plan)))
    _schema().validate(json.loads(to_json(loaded)))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(idfx_plan=2),
        lambda d: d.pop("scheme"),
        lambda d: d["parameters"]["head.bias"].update(keep="both"),
        lambda d: d["parameters"]["head.bias"].update(shape=["4"]),
        lambda d: d["parameters"]["head.bias"].update(fill="keep"),
        lambda d: d["parameters"]["head.bias"].pop("shape"),
        lambda d: d["parameters"]["head.bias"].update(argument={}),
        lambda d: d["parameters"]["head.bias"].update(arguments=[1]),
        lambda d: d.update(roless={}),
        lambda d: d.update(notes=[3]),
        lambda d: d.update(scalars=[{"join": "a", "value": 0, "on": []}]),
        lambda d: d.update(scalars=[{"join": "a", "value": 0, "on": [{"parameter": "b", "rows": [[1]]}]}]),
    ],
)
def test_what_the_schema_refuses_is_refused_here_too(change):
    document = json.loads(to_json(planned()))
    change(document)
    assert list(_schema().iter_errors(document))
    with pytest.raises(PlanError):
        from_json(json.dumps(document))


def test_fills_under_the_names_that_they_had_before_are_read():
    document = json.loads(to_json(planned()))
    old = {"mixed": "idic_idizc", "stepped": "piecewise_constant"}
    for name, fill in zip(("stem.weight", "head.bias"), old, strict=True):
        document["parameters"][name] |= {"fill": fill, "arguments": {"rows": [[0, 2]]}}
    read = from_json(json.dumps(document)).decisions
    assert [read[name].fill for name in ("stem.weight", "head.bias")] == [*old.values()]


def test_the_schema_is_printed(run):
    code, out, _ = run("plan", "--schema")
    assert code == 0 and json.loads(out) == schema()
    assert "--schema" in run("plan", "--help")[1]


def test_an_end_that_is_not_small_closes_nothing():
    for words in ({"eps": 0.3}, {"set": {"blocks.*.fc2.weight": "idiz(eps=1)"}}):
        checks = idfx.init_(Net(), (IMAGE,), **words).certificate.checks
        assert {check.status for check in checks} == {"unclaimed"}


def test_the_last_word_counts_whatever_was_said_before(run):
    Path("words.toml").write_text('[set]\n"head.bias" = 1\n"*.bias" = 2\n')
    words = ("--set", "words.toml", "--set", "head.bias=3")
    entries = json.loads(run("plan", "net.py:Net", "--json", *words)[1])["parameters"]
    assert entries["head.bias"]["arguments"] == {"value": 3} and entries["fc.bias"]["arguments"] == {"value": 2}
    words = ("--set", "head.bias=1", "--set", "*.bias=2", "--set", "head.bias=3")
    entries = json.loads(run("plan", "net.py:Net", "--json", *words)[1])["parameters"]
    assert entries["head.bias"]["arguments"] == {"value": 3}


def test_a_fill_has_its_defaults_wherever_its_arguments_are_asked_for():
    """`loosen` alone once lacked `eps_tau`, and a bare idiz was not taken for the end of a branch."""
    structure = idfx.analyze(Net().to(torch.bfloat16), (IMAGE.to(torch.bfloat16),))
    for word in ("idi", "idi(loosen=diagonal)"):
        made = idfx.plan(structure, "kaiming", set={"head.weight": word})
        assert [note for note in made.notes if "in 1 weight(s)" in note]
    assert not idfx.plan(structure, "kaiming", set={"head.weight": "idi(eps_tau=0)"}).notes
    for word, expected in (("idiz", "identity"), ("idi", "unclaimed"), ("idiz(eps=0.1)", "unclaimed")):
        report = idfx.init_(Net(), (IMAGE,), scheme="kaiming", set={"blocks.*.fc2.weight": word})
        assert [check.status for check in report.certificate.checks] == [expected] * 3


@pytest.mark.parametrize(
    "words",
    [
        {"only": 3},
        {"keep": [1]},
        {"set": ["head=keep"]},
        {"set": {3: 1}},
        {"checkpoint": 3},
        {"checkpoint": [1]},
        {"set": {"head.weight": 10**400}},
        {"set": {"head.weight": f"idi(tau={10**400})"}},
    ],
)
def test_arguments_of_another_type_are_refused(words):
    with pytest.raises((UsageError, PlanError)):
        idfx.init_(Net(), (IMAGE,), **words)


def test_one_pattern_stands_for_itself_and_a_plan_takes_no_options_beside():
    assert planned(keep="head") == planned(keep=["head"])
    for given in ({"eps": 0.1}, {"roles": {"head.weight": "head"}}, {"scheme": "idinit"}, {"seed": 0}):
        with pytest.raises(UsageError, match="given together with a plan"):
            idfx.init_(Net(), (IMAGE,), plan=planned(), **given)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["parameters"]["head.bias"]["arguments"].update(value=10**400),
        lambda d: d["scalars"].append(d["scalars"][0]),
    ],
)
def test_a_plan_that_cannot_be_is_refused_and_nothing_is_written(change):
    document = json.loads(to_json(planned(scheme="skipinit")))
    change(document)
    net = Net()
    before = [value.clone() for value in net.parameters()]
    with pytest.raises(PlanError):
        idfx.apply_(net, from_json(json.dumps(document)))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_only_one_checkpoint_is_loaded_from(run):
    code, out, err = run("plan", "net.py:Net", "--from", "a.pt", "--from", "b.pt")
    assert (code, out, err.count("\n")) == (2, "", 1) and "--from: given 2 times" in err


def test_a_default_of_one_form_is_none_of_another() -> None:
    """Suites have texts with a default; read first, in a process of their own, they leave plans as they are."""
    program = "import idfx.bench.suites\nfrom idfx.planning.form import schema\nprint(*sorted(schema()['required']))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["idfx_plan", "model", "options", "parameters", "scheme", "seed"]
