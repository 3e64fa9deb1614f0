"""Rules for the names of a checkpoint: what they match, what they make, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import idfx
from idfx.core.errors import UsageError
from idfx.planning.renaming import read_rules, rename

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(torch.tanh(self.fc1(self.norm(x))))


class Net(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def old() -> Net:
    torch.manual_seed(3)
    net = Net()
    with torch.no_grad():
        for value in net.parameters():
            value += 0.2 * torch.randn_like(value)
    return net


def names(rules: object, given: list[str]) -> dict[str, str]:
    """By new name, the old one."""
    return rename("f", {name: name for name in given}, read_rules(rules))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rules", "given", "made"),
    [
        (["layers.{i}=layers.{2*i}"], ["layers.1.w", "layers.10.w", "head.w"], ["layers.2.w", "layers.20.w", "head.w"]),
        (["layers.{i}=h.{(i+1)*3-2}"], ["layers.0.w", "layers.4"], ["h.1.w", "h.13"]),
        (["h.{i}=stages.{i//2}.blocks.{i-i//2*2}"], ["h.5.w"], ["stages.2.blocks.1.w"]),
        (["s.{s}.b.{b}=h.{4*s+b}"], ["s.2.b.3.w"], ["h.11.w"]),
        (["a.{i}.b.{i}=c.{i}"], ["a.1.b.1", "a.1.b.2"], ["c.1", "a.1.b.2"]),  # the same number twice
        (["a=b"], ["a.w", "ab.w", "c.a.w"], ["b.w", "ab.w", "c.a.w"]),  # whole components, from the start
        (["a.w=x", "a=b"], ["a.w", "a.v"], ["x", "b.v"]),  # the first that matches
        (["a=b", "b=a"], ["a.w", "b.w"], ["b.w", "a.w"]),  # once: an exchange
        (["a.b=c"], ["a.b", "axb"], ["c", "axb"]),  # a dot is a dot
        ({"encoder": "model.encoder"}, ["encoder.w"], ["model.encoder.w"]),
    ],
)
def test_what_rules_make_of_names(rules, given, made):
    assert names(rules, given) == dict(zip(made, given, strict=True))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["layer.{i}=layers.{i}"], r"f has no layer\.\{i\}.*Did you mean layers\.\{i\}"),
        (["layers.{i}=layers.{i//3}"], r"layers\.0\.w and layers\.1\.w of f would both be layers\.0\.w"),
        (["layers.{i}=layers.{i-1}"], r"layers\.0\.w gives the number -1"),
        (["layers.{i}=layers.{4//i}"], r"layers\.0\.w makes it divide by 0"),
        (["layers.{i}=layers.{2**i}"], r"\{2\*\*i\} on the right; expected \+, -, \* and //"),
        (["layers.{i}=layers.{j}"], r"\{j\} on the right.*\(i\)"),
        (["layers.{i}=layers.{i.real}"], "on the right"),
        (["layers.{i}=layers.{__import__('os')}"], "on the right"),
        (["layers.{i}=layers.{i/2}"], "on the right"),
        (["layers.{i}=layers.{True}"], "on the right"),
        (["layers.{2*i}=layers.{i}"], r"\{2\*i\} on the left"),
        (["layers.{i=layers.{i}"], "a brace without its other half"),
        (["=layers"], "expected OLD=NEW"),
        (["layers=h", "layers.{i}=g.{i}"], "an earlier rule leaves"),
        (["no_such_file.txt"], "No such file"),
    ],
)
def test_what_is_no_rule_is_refused(rules, message):
    with pytest.raises(UsageError, match=message):
        names(rules, ["layers.0.w", "layers.1.w", "head.w"])


def test_rules_in_files(tmp_path):
    lines, table, broken = tmp_path / "rules.txt", tmp_path / "rules.json", tmp_path / "broken.json"
    lines.write_text("# interleaved\nlayers.{i}=layers.{2*i}\n\nhead=out\n")
    table.write_text(json.dumps({"layers.{i}": "layers.{2*i}", "head": "out"}))
    broken.write_text('{"layers.{i}": 3}')
    assert read_rules(lines) == read_rules(str(table)) == read_rules(["layers.{i}=layers.{2*i}", "head=out"])
    with pytest.raises(UsageError, match="no object of names"):
        read_rules(broken)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_new_blocks_between_those_of_the_checkpoint(eps):
    small, deep = old(), Net(depth=8)
    report = idfx.init_(
        deep, (torch.randn(3, 5),), checkpoint=small.state_dict(), rename="layers.{i}=layers.{2*i}", eps=eps
    )
    assert not any("comes before" in note for note in report.plan.notes)  # the order is kept
    growth = report.certificate.growth
    assert (
        growth.blocks == ("layers.1", "layers.3", "layers.5", "layers.7") and not growth.fresh and not growth.unplaced
    )
    assert all(torch.equal(deep.layers[2 * i].fc1.weight, small.layers[i].fc1.weight) for i in range(4))
    x = torch.randn(64, 5)
    change = float((deep(x) - small(x)).detach().abs().max() / small(x).detach().abs().max())
    assert (change == 0 if eps == 0 else change < 1e-5) and growth.difference <= 1e-5
    deep(x).pow(2).sum().backward()
    assert all(bool(deep.layers[index].fc2.weight.grad.any()) for index in (1, 3, 5, 7))


def test_the_order_of_the_blocks_matters():
    """Two blocks that change places make another function of the same weights, which only their names show."""
    small, deep = old(), Net(depth=8)
    report = idfx.init_(
        deep, (torch.randn(3, 5),), checkpoint=small.state_dict(), rename=["layers.0=layers.1", "layers.1=layers.0"]
    )
    assert any("layers.1.norm.weight comes before layers.0.norm.weight" in note for note in report.plan.notes)
    x = torch.randn(64, 5)
    assert float((deep(x) - small(x)).detach().abs().max()) > 1e-3
    assert torch.equal(deep.layers[1].fc1.weight, small.layers[0].fc1.weight)


def test_a_rule_that_makes_no_name_of_the_model_is_refused():
    with pytest.raises(UsageError, match=r"Net has no layer\.0\..*Did you mean layers\.0"):
        idfx.init_(Net(8), (torch.randn(3, 5),), checkpoint=old().state_dict(), rename={"layers.{i}": "layer.{2*i}"})
    with pytest.raises(UsageError, match="given without a checkpoint"):
        idfx.init_(Net(8), (torch.randn(3, 5),), rename={"layers.{i}": "layers.{2*i}"})


def test_prefixes_of_the_whole_checkpoint_are_still_ignored():
    state = {f"net.{name}": value for name, value in old().state_dict().items()}
    report = idfx.init_(
        Net(8), (torch.randn(3, 5),), checkpoint=state, rename={"net.layers.{i}": "net.layers.{2*i}"}, eps=0.0
    )
    assert report.certificate.growth.difference == 0 and len(report.certificate.growth.blocks) == 4


def test_the_commands_take_rules_and_a_plan_is_applied_with_them(tmp_path):
    from idfx_cli.main import cli

    spec = tmp_path / "deep.py"
    spec.write_text(
        "import torch\nfrom torch import nn\n"
        "class Block(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)\n"
        "    def forward(self, x):\n        return x + self.fc2(torch.tanh(self.fc1(x)))\n"
        "def deep(depth=6):\n    return nn.Sequential(*(Block() for _ in range(depth)))\n"
        "def small():\n    return deep(3)\n"
    )
    small, deep = f"{spec}:small", f"{spec}:deep"
    file, plan, out = (str(tmp_path / name) for name in ("small.pt", "plan.json", "deep.pt"))
    run, shape, rule = CliRunner().invoke, ["--input-shape", "2,8"], ["--rename", "{i}={2*i}"]
    assert run(cli, ["init", small, *shape, "--scheme", "kaiming", "-o", file]).exit_code == 0
    assert run(cli, ["plan", deep, *shape, "--from", file, *rule, "-o", plan]).exit_code == 0
    again = run(cli, ["init", deep, *shape, "--plan", plan, "--from", file, *rule, "-o", out])
    assert again.exit_code == 0 and "3 added branches change the outputs" in again.output
    assert torch.equal(torch.load(out)["4.fc1.weight"], torch.load(file)["2.fc1.weight"])
    refused = run(cli, ["init", deep, *shape, *rule, "-o", out])
    assert refused.exit_code == 2 and "--rename: given without --from" in refused.output
