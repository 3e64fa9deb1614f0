"""The start of a model: size of the signal, gradients, frozen parameters; where two inputs become one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import idfx
from idfx.certification.start import compare, observe_start
from idfx.core.errors import CertificateError


def _rows(width: int = 8) -> torch.Tensor:
    return torch.randn(4, width, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two branches in a row, with matrices that the test chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.second(torch.tanh(self.first(x)))
        return self.head(x)


def _steps(model: nn.Module) -> dict[str, int | None]:
    return dict(observe_start(model, idfx.analyze(model, (_rows(),))).steps)


def test_sizes_are_the_root_mean_squares_of_join_and_output():
    model = Two()
    with torch.no_grad():
        model.second.weight.zero_()
        model.head.weight.copy_(3 * torch.eye(8))
    found = observe_start(model, idfx.analyze(model, (_rows(),)))
    size = float(_rows().square().mean().sqrt())
    assert found.sizes == pytest.approx({"Two": size, "output": 3 * size})


def test_the_gradient_waits_for_the_zeros_before_it():
    """By the chain rule: with the last of the branch at 0, the one before gets its first gradient in step 2; with a
    head of zeros too, the last one gets it in step 2 and the one before in step 3."""
    model = Two()
    nn.init.zeros_(model.second.weight)
    assert _steps(model) == {"first.weight": 2, "second.weight": 1, "head.weight": 1}
    nn.init.zeros_(model.head.weight)
    assert _steps(model) == {"first.weight": 3, "second.weight": 2, "head.weight": 1}


def test_two_zeros_in_a_row_never_get_a_gradient():
    """Each is the only way of the gradient to the other."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    for layer in model:
        nn.init.zeros_(layer.weight)
    assert set(_steps(model).values()) == {None}


def test_the_model_is_left_alone():
    model = Two()
    model.first.weight.grad = torch.ones(8, 8)
    before = {name: (value.detach().clone(), value._version) for name, value in model.named_parameters()}
    observe_start(model, idfx.analyze(model, (_rows(),)))
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0]) and value._version == before[name][1]
    assert torch.equal(model.first.weight.grad, torch.ones(8, 8)) and model.head.weight.grad is None


def test_a_plan_that_stops_the_gradient_fails_the_certificate():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False))
    with pytest.raises(CertificateError, match=r"no gradient gets to 0\.weight and 1 more"):
        idfx.init_(model, (_rows(),), set={"*.weight": 0})


def test_a_signal_that_vanishes_fails_the_certificate():
    """Ten layers of entries around 1e-4 divide the signal by more than a thousand each."""
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(10)))
    with pytest.raises(CertificateError, match=r"signal at output has a root mean square of .*e-\d\d"):
        idfx.init_(model, (_rows(),), set={"*.weight": "normal(std=1e-4)"})


def test_a_start_better_than_the_authors_passes():
    """The author's hundred layers halve the signal each; identities keep it."""
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(100)))
    for layer in model:
        nn.init.orthogonal_(layer.weight).data.mul_(0.5)
    structure = idfx.analyze(model, (_rows(),))
    author = observe_start(model, structure)
    report = idfx.init_(model, (_rows(),))
    assert author.sizes["output"] < 1e-20 < 0.1 < report.certificate.start.sizes["output"]
    assert report.certificate.passed and not compare(observe_start(model, structure), author).lost


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def test_adapters_that_start_as_nothing_must_go_on_doing_so():
    model = Adapted()
    structure = idfx.analyze(model, (_rows(),))
    author = observe_start(model, structure)
    assert author.neutral
    assert compare(author, author).changed == 0
    with torch.no_grad():
        model.up.weight.fill_(0.1)
    now = observe_start(model, structure)
    assert not now.neutral and compare(now, author).changed > 0.01


def test_the_operator_that_loses_the_signal_is_named():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(11, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.embed(x))

    model = Tokens()
    nn.init.zeros_(model.embed.weight)
    tokens = torch.tensor([[1, 2, 3]])
    found = idfx.certify(model, idfx.analyze(model, (tokens,)))
    assert found.passed and "in aten.embedding in module 'embed', whose embed.weight is 0" in found.remark
    model.embed.weight.requires_grad_(False)
    found = idfx.certify(model, idfx.analyze(model, (tokens,)))
    assert not found.passed and found.failures[0].endswith("in aten.embedding in module 'embed'")


def test_a_path_that_depends_on_values_is_certified_as_seen():
    class Early(nn.Module):
        """Leaves after the first block if the features are small, which values decide."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = x + block(x)
                if not x.is_meta and x.abs().mean() < 100:
                    break
            return x

    model = Early()
    report = idfx.init_(model, (_rows(),))
    assert report.certificate.passed
