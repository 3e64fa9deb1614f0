"""A larger vocabulary: old tokens give what they gave, and new ones are as likely as an average one at most."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from idfx_cli.main import cli
from torch import nn

import idfx
from idfx.core.errors import CertificateError, UsageError

OLD, NEW = 11, 15


class Language(nn.Module):
    def __init__(self, tokens: int, tied: bool, inner: int = 16, depth: int = 1, after: str = "") -> None:
        super().__init__()
        self.embed, self.place, self.after = nn.Embedding(tokens, 8), nn.Parameter(torch.randn(OLD, 8)), after
        self.up = nn.ModuleList(nn.Linear(8, inner) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(inner, 8) for _ in range(depth))
        self.head = nn.Linear(8, tokens, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(x)))
        x = self.head(x)
        return x.log_softmax(-1) if self.after else x


def trained(tied: bool, **arguments: object) -> Language:
    torch.manual_seed(5)
    net = Language(OLD, tied, **arguments)  # type: ignore[arg-type]
    with torch.no_grad():
        for value in net.parameters():
            value += 0.3 * torch.randn_like(value)
    return net


def tokens(number: int, of: int = OLD) -> torch.Tensor:
    return torch.randint(of, (number, 6), generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("example", [tokens(3), tokens(3, NEW), torch.full((2, 6), NEW - 1)])
@pytest.mark.parametrize("tied", [True, False])
def test_old_tokens_give_what_they_gave(tied, example):
    old, new = trained(tied), Language(NEW, tied)
    report = idfx.init_(new, (example,), checkpoint=old.state_dict(), new_rows=True)
    growth = report.certificate.growth
    names = {"embed.weight", "head.weight"} | (set() if tied else {"head.bias"})
    assert {*growth.longer} == names and not growth.widened and growth.difference <= 1e-6 and not growth.place
    assert not report.plan.decisions and (new.head.weight is new.embed.weight) is tied
    x = tokens(64)
    assert torch.allclose(new(x)[..., :OLD], old(x), rtol=0, atol=1e-5)
    assert torch.equal(new.embed.weight[:OLD], old.embed.weight)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_as_likely_as_an_average_one_at_most(tied):
    """exp is convex, so the exponential of a mean is at most the mean of the exponentials."""
    old, new = trained(tied), Language(NEW, tied)
    idfx.init_(new, (tokens(3),), checkpoint=old.state_dict(), new_rows=True)
    likely = new(tokens(64)).detach().softmax(-1)
    assert bool((likely[..., OLD:] <= 1.1 * likely[..., :OLD].mean(-1, keepdim=True)).all())
    rows = new.embed.weight.detach()
    assert (
        torch.allclose(rows[OLD:], rows[:OLD].mean(0).expand(NEW - OLD, 8), atol=0.1) and len(rows.unique(dim=0)) == NEW
    )


def test_a_larger_vocabulary_wider_layers_and_more_blocks_at_once():
    old, new = trained(True), Language(NEW, True, inner=23, depth=3)
    report = idfx.init_(new, (tokens(3, NEW),), checkpoint=old.state_dict(), new_rows=True, widen=True, eps=0.0)
    growth = report.certificate.growth
    assert len(growth.blocks) == 2 and growth.longer and growth.widened and growth.difference < 1e-5
    x = tokens(64)
    assert torch.allclose(new(x)[..., :OLD], old(x), rtol=0, atol=1e-5)


def test_outputs_that_all_tokens_share_are_refused():
    with pytest.raises(CertificateError, match=r"differ .* from aten\.log_softmax in the forward"):
        idfx.init_(
            Language(NEW, True, after="softmax"), (tokens(3),), checkpoint=trained(True, after="softmax").state_dict(),
            new_rows=True,
        )  # fmt: skip


def test_other_tables_of_other_lengths_do_not_grow():
    """A position that the checkpoint never had has no value to continue: it is told as before."""
    old, new = trained(True), Language(NEW, True)
    new.place = nn.Parameter(torch.randn(20, 8))
    with pytest.raises(CertificateError, match=r"grew, but place is not loaded"):
        idfx.init_(new, (tokens(3),), checkpoint=old.state_dict(), new_rows=True)


def test_without_the_option_a_table_of_another_length_starts_anew():
    report = idfx.init_(Language(NEW, True), (tokens(3),), checkpoint=trained(True).state_dict())
    assert "embed.weight" not in report.plan.loaded and report.certificate.growth.difference is None


def test_new_rows_are_certified_or_not_made():
    state = trained(True).state_dict()
    with pytest.raises(UsageError, match="new_rows: given without a certificate"):
        idfx.init_(Language(NEW, True), (tokens(3),), checkpoint=state, new_rows=True, certify=False)
    report = idfx.init_(Language(OLD, True), (tokens(3),), checkpoint=state, new_rows=True)
    assert any("no table of tokens has fewer rows" in note for note in report.plan.notes)


def test_the_command(tmp_path):
    spec = tmp_path / "language.py"
    spec.write_text(
        "import torch\nfrom torch import nn\n"
        "class Language(nn.Module):\n"
        "    def __init__(self, tokens):\n        super().__init__()\n"
        "        self.embed, self.mid, self.head = nn.Embedding(tokens, 8), nn.Linear(8, 8), nn.Linear(8, tokens)\n"
        "    def forward(self, x):\n        return self.head(torch.tanh(self.mid(self.embed(x))))\n"
        "def old():\n    return Language(11)\n"
        "def new():\n    return Language(13)\n"
    )
    old, new = str(tmp_path / "old.pt"), str(tmp_path / "new.pt")
    run, shape = CliRunner().invoke, ["--input-shape", "2,6:int64"]
    assert run(cli, ["init", f"{spec}:old", *shape, "--scheme", "kaiming", "-o", old]).exit_code == 0
    done = run(cli, ["init", f"{spec}:new", *shape, "--from", old, "--new-rows", "-o", new])
    assert done.exit_code == 0 and "new rows in 3 tensors" in done.output and "on old tokens" in done.output
    assert torch.equal(torch.load(new)["embed.weight"][:11], torch.load(old)["embed.weight"])
    assert run(cli, ["init", f"{spec}:new", *shape, "--new-rows", "-o", new]).exit_code != 0
