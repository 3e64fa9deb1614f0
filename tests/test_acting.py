"""Constant factors, oscillating functions, and zeros and gains that belong together, judged by running."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import idfx


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Equalised(nn.Module):
    """A layer whose weight is multiplied by 1 / √(fan-in) in each forward pass."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class Tangent(nn.Module):
    """A layer whose output is divided by √(fan-in)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() / math.sqrt(self.weight.shape[1])


class Capped(nn.Module):
    """A layer whose output is bounded by ±15 and nearly unchanged where it is small."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return 15 * torch.tanh(self.linear(x) / 15)


@pytest.mark.parametrize("layer", [Equalised, Tangent])
def test_the_acting_matrix_is_the_identity(layer: type[nn.Module]) -> None:
    """By running it: a stack of such layers passes on what is not negative."""
    torch.manual_seed(0)
    net = nn.Sequential(layer(16, 16), nn.ReLU(), layer(16, 16), nn.ReLU(), layer(16, 16))
    idfx.init_(net, (rows(2, 16),))
    x = rows(5, 16).abs()
    assert torch.allclose(net(x), x, atol=1e-4)


def test_an_orthogonal_matrix_acts_as_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Equalised(16, 16), Equalised(16, 16))
    idfx.init_(net, (rows(2, 16),), scheme="orthogonal")
    x = rows(5, 16)
    assert torch.allclose(net(x).norm(dim=1), x.norm(dim=1), rtol=1e-5)


def test_factors_that_cancel_are_none() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), Capped(4, 4))
    report = idfx.init_(net, (rows(2, 4),), loosen="none", set={"*bias": 0})  # tanh is odd: biases would be drawn
    assert report.plan.decisions["1.linear.weight"].arguments["tau"] == 1.0
    x = rows(5, 4) / 100
    assert torch.allclose(net(x), x, atol=1e-6)


class Scaled(nn.Module):
    """A residual block with a constant factor on its branch, as LoRA has."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.a, self.b, self.factor = nn.Linear(8, 8), nn.Linear(8, 8), factor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("factor", [0.1, 16.0])
def test_the_end_acts_with_eps(factor: float) -> None:
    torch.manual_seed(0)
    net = Scaled(factor)
    report = idfx.init_(net, (rows(2, 8),))
    assert report.certificate is not None and report.certificate.certified == 1
    assert math.isclose(float(net.b.weight.abs().max()) * factor, 1e-6, rel_tol=1e-5)


class Sine(nn.Module):
    def __init__(self, inputs: int, outputs: int, bound: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


def test_frequencies_and_phases_stay() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Sine(2, 32, 0.5), Sine(32, 32, 0.0144), nn.Linear(32, 1))
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    plan = idfx.init_(net, (rows(4, 2),), scheme="kaiming").plan
    assert list(plan.decisions) == ["2.bias"]
    assert "aten.sin" in plan.kept["0.linear.bias"] and "frequencies" in plan.kept["2.weight"]
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters() if name != "2.bias")
    idfx.init_(net, (rows(4, 2),), overwrite_deliberate=True, loosen="none")
    assert not torch.equal(net[0].linear.bias, before["0.linear.bias"])
    assert torch.allclose(30 * net[1].linear.weight, torch.eye(32), atol=1e-4)


class Snake(nn.Module):
    """Passes x on beside the sine of it, so that an identity before it passes the signal."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(x) ** 2


def test_an_oscillation_beside_the_signal_keeps_nothing() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Snake(), nn.Linear(4, 4))
    assert idfx.plan(idfx.analyze(net, (rows(2, 4),))).kept == {}


class Dora(nn.Module):
    """W' = m · (W + BA) / ‖W + BA‖ by rows, with W frozen."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.zeros(outputs, 2))
        self.size = nn.Parameter(self.base.weight.norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + self.up @ self.down
        return functional.linear(x, self.size[:, None] * weight / weight.norm(dim=1, keepdim=True), self.base.bias)


def test_the_gain_of_a_weight_that_stays_stays() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(Dora(8, 8), nn.ReLU(), Dora(8, 3)), rows(4, 8)
    before = net(x)
    idfx.init_(net, (x,))
    assert torch.equal(net(x), before)


def test_the_gain_of_a_weight_that_is_written_is_1() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    idfx.init_(net, (rows(2, 4),), loosen="none")
    assert torch.allclose(net[0].weight, torch.eye(4))


class Gated(nn.Module):
    """A block that its author closes by a gate of zeros (adaLN-Zero)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gate = nn.Linear(8, 8), nn.Linear(3, 8)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x + self.gate(condition) * self.fc(x)


