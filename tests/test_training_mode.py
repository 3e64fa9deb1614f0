"""What only training mode uses is initialised by its role there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import idfx

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Classifier(nn.Module):
    """A head on the features of the middle in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.aux = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
        nn.init.normal_(self.aux[4].weight, 0, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        out = self.head((x + self.mid(x)).mean((2, 3)))
        return (out, self.aux(x)) if self.training else out


class Supervised(nn.Module):
    """A head after each block, all but the last in training alone, in a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(16, 5) for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x).flatten(1)
        outs: dict[str, Tensor] = {}
        for index, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            x = x + torch.tanh(block(x))
            if self.training or index == 2:
                outs[str(index)] = head(x)
        return outs


class Predicting(nn.Module):
    """A residual block and a norm that only the second output of training goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 8), nn.Linear(16, 5)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).flatten(1)
        if not self.training:
            return self.head(x)
        return self.head(x), self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


HEADS = {Classifier: ["aux.0", "aux.4"], Supervised: ["heads.0", "heads.1"], Predicting: ["up", "down"]}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("batch", [1, 4])
def test_what_training_mode_alone_uses_is_initialised(kind: type[nn.Module], batch: int) -> None:
    model = kind()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = idfx.init_(model, (X[:batch],))
    assert report.certificate is not None and report.certificate.passed and not report.plan.kept
    for head in HEADS[kind]:
        assert report.structure.roles[f"{head}.weight"].name == "unused"
        assert report.plan.decisions[f"{head}.weight"].reason.endswith("; training mode alone uses it")
        assert not torch.equal(model.state_dict()[f"{head}.weight"], before[f"{head}.weight"])
        assert not bool(model.state_dict()[f"{head}.bias"].any())
    assert [*report.plan.decisions] == [name for name, _ in model.named_parameters()]
    assert not [
        f for f in idfx.audit(model, (X[:batch],)).at_least("warning") if f.parameter.split(".")[0] in "aux heads"
    ]


def test_a_block_of_training_mode_is_closed() -> None:
    model = Predicting()
    idfx.init_(model, (X,))
    first, second = model.train()(X)
    assert torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("scheme", ["xavier", "kaiming", "zero-gamma"])
def test_every_scheme_writes_it(scheme: str) -> None:
    model = Classifier()
    report = idfx.init_(model, (X,), scheme=scheme)
    assert report.certificate is not None and report.certificate.passed
    assert float(model.aux[4].weight.std()) < 0.2  # 1/√512 = 0.04, times a gain


class Idle(nn.Module):
    """A layer that neither mode uses, and a token that only training mode adds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.idle = nn.Conv2d(3, 16, 8), nn.Linear(16, 5), nn.Linear(16, 5)
        self.masked = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(1)
        return self.head(torch.where(torch.rand(16, device=x.device) < 0.5, x, self.masked) if self.training else x)


def test_what_neither_mode_uses_and_tokens_stay() -> None:
    plan = idfx.init_(Idle(), (X,)).plan
    assert plan.kept["idle.weight"] == "the forward pass does not use it"
    assert plan.kept["masked"].endswith("; training mode alone uses it")


def test_a_training_mode_that_cannot_be_read_changes_nothing() -> None:
    class Refuses(Idle):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("labels, please")
            return super().forward(x)

    report = idfx.init_(Refuses(), (X,))
    assert report.structure.training is None and "masked" in report.plan.kept
