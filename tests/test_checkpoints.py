"""Initialising what a checkpoint does not have: what is loaded, what grows, and what no file may do."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import idfx
from idfx.core.errors import CertificateError, PlanError, UsageError
from idfx.planning.file import from_json, to_json

WIDTH = 8


class Block(nn.Module):
    def __init__(self, hidden: int = 16, project: bool = False) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH) if project else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x) + self.fc2(torch.tanh(self.fc1(self.norm(x))))


class Net(nn.Module):
    def __init__(self, depth: int = 2, classes: int = 3, hidden: int = 16, project: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList(Block(hidden, project and index == depth - 1) for index in range(depth))
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def rows(number: int = 7) -> torch.Tensor:
    return torch.randn(number, 5, generator=torch.Generator().manual_seed(number))


def trained() -> Net:
    """A net whose every parameter and running statistic is something of its own."""
    torch.manual_seed(1)
    net = Net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(20):
        optimiser.zero_grad()
        (net(rows(16)) - 1).pow(2).mean().backward()
        optimiser.step()
    with torch.no_grad():
        for value in net.parameters():
            value += 0.1 * torch.randn_like(value)
    return net.eval()


@pytest.mark.parametrize("eps", [1e-6, 0.0])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_net_with_added_blocks_computes_what_it_did(tmp_path, suffix, eps):
    old, new, path = trained(), Net(depth=5), tmp_path / f"old{suffix}"
    idfx.save(old, path)
    report = idfx.init_(new, (rows(),), checkpoint=path, eps=eps)
    growth = report.certificate.growth
    assert growth.blocks == ("blocks.2", "blocks.3", "blocks.4") and not growth.fresh
    assert {*report.plan.loaded} == {name for name, _ in old.named_parameters()}
    x, state = rows(64), new.state_dict()
    assert all(torch.equal(state[name], value) for name, value in old.state_dict().items())
    before, after = old(x), new.eval()(x)
    assert torch.allclose(after, before, rtol=0, atol=1e-5) and (eps or torch.equal(after, before))
    assert growth.difference <= 1e-5 and (eps or growth.difference == 0)
    new.train()(x).pow(2).sum().backward()
    assert all(bool(new.blocks[index].fc2.weight.grad.any()) for index in (2, 3, 4))


def test_the_difference_is_what_two_models_show():
    old, new = trained(), Net(depth=3)
    report = idfx.init_(new, (rows(),), checkpoint=old.state_dict(), eps=1e-3)
    before, after = old(rows()), new.eval()(rows())
    assert report.certificate.growth.difference == pytest.approx(
        float((after - before).abs().max() / before.abs().max()), rel=1e-3
    )


def test_a_sum_that_is_added_in_place_grows_too():
    class InPlace(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for block in self.blocks:
                inside = block.fc2(torch.tanh(block.fc1(block.norm(x))))
                x = inside.add_(x)
            return self.head(x)

    old, new = trained(), InPlace(depth=4)
    growth = idfx.init_(new, (rows(),), checkpoint=old.state_dict(), eps=0.0).certificate.growth
    assert growth.blocks and growth.difference == 0 and torch.equal(old(rows()), new.eval()(rows()))


@pytest.mark.parametrize(
    ("arguments", "blocks", "fresh"),
    [
        ({"classes": 4}, (), {"head.weight", "head.bias"}),
        ({"depth": 3, "classes": 4}, ("blocks.2",), {"head.weight", "head.bias"}),
        ({"depth": 3, "project": True}, ("blocks.2",), {"blocks.2.project.weight", "blocks.2.project.bias"}),
    ],
)
def test_what_does_not_come_from_the_checkpoint_is_told(arguments, blocks, fresh):
    growth = idfx.init_(Net(**arguments), (rows(),), checkpoint=trained().state_dict()).certificate.growth
    assert growth.blocks == blocks and {*growth.fresh} == fresh and growth.difference is None


def test_a_buffer_that_the_checkpoint_lacks_is_told():
    state = trained().state_dict()
    del state["blocks.0.norm.running_mean"]
    growth = idfx.init_(Net(), (rows(),), checkpoint=state).certificate.growth
    assert growth.fresh == ("blocks.0.norm.running_mean",)


def test_everything_loaded_is_the_loaded_model():
    old, new = trained(), Net()
    report = idfx.init_(new, (rows(),), checkpoint=old.state_dict())
    assert not report.plan.decisions and report.certificate.growth.difference == 0
    assert [check.status for check in report.certificate.checks] == ["unclaimed"] * 2


def test_a_widened_branch_starts_anew_behind_the_loaded_bias():
    report = idfx.init_(Net(hidden=32), (rows(),), checkpoint=trained().state_dict())
    assert {name for name in report.plan.decisions if name.startswith("blocks.0")} == {
        "blocks.0.fc1.weight", "blocks.0.fc1.bias", "blocks.0.fc2.weight"
    }  # fmt: skip
    assert {check.status for check in report.certificate.checks} == {"unclaimed"}  # fc2.bias is loaded and not 0
    told = "blocks.0.fc1.weight is [32, 8] in the model and [16, 8] in the checkpoint"
    assert any(told in note for note in report.plan.notes)


def test_frozen_parameters_are_loaded_and_other_dtypes_converted():
    old, new = trained(), Net(depth=3)
    new.stem.requires_grad_(False)
    idfx.init_(new, (rows(),), checkpoint={name: value.double() for name, value in old.state_dict().items()})
    assert torch.equal(new.stem.weight, old.stem.weight) and new.stem.weight.dtype == torch.float32


def test_words_have_the_last_word_and_scalars_keep_off():
    state = trained().state_dict()
    report = idfx.init_(Net(depth=3), (rows(),), checkpoint=state, set={"head.weight": 0, "stem": "keep"})
    assert "head.weight" in report.plan.decisions and {"stem.weight", "stem.bias"} == {*report.plan.kept}
    assert {*report.certificate.growth.fresh} == {"head.weight", "stem.weight", "stem.bias"}
    new = Net(depth=3)
    report = idfx.init_(new, (rows(),), scheme="rezero", checkpoint=state)
    assert [scalar.join for scalar in report.plan.scalars] == ["blocks.2"]
    assert report.certificate.growth.difference == 0 and torch.equal(new.eval()(rows()), trained()(rows()))


def test_a_plan_that_loads_is_a_value(tmp_path):
    old, new = trained(), Net(depth=3)
    torch.save(old.state_dict(), tmp_path / "old.pt")
    plan = idfx.init_(copy.deepcopy(new), (rows(),), checkpoint=tmp_path / "old.pt").plan
    again = from_json(to_json(plan))
    assert to_json(again) == to_json(plan) and set(again.loaded.values()) == {"old.pt"}
    before = [value.clone() for value in new.parameters()]
    with pytest.raises(PlanError, match=r"the plan loads it from old.pt; expected that checkpoint"):
        idfx.init_(new, (rows(),), plan=again)
    with pytest.raises(PlanError, match=r"stem.weight: the state dict has no tensor of shape \[8, 5\]"):
        idfx.init_(new, (rows(),), plan=again, checkpoint={"stem.bias": torch.ones(WIDTH)})
    assert all(torch.equal(a, b) for a, b in zip(before, new.parameters(), strict=True))
    report = idfx.init_(new, (rows(),), plan=again, checkpoint=tmp_path / "old.pt")
    assert report.certificate.growth.blocks == ("blocks.2",) and torch.equal(new.stem.weight, old.stem.weight)
    with pytest.raises(UsageError, match=r"the plan for Net loads nothing"):
        idfx.init_(Net(), (rows(),), plan=idfx.plan(idfx.analyze(Net(), (rows(),))), checkpoint=tmp_path / "old.pt")


def test_tied_weights_are_found_under_either_name():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(x))

    weight = torch.randn(9, WIDTH)
    for name in ("embed.weight", "head.weight"):
        net = Tied()
        idfx.init_(net, (torch.tensor([[1, 2, 3]]),), checkpoint={name: weight})
        assert torch.equal(net.embed.weight, weight) and net.head.weight is net.embed.weight


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "args": None},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"net.{name}": value for name, value in state.items()}},
    ],
)
def test_usual_forms_of_a_checkpoint(tmp_path, wrap):
    old, new = trained(), Net()
    torch.save(wrap(old.state_dict()), tmp_path / "old.ckpt")
    report = idfx.init_(new, (rows(),), checkpoint=tmp_path / "old.ckpt")
    assert not report.plan.decisions and torch.equal(new.eval()(rows()), old(rows()))


class Bomb:
    """A pickle that writes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def _bombs(path: Path, fuse: Path) -> dict[str, Any]:
    torch.save({"stem.weight": torch.ones(8, 5), "x": Bomb(str(fuse))}, path / "zip.pt")
    torch.save({"x": Bomb(str(fuse))}, path / "old.pt", _use_new_zipfile_serialization=False)
    (path / "bare.pt").write_bytes(pickle.dumps(Bomb(str(fuse))))
    (path / "bare.safetensors").write_bytes(pickle.dumps(Bomb(str(fuse))))
    torch.save(Net(), path / "module.pt")
    return {name: path / name for name in ("zip.pt", "old.pt", "bare.pt", "bare.safetensors", "module.pt")}


