"""Models that are odd functions without their biases: found, and given biases that make them something else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import idfx
from idfx.analysis.parity import is_odd
from idfx.analysis.queries import StructureQueries
from idfx.analysis.structure import analysis_of


class Residual(nn.Module):
    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner, self.end = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.function, self.head = function, nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + self.end(self.function(self.inner(x)))
        return self.head(x)


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.a(x)) * torch.tanh(self.b(x)))


MODELS = [
    lambda: Residual(nn.Tanh()),
    lambda: Residual(nn.Hardtanh()),
    lambda: Residual(nn.Tanhshrink()),
    lambda: Residual(nn.ReLU()),
    lambda: Residual(nn.GELU()),
    lambda: Residual(nn.Sigmoid()),
    lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)),
    lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)),
    lambda: nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1), nn.Linear(8, 2)),
    lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)),
    Squares,
]


@pytest.mark.parametrize("made", MODELS)
def test_what_is_read_is_what_the_model_does(made):
    """Without biases and shifts, f(−x) is compared with −f(x) by running the model."""
    torch.manual_seed(0)
    model = made().eval()
    x = torch.randn(5, 4)
    structure = idfx.analyze(model, (x,))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        odd = torch.allclose(model(-x), -model(x), atol=1e-6)
    assert is_odd(structure, analysis_of(structure).flow) == odd


@pytest.mark.parametrize("scheme", ["idinit", "idfx"])
def test_an_odd_model_starts_as_another_one(scheme):
    model = Residual(nn.Tanh())
    x = torch.randn(5, 4)
    report = idfx.init_(model, (x,), scheme=scheme)
    assert report.certificate.certified == 2
    assert float((model(-x) + model(x)).abs().max()) > 0.01
    assert not model.end.bias.any() and not model.head.bias.any()  # the end is closed, and no function follows the head
    assert model.inner.bias.abs().max() <= 8**-0.5 and model.inner.bias.unique().numel() == 8
    assert model.stem.bias.abs().max() <= 4**-0.5 and "odd" in report.plan.decisions["stem.bias"].reason


@pytest.mark.parametrize("function", [nn.ReLU(), nn.GELU()])
def test_other_models_keep_biases_of_zero(function):
    model = Residual(function)
    idfx.init_(model, (torch.randn(5, 4),))
    assert not any(parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_the_paper_read_literally_has_no_drawn_biases():
    model = Residual(nn.Tanh())
    idfx.init_(model, (torch.randn(5, 4),), published=True)
    assert not any(parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_tokens_make_no_odd_model():
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    structure = idfx.analyze(model, (torch.tensor([[1, 2]]),))
    assert StructureQueries(structure).breaks_oddness("1.bias") is None
