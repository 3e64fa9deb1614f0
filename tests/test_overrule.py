"""Overriding a role: the consequences for the joins, the plan and the certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from idfx_cli.main import cli
from small_models import initialised_with_zeros
from torch import nn

import idfx
from idfx.core.errors import CertificateError, UsageError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """x + second(relu(first(x))), with an outer block around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


class Frozen(nn.Module):
    """A branch that idfx leaves open: its last weight also leaves the block by another way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x).relu())
        return x + y + self.head(y.relu())


def test_an_end_is_moved_and_the_certificate_holds_the_model_to_it() -> None:
    net = Block()
    report = initialised_with_zeros(net, (X,), roles={"first.weight": "end"})
    (join,) = report.structure.joins
    assert [end.parameter for end in join.ends] == ["first.weight"] and join.zeroable
    assert (not net.first.weight.any() and torch.equal(net.second.weight, torch.eye(4))) or net.second.weight.any()
    assert report.structure.roles["second.weight"].name == "inner"
    assert "set by --role" in report.structure.roles["first.weight"].evidence
    assert torch.equal(net(X), X) and report.certificate is not None and report.certificate.certified == 1


def test_a_wrong_word_is_found_out() -> None:
    """Behind the weight that is called the end stands an activation that is not 0 at 0."""
    net = nn.Sequential(Block())
    net[0].forward = lambda x: x + net[0].second(net[0].first(x).sigmoid())
    with pytest.raises(CertificateError, match="deviates from its shortcut"):
        idfx.init_(net, (X,), roles={"0.first.weight": "end"})


def test_an_end_that_is_none_leaves_the_join_open() -> None:
    net = Block()
    report = idfx.init_(net, (X,), roles={"second.weight": "inner"}, loosen="none")
    (join,) = report.structure.joins
    assert not join.zeroable and "second.weight does not end it, set by --role" in join.reason
    assert torch.equal(net.second.weight, torch.eye(4))
    assert report.certificate is not None and [check.status for check in report.certificate.checks] == ["open"]


def test_a_join_that_idfx_leaves_open_can_be_closed() -> None:
    net = Frozen()
    structure = idfx.analyze(net, (X,))
    opened = [join.name for join in structure.joins if not join.zeroable]
    assert opened
    report = idfx.init_(net, (X,), roles={"second.weight": "end"}, eps=0.0)
    assert not net.second.weight.any()
    checks = {check.join: check.status for check in report.certificate.checks} if report.certificate else {}
    assert all(checks[name] == "identity" for name in opened)


def test_patterns_and_later_words() -> None:
    net = nn.Sequential(Block(), Block())
    structure = idfx.analyze(net, (X,), roles={"*.weight": "inner", "1.second.weight": "end"})
    assert [join.zeroable for join in structure.joins] == [False, True]
    assert structure.role_overrides["0.first.weight"] == "inner"


def test_the_word_goes_into_the_plan_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\nclass Block(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)\n"
        "    def forward(self, x):\n        return x + self.second(self.first(x).relu())\n"
    )
    spec, plan = f"{file}:Block", tmp_path / "plan.json"

    def run(*words: Any) -> Any:
        return CliRunner().invoke(cli, [str(word) for word in words])

    shown = run("plan", spec, "--input-shape", "2,4", "--role", "first.weight=end", "-o", plan)
    assert shown.exit_code == 0, shown.output
    assert json.loads(plan.read_text())["roles"] == {"first.weight": "end"}
    made = run("init", spec, "--input-shape", "2,4", "--plan", plan, "-o", tmp_path / "w.pt", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["certificate"]["certified"] == 1
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    assert state["first.weight"].abs().max() < 1e-5 < state["second.weight"].abs().max()


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ({"secnd.weight": "end"}, "no such parameter.*Did you mean second.weight"),
        ({"second.weight": "edn"}, "unknown; expected one of.*Did you mean end"),
        ({"second.bias": "inner"}, "finds no matrix in it"),
        ({"0.weight": "end"}, "no residual join has it"),
    ],
)
def test_words_that_make_no_sense_are_refused(roles: dict[str, str], words: str) -> None:
    net: nn.Module = nn.Sequential(nn.Linear(4, 4)) if "0.weight" in roles else Block()
    with pytest.raises(UsageError, match=words):
        idfx.analyze(net, (X,), roles=roles)