@pytest.mark.parametrize("scheme", ["idinit", "idfx", "fixup", "rezero", "zero"])
def test_a_block_is_not_closed_twice(scheme: str) -> None:
    """The author's gate of zeros closes it. Beside an end near zero, neither would get a gradient."""
    torch.manual_seed(0)
    net, inputs = Gated(), (rows(4, 8), rows(4, 3))
    report = idfx.init_(net, inputs, scheme=scheme)
    assert not net.gate.weight.any() and "gate.weight" in report.plan.kept
    assert report.certificate is not None and report.certificate.passed
    assert [check.status for check in report.certificate.checks] == ["identity"]
    assert torch.equal(net(*inputs), inputs[0])
    for weight in (net.gate.weight, net.fc.weight):  # one step after the other
        net.zero_grad()
        net(*inputs).pow(2).sum().backward()
        assert weight.grad is not None and float(weight.grad.abs().max()) > 1e-2
        with torch.no_grad():
            net.gate.weight -= 0.01 * net.gate.weight.grad


def test_a_gate_of_zeros_whose_bias_is_not_zero_closes_nothing() -> None:
    torch.manual_seed(0)
    net = Gated()
    nn.init.ones_(net.gate.bias)
    report = idfx.init_(net, (rows(4, 8), rows(4, 3)))
    assert not net.gate.weight.any() and bool((net.gate.bias == 1).all())
    assert float(net.fc.weight.abs().max()) == pytest.approx(1e-6)
    assert report.certificate is not None and report.certificate.certified == 1


def test_the_end_that_a_user_names_closes_a_gated_block() -> None:
    torch.manual_seed(0)
    net = Gated()
    report = idfx.init_(net, (rows(4, 8), rows(4, 3)), roles={"fc.weight": "end"})
    assert net.gate.weight.any() and float(net.fc.weight.abs().max()) == pytest.approx(1e-6)
    assert report.certificate is not None and report.certificate.certified == 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_block_gets_no_scalar_and_a_note_says_so() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(torch.jit.script(Block()), Block())
    report = idfx.init_(net, (rows(4, 8),), scheme="rezero")
    assert [scalar.join for scalar in report.plan.scalars] == ["1"]
    assert any("TorchScript" in note and note.startswith("0: ") for note in report.plan.notes)
    assert report.certificate is not None and report.certificate.certified == 1


class Sampled(nn.Module):
    """A block whose queries start as nothing, so that it looks everywhere alike."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8, bias=False)
        self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.zeros_(self.query.weight)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query(x) @ x.transpose(-1, -2)).softmax(-1)
        return x + self.out(weights @ self.value(x))


def test_a_zero_that_closes_nothing_stays() -> None:
    torch.manual_seed(0)
    net = Sampled()
    idfx.init_(net, (rows(2, 4, 8),))
    assert not net.query.weight.any()


class Table(nn.Module):
    """A table of rows per block, as in PixArt: one shifts the branch's input, one scales it plus 1, one is a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(3, 8) / 8**0.5)

    def forward(self, x: Tensor) -> Tensor:
        shift, scale, gate = self.table.chunk(3)
        return x + gate * self.fc(self.norm(x) * (1 + scale) + shift).relu()


def test_a_table_whose_rows_act_differently_keeps_them() -> None:
    """1 is neutral for the gate alone: as a shift it adds, and as a scale it doubles."""
    torch.manual_seed(0)
    net, x = Table(), rows(4, 8)
    before = net.table.detach().clone()
    report = idfx.init_(net, (x,))
    assert torch.equal(net.table, before)
    assert report.structure.roles["table"].name == "scale"
    assert "act differently" in report.structure.roles["table"].evidence
    assert report.certificate is not None and report.certificate.certified == 1
