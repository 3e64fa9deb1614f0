"""What `idfx diff` says of plans, schemes and checkpoints, held against the weights that they make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from idfx_cli.main import main
from torch import nn

import idfx
from idfx.core.errors import UsageError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


X = torch.ones(1, 6)


def planned(scheme: str = "idinit", seed: int = 0, **words: object) -> idfx.Plan:
    return idfx.plan(idfx.analyze(net(), (X,)), scheme, seed, **words)  # type: ignore[arg-type]


def written(plan: idfx.Plan) -> dict[str, torch.Tensor]:
    model = net()
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(7)
    return {name: value.detach() for name, value in idfx.apply_(model, plan).named_parameters()}


PLANS = {
    "idinit": lambda: planned(),
    "other seed": lambda: planned(seed=1),
    "no noise": lambda: planned(loosen="none"),
    "no noise, other seed": lambda: planned(loosen="none", seed=1),
    "tau": lambda: planned(tau=2.0),
    "kaiming": lambda: planned("kaiming"),
    "orthogonal": lambda: planned("orthogonal"),
    "orthogonal, other seed": lambda: planned("orthogonal", 1),
    "kept": lambda: planned(keep=["0"]),
}


@pytest.mark.parametrize("one", PLANS)
@pytest.mark.parametrize("other", PLANS)
def test_plans_are_the_same_where_they_write_the_same(one, other):
    left, right = PLANS[one](), PLANS[other]()
    values = written(left), written(right)
    for found in idfx.diff(left, right):
        same = torch.equal(values[0][found.parameter], values[1][found.parameter])
        assert (found.status == "same") == same, found


@pytest.mark.parametrize("one", PLANS)
@pytest.mark.parametrize("other", PLANS)
def test_a_plan_and_a_checkpoint_are_the_same_where_the_values_are(one, other):
    left, checkpoint = PLANS[one](), written(PLANS[other]())
    found = {d.parameter: d for d in idfx.diff(left, idfx.read_checkpoint(checkpoint))}
    for name, value in written(left).items():
        if name in left.kept:
            assert found[name].status == "not compared"
            continue
        largest = float((value.double() - checkpoint[name].double()).abs().max())
        assert (found[name].status, found[name].largest) == ("differs" if largest else "same", largest)


def test_two_checkpoints_with_other_names_and_shapes():
    one = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.tensor([1.0, 3.0]), "n": torch.tensor(1)}
    other = {"a": torch.ones(2), "b": torch.ones(4), "c": torch.tensor([1.0, 2.5]), "m": torch.ones(1)}
    found = idfx.diff(idfx.read_checkpoint(one), idfx.read_checkpoint(other))
    assert [(d.parameter, d.status, d.largest) for d in found] == [
        ("a", "same", 0.0),
        ("b", "differs", None),
        ("c", "differs", 0.5),
        ("n", "only left", None),
        ("m", "only right", None),
    ]
    with pytest.raises(UsageError, match=r"the sides share no name \(a and z\)"):
        idfx.diff(idfx.read_checkpoint(one), idfx.read_checkpoint({"z": torch.ones(1)}))


def test_half_precision_is_compared_in_its_own_dtype():
    plan = planned()
    halved = {name: value.to(torch.bfloat16) for name, value in written(plan).items()}
    assert {d.status for d in idfx.diff(plan, idfx.read_checkpoint(halved))} == {"same"}
    other = idfx.read_checkpoint({name: value.float() for name, value in halved.items()})
    statuses = {d.parameter: d.status for d in idfx.diff(other, idfx.read_checkpoint(halved))}
    assert statuses == dict.fromkeys(halved, "differs")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\ndef net():\n"
        "    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))\n"
        "def example_inputs():\n    return torch.ones(1, 6)\n"
    )

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([*words])
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


def test_on_the_command_line(run):
    code, out, err = run("diff", "idinit", "idinit(tau=2)", "net.py:net")
    assert (code, err) == (0, "") and out.startswith("idinit and idinit(tau=2): 4 tensors: 2 differ, 2 same")
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["0.weight", "2.weight"]
    assert len(run("diff", "idinit", "idinit(tau=2)", "net.py:net", "--all")[1].splitlines()) == 3 + 4
    assert run("plan", "net.py:net", "-o", "a.json", "-q")[0] == 0
    assert run("init", "net.py:net", "-o", "w.safetensors", "-q")[0] == 0
    code, out, _ = run("diff", "a.json", "w.safetensors", "--exit-code")
    assert code == 0 and out.strip() == "a.json and w.safetensors: 4 tensors: 4 same"
    code, out, _ = run("diff", "w.safetensors", "kaiming", "net.py:net", "--exit-code", "--json")
    document = json.loads(out)
    assert code == 1 and document["same"] is False
    assert {entry["parameter"]: entry["status"] for entry in document["parameters"]} == {
        "0.weight": "differs", "0.bias": "same", "2.weight": "differs", "2.bias": "same"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("idinit", "kaiming"), "expected a model for it"),
        (("idinit", "kaimin", "net.py:net"), "Did you mean kaiming?"),
        (("a.json", "b.json"), "a.json: No such file"),
        (("idinit", "no.pt", "net.py:net"), "no.pt: no such file"),
        (("idinit(tua=1)", "kaiming", "net.py:net"), "unknown option 'tua'"),
    ],
)
def test_bad_input_is_one_line(run, words, message):
    code, out, err = run("diff", *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("one", "other", "status", "largest"),
    [
        (torch.tensor([1 + 2j]), torch.tensor([1 + 3j]), "differs", 1.0),
        (torch.tensor([2**53]), torch.tensor([2**53 + 1]), "differs", None),
        (torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 1.0]), "same", 0.0),
        (torch.tensor([torch.inf, 1.0]), torch.tensor([torch.inf, 2.0]), "differs", 1.0),
    ],
)
def test_odd_numbers(one, other, status, largest):
    (found,) = idfx.diff(idfx.read_checkpoint({"a": one}), idfx.read_checkpoint({"a": other}))
    assert found.status == status and (largest is None or found.largest == largest)


def test_learned_scalars_are_compared():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.fc(x)

    structure = idfx.analyze(Block(), (X,))
    plans = [idfx.plan(structure, "rezero", start=start) for start in (0.0, 0.5)]
    assert [d.status for d in idfx.diff(*plans) if d.parameter.startswith("scalar")] == ["differs"]
    assert {d.status for d in idfx.diff(plans[0], plans[0])} == {"same"}