def test_nothing_is_unpickled(tmp_path):
    fuse, net = tmp_path / "exploded", Net()
    before = [value.clone() for value in net.parameters()]
    for name, path in _bombs(tmp_path, fuse).items():
        with pytest.raises(UsageError) as caught, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            idfx.init_(net, (rows(),), checkpoint=path)
        assert name in str(caught.value) and "expected" in str(caught.value) and "\n" not in str(caught.value)
        assert name.endswith("safetensors") or "torch.save(" in str(caught.value)
        assert not fuse.exists()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def _write(path: Path) -> None:
    torch.save([1, 2], path / "list.pt")
    torch.save({"a": {"b": torch.ones(1)}}, path / "deep.pt")
    torch.save({"model": {"a": torch.ones(1)}, "model_ema": {"a": torch.ones(1)}}, path / "two.pt")
    torch.save({"other.weight": torch.ones(2)}, path / "other.pt")
    save_file({"stem.weight": torch.ones(3)}, path / "shape.safetensors")
    (path / "cut.safetensors").write_bytes((path / "shape.safetensors").read_bytes()[:-4])
    (path / "empty.pt").write_bytes(b"")
    (path / "text.pt").write_text("hello")
    torch.save(trained().state_dict(), path / "whole.pt")
    (path / "cut.pt").write_bytes((path / "whole.pt").read_bytes()[:500])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.pt", r"nothing.pt: no such file"),
        (".", r": is a folder"),
        ("list.pt", r"list.pt: it holds a list; expected a state dict"),
        ("deep.pt", r"deep.pt: no tensors by name"),
        ("two.pt", r"two.pt: 2 state dicts \(model, model_ema\); expected one"),
        ("other.pt", r"other.pt: none of its 1 tensors \(other.weight, ...\) has the name and shape"),
        ("shape.safetensors", r"shape.safetensors: none of its 1 tensors"),
        ("cut.safetensors", r"cut.safetensors: .*expected a safetensors file"),
        ("empty.pt", r"empty.pt: .*expected"),
        ("text.pt", r"text.pt: .*expected"),
        ("cut.pt", r"cut.pt: .*expected"),
    ],
)
def test_what_is_no_checkpoint_of_the_model_is_refused(tmp_path, name, message):
    _write(tmp_path)
    net = Net()
    before = [value.clone() for value in net.parameters()]
    with pytest.raises(UsageError, match=message):
        idfx.init_(net, (rows(),), checkpoint=tmp_path / name)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_new_block_behind_which_a_value_was_kept_still_fails():
    net = Net(depth=3)
    with torch.no_grad():
        net.blocks[2].fc2.bias.fill_(1.0)
    with pytest.raises(CertificateError, match=r"blocks.2 deviates"):
        idfx.init_(net, (rows(),), checkpoint=trained().state_dict(), keep=["blocks.2.fc2.bias"])


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("blocks.", "layers."): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("model", "change"),
    [
        (lambda: Net(depth=1), dict),  # fewer blocks
        (lambda: Net(hidden=32), dict),  # other widths
        (lambda: Net(depth=4), _renamed),  # other names
        (lambda: Net(depth=4), lambda state: {**state, "last.weight": torch.ones(3, 3)}),  # a layer more
        (lambda: Net(depth=4), lambda state: {**state, "head.weight": state["head.weight"].to(torch.int8)}),
    ],
)
def test_what_a_checkpoint_has_beside_forbids_the_claim(model, change):
    report = idfx.init_(model(), (rows(),), checkpoint=change(trained().state_dict()))
    growth = report.certificate.growth
    assert growth.unplaced and growth.difference is None and report.plan.notes


class Changed(Net):
    """Its blocks do more than add, in the same weights."""

    def __init__(self, way: str, depth: int) -> None:
        super().__init__(depth)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            inside = block.fc2(torch.tanh(block.fc1(block.norm(x))))
            x = {"halved": 0.5 * x, "pooled": nn.functional.avg_pool1d(x, 3, 1, 1)}[self.way] + inside
        return self.head(x)


@pytest.mark.parametrize("way", ["halved", "pooled"])
def test_a_shortcut_that_is_no_identity_forbids_the_claim(way):
    old, new = Changed(way, 2), Changed(way, 4)
    growth = idfx.init_(new, (rows(),), checkpoint=old.state_dict()).certificate.growth
    assert growth.altered == growth.blocks and len(growth.altered) == 2 and growth.difference is None


def test_tied_weights_that_differ_in_the_file_are_told():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(x))

    state = {"embed.weight": torch.randn(9, WIDTH), "head.weight": torch.randn(9, WIDTH)}
    report = idfx.init_(Tied(), (torch.tensor([[1, 2, 3]]),), checkpoint=state)
    assert report.certificate.growth.unplaced == ("head.weight",)
    assert any("head.weight is tied to embed.weight" in note for note in report.plan.notes)


def test_outputs_that_are_no_numbers_prove_nothing():
    state = trained().state_dict()
    state["head.bias"][0] = torch.nan
    with pytest.raises(CertificateError) as caught:
        idfx.init_(Net(depth=3), (rows(),), checkpoint=state)
    assert caught.value.report.certificate.growth.difference is None
    assert any("head.bias holds NaN" in note for note in caught.value.report.plan.notes)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to("meta"),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: torch.nested.nested_tensor([t]),
    ],
)
def test_tensors_that_cannot_be_copied_are_refused(change):
    state = {**trained().state_dict(), "head.weight": change(torch.ones(3, WIDTH))}
    with pytest.raises(UsageError, match=r"head.weight is a \w+( or nested)? tensor; expected plain tensors"):
        idfx.init_(Net(), (rows(),), checkpoint=state)


def test_a_run_that_takes_another_path_than_on_meta_tensors_is_read_again():
    class Looking(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not x.is_meta:
                x = x + 0.0  # more calls than on the meta device
            return super().forward(x)

    old, new = Looking(2), Looking(3)
    growth = idfx.init_(new, (rows(),), checkpoint=old.state_dict(), eps=0.0).certificate.growth
    assert growth.blocks == ("blocks.2",) and growth.difference == 0
