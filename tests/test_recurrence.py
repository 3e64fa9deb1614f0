"""Recurrent layers and bilinear forms: what they compute when they start, from recurrences written out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import Small, lin, read, starts_as_shortcuts, values
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import idfx

EXACT: dict[str, Any] = {"eps": 0.0, "loosen": "none"}
OPEN = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))  # of the forget gate


@pytest.fixture(autouse=True)
def doubles() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def fitted(x: Tensor, width: int) -> Tensor:
    """The padded identity: entries repeated, or cut off."""
    return x[..., torch.arange(width) % x.shape[-1]]


# One step each, from the state before and what enters; every weight an identity, every gate at the same value.


def rnn_step(function: Callable[[Tensor], Tensor], x: Tensor, h: Tensor) -> Tensor:
    return function(fitted(x, h.shape[-1]) + h)


def gru_step(x: Tensor, h: Tensor) -> Tensor:
    return 0.5 * torch.tanh(fitted(x, h.shape[-1]) + 0.5 * h) + 0.5 * h


def lstm_step(x: Tensor, h: Tensor, c: Tensor, width: int, forget: Tensor = OPEN) -> tuple[Tensor, Tensor]:
    c = forget * c + 0.5 * torch.tanh(fitted(x, c.shape[-1]) + fitted(h, c.shape[-1]))
    return fitted(0.5 * torch.tanh(c), width), c


def by_hand(kind: str, x: Tensor, hidden: int, width: int, forget: Tensor = OPEN) -> Tensor:
    """The states of one layer in one direction, x being (time, batch, features)."""
    h, c = x.new_zeros(x.shape[1], width), x.new_zeros(x.shape[1], hidden)
    states = []
    for entering in x:
        if kind == "lstm":
            h, c = lstm_step(entering, h, c, width, forget)
        else:
            h = gru_step(entering, h) if kind == "gru" else rnn_step(getattr(torch, kind), entering, h)
        states.append(h)
    return torch.stack(states)


def stacked_by_hand(kind: str, x: Tensor, hidden: int, layers: int, both: bool, width: int, forget: Tensor) -> Tensor:
    for _ in range(layers):
        runs = [by_hand(kind, x, hidden, width, forget)]
        if both:
            runs.append(by_hand(kind, x.flip(0), hidden, width, forget).flip(0))
        x = torch.cat(runs, -1)
    return x


LAYERS: dict[str, Callable[..., nn.RNNBase]] = {
    "tanh": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="tanh", **options),
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}


@pytest.mark.parametrize(("layers", "both"), [(1, False), (1, True), (2, True)])
@pytest.mark.parametrize(("inputs", "hidden"), [(5, 5), (3, 5), (7, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [*LAYERS, "projected"])
def test_a_layer_is_the_recurrence_by_hand(
    kind: str, bias: bool, inputs: int, hidden: int, layers: int, both: bool
) -> None:
    size = {"proj_size": 2} if kind == "projected" else {}
    kind, width = ("lstm", 2) if size else (kind, hidden)
    net = LAYERS[kind](inputs, hidden, layers, bias=bias, bidirectional=both, batch_first=bias, **size)
    x = values(6, 2, inputs)
    report = idfx.init_(net, (x,), **EXACT)
    assert not report.plan.kept and report.certificate is not None and report.certificate.passed
    forget = OPEN if bias else torch.tensor(0.5)
    expected = stacked_by_hand(kind, x.transpose(0, 1) if bias else x, hidden, layers, both, width, forget)
    found = net(x)[0].transpose(0, 1) if bias else net(x)[0]
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_a_relu_layer_sums_what_is_not_negative() -> None:
    net = nn.RNN(6, 6, nonlinearity="relu", batch_first=True)
    x = torch.randint(0, 9, (3, 20, 6)) / 8.0  # sums of these are exact
    idfx.init_(net, (x,), loosen="none")
    assert torch.equal(net(x)[0], x.cumsum(1))


CELLS: dict[str, Callable[..., nn.Module]] = {
    "tanh": nn.RNNCell, "relu": lambda *sizes: nn.RNNCell(*sizes, nonlinearity="relu"), "gru": nn.GRUCell,
    "lstm": nn.LSTMCell,
}  # fmt: skip


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_is_one_step(kind: str) -> None:
    cell, x, h, c = CELLS[kind](3, 5), values(2, 3), values(4, 5)[:2], values(6, 5)[4:]
    report = idfx.init_(cell, (x, (h, c) if kind == "lstm" else h), **EXACT)
    assert not report.plan.kept
    if kind == "lstm":
        assert all(map(torch.allclose, cell(x, (h, c)), lstm_step(x, h, c, 5)))
    else:
        expected = gru_step(x, h) if kind == "gru" else rnn_step(getattr(torch, kind), x, h)
        assert torch.allclose(cell(x, h), expected)


def unrolled(m: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(x.shape[1], 4)
    for entering in x:
        h, c = m.cell(entering, (h, c))
    return h


def test_a_cell_in_a_loop_is_one_layer_and_packed_sequences_are_read() -> None:
    def packed(m: Any, x: Tensor) -> Tensor:
        return pad_packed_sequence(m.rnn(pack_padded_sequence(x, torch.tensor([6, 6])))[0])[0]

    x = values(6, 2, 4)
    loop, layer = Small(unrolled, cell=nn.LSTMCell(4, 4)), Small(packed, rnn=nn.LSTM(4, 4))
    for net in (loop, layer):
        assert not idfx.init_(net, (x,), **EXACT).plan.kept
    assert torch.allclose(loop(x), layer(x)[-1]) and torch.allclose(layer(x), by_hand("lstm", x, 4, 4))


@pytest.mark.parametrize(("kind", "count"), [("gru", 3), ("lstm", 4)])
def test_gates_start_the_same_for_every_input(kind: str, count: int) -> None:
    """By the definition of the layer: gates are σ(W·x + b + U·h + d), rows of one gate below those of another."""
    net, eps = LAYERS[kind](8, 8), 1e-6
    idfx.init_(net, (values(4, 2, 8),), eps=eps)
    x, h = values(100, 8), values(200, 8)[100:]
    weights = [p.detach() for p in (net.weight_ih_l0, net.weight_hh_l0, net.bias_ih_l0, net.bias_hh_l0)]
    summed = x @ weights[0].T + weights[2] + h @ weights[1].T + weights[3]
    parts = dict(zip(("i", "f", "g", "o") if kind == "lstm" else ("r", "z", "n"), summed.chunk(count, -1), strict=True))
    candidate = parts.pop("g" if kind == "lstm" else "n")
    assert torch.allclose(candidate, x + h, atol=1e-4)
    for name, part in parts.items():
        gate, expected = part.sigmoid(), OPEN if name == "f" else torch.tensor(0.5)
        assert float((gate - expected).abs().max()) <= eps * float(x.abs().max() + h.abs().max())
        assert float(part.std()) > 0, "not dead"


def carried(net: nn.Module, x: Tensor) -> float:
    """The size of the gradient of the last state by the first input."""
    x = x.clone().requires_grad_()
    net(x)[0][-1].sum().backward()
    assert x.grad is not None
    return float(x.grad[0].norm())


@pytest.mark.parametrize("kind", ["tanh", "relu", "lstm"])
def test_the_gradient_of_a_hundred_steps_does_not_vanish(kind: str) -> None:
    torch.manual_seed(0)
    net, x = LAYERS[kind](16, 16), 0.01 * values(100, 1, 16).abs()
    default = carried(net, x)
    idfx.init_(net, (x,))
    assert carried(net, x) > 1e-2 and default < 1e-15
    if kind == "relu":
        assert carried(net, x) == pytest.approx(4.0, rel=1e-3), "a 1 for each of the 16 features"


def test_a_gru_keeps_three_quarters_of_the_gradient_at_each_step() -> None:
    """Half of the state stays, and half of the rest is in the candidate: 1/2 + 1/2 · 1/2 near zero."""
    torch.manual_seed(0)
    net, x = nn.GRU(16, 16), 1e-3 * values(100, 1, 16)
    default = carried(net, x)
    idfx.init_(net, (x,))
    assert carried(net, x) == pytest.approx(4 * 0.5 * 0.75**99, rel=1e-2) and carried(net, x) > 1e4 * default


def test_names_have_no_say() -> None:
    """A module of one's own that calls the operator, with the parameters of others in another order."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha, self.beta = nn.Parameter(values(20)), nn.Parameter(values(20, 2))
            self.bias_ih, self.weight = nn.Parameter(values(2, 5)), nn.Parameter(values(20))
            self.weight_hh = nn.Parameter(values(20, 3))

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(1, x.shape[1], 2), x.new_zeros(1, x.shape[1], 5)
            parameters = (self.weight_hh, self.beta, self.weight, self.alpha, self.bias_ih)
            return torch.as_tensor(torch._VF.lstm(x, state, parameters, True, 1, 0.0, False, False, False)[0])

    named = {
        "weight_ih_l0": "weight_hh", "weight_hh_l0": "beta", "bias_ih_l0": "weight", "bias_hh_l0": "alpha",
        "weight_hr_l0": "bias_ih",
    }  # fmt: skip
    x = values(4, 2, 3)
    own, usual = idfx.plan(idfx.analyze(Own(), (x,))), idfx.plan(idfx.analyze(nn.LSTM(3, 5, proj_size=2), (x,)))
    assert len(own.decisions) == len(usual.decisions) == 5
    for theirs, ours in named.items():
        one, other = usual.decisions[theirs], own.decisions[ours]
        assert (one.fill, one.arguments, one.reason) == (other.fill, other.arguments, other.reason)


@pytest.mark.parametrize("kind", LAYERS)
def test_applied_twice_is_once(kind: str) -> None:
    net, x = LAYERS[kind](3, 4, 2, bidirectional=True), values(5, 2, 3)
    plan = idfx.init_(net, (x,)).plan
    once = copy.deepcopy(net.state_dict())
    assert idfx.init_(net, (x,)).plan.decisions == plan.decisions
    assert all(torch.equal(once[name], value) for name, value in net.state_dict().items())


# What is told of them


def test_places_and_gates_are_told() -> None:
    roles = read(nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2), values(4, 2, 3)).roles
    gates = {"input": (0, 5), "forget": (5, 10), "candidate": (10, 15), "output": (15, 20)}
    parts = {
        "weight_ih": "input weight", "weight_hh": "hidden weight", "weight_hr": "projection", "bias_ih": "input bias",
        "bias_hh": "hidden bias",
    }  # fmt: skip
    layers = {"l0": "layer 0", "l0_reverse": "layer 0 backwards", "l1_reverse": "layer 1 backwards"}
    for name, part in parts.items():
        for layer, where in layers.items():
            role = roles[f"{name}_{layer}"]
            assert role.name == "recurrent" and role.traits[part].endswith(where)
            assert dict(role.gates) == ({} if part == "projection" else gates)
            assert (role.layout is None) == name.startswith("bias")
    assert "rows 5 to 9 forget" in roles["bias_ih_l0"].traits["gates"]
    gru = read(nn.GRUCell(3, 5), values(2, 3)).roles
    assert list(gru["weight_ih"].gates) == ["reset", "update", "candidate"]


def one_for_both(m: Any, x: Tensor) -> Tensor:
    return torch.rnn_tanh_cell(x, x, m.w, m.w)


def transposed(m: Any, x: Tensor) -> Tensor:
    return torch.gru_cell(x, torch.zeros_like(x), m.w.t(), m.u.t())


KEPT: dict[str, tuple[Callable[..., Any], dict[str, Any], set[str]]] = {
    "one weight in two places": (one_for_both, {"w": values(4, 4)}, {"w"}),
    "a weight of a linear layer too": (
        lambda m, x: nn.functional.linear(torch.rnn_tanh_cell(x, x, m.w, m.u), m.w),
        {"w": values(4, 4), "u": values(4, 4)}, {"w"},
    ),
    "a state to begin with": (
        lambda m, x: m.cell(x, m.state.expand(2, -1)), {"cell": nn.GRUCell(4, 4), "state": values(1, 4)}, {"state"},
    ),
    "parts of one parameter": (
        lambda m, x: torch.rnn_tanh_cell(x, x, m.both[:4], m.both[4:]), {"both": values(8, 4)}, {"both"},
    ),
    "made by an expression": (
        lambda m, x: torch.rnn_tanh_cell(x, x, m.w * 2, m.u), {"w": values(4, 4), "u": values(4, 4)}, {"w"},
    ),
    "weight norm": (
        lambda m, x: m.cell(x), {"cell": parametrizations.weight_norm(nn.GRUCell(4, 4), "weight_hh")},
        {f"cell.parametrizations.weight_hh.original{part}" for part in (0, 1)},
    ),
    "both biases the same": (
        lambda m, x: torch.rnn_tanh_cell(x, x, m.w, m.u, m.b, m.b),
        {"w": values(4, 4), "u": values(4, 4), "b": values(4)}, {"b"},
    ),
    "none": (transposed, {"w": values(4, 12), "u": values(4, 12)}, set()),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_is_not_one_whole_place_is_kept(case: str) -> None:
    body, parts, kept = KEPT[case]
    plan = idfx.plan(idfx.analyze(Small(body, **parts), (values(2, 4).float(),)))
    assert set(plan.kept) == kept
    assert all("its own values are kept" in reason for reason in plan.kept.values())


def test_a_weight_that_lies_transposed_is_filled_transposed() -> None:
    net = Small(transposed, w=values(4, 12), u=values(4, 12))
    x = values(2, 4)
    idfx.init_(net, (x,), **EXACT)
    assert torch.allclose(net(x), gru_step(x, torch.zeros_like(x)))


# In networks


def test_a_branch_with_a_recurrent_layer_is_closed_by_the_layer_behind_it() -> None:
    for rnn, width in ((nn.LSTM(4, 6, 2, bidirectional=True), 12), (nn.GRU(4, 5), 5), (nn.RNN(4, 4), 4)):
        starts_as_shortcuts(Small(lambda m, x: x + m.out(m.rnn(x)[0]), rnn=rnn, out=lin(width, 4)))


class Text(nn.Module):
    """Words, a recurrent layer, a class for the last state."""

    def __init__(self, rnn: nn.Module, width: int) -> None:
        super().__init__()
        self.words, self.rnn, self.head = nn.Embedding(50, 16), rnn, nn.Linear(width, 4)

    def forward(self, words: Tensor) -> Tensor:
        states: Tensor = self.rnn(self.words(words))[0]
        return torch.as_tensor(self.head(states[:, -1]))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_text_model_keeps_its_signal(kind: str) -> None:
    net = Text(LAYERS[kind](16, 12, 2, batch_first=True, bidirectional=True), 24)
    words = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    report = idfx.init_(net, (words,))
    assert report.certificate is not None and report.certificate.passed and report.certificate.distinct
    assert set(report.plan.kept) == {"words.weight"}
    net(words).pow(2).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@pytest.mark.parametrize("scheme", ["kaiming", "xavier", "orthogonal", "zero", "fixup", "mimetic"])
def test_other_schemes_keep_recurrent_layers_and_forms(scheme: str) -> None:
    net = Small(lambda m, x: m.form(m.rnn(x)[0], x), rnn=nn.LSTM(4, 4), form=nn.Bilinear(4, 4, 3))
    plan = idfx.plan(idfx.analyze(net, (values(5, 2, 4),)), scheme)
    assert {name for name in plan.shapes if name != "form.bias"} <= set(plan.kept)


def test_a_recurrent_layer_is_no_weight_of_a_branch_for_fixup() -> None:
    def block() -> nn.Module:
        return Small(lambda m, x: x + m.c(m.b(m.rnn(m.a(x))[0]).relu()), a=lin(), b=lin(), c=lin(), rnn=nn.GRU(4, 4))

    plan = idfx.plan(idfx.analyze(nn.Sequential(block(), block()), (values(5, 2, 4),)), "fixup")
    assert "2 branches with 3 weights" in plan.decisions["0.a.weight"].reason


# Bilinear forms


@pytest.mark.parametrize(("first", "second", "outputs"), [(5, 5, 5), (3, 4, 6), (6, 2, 4), (2, 3, 7)])
def test_a_form_is_the_identity_in_each_argument(first: int, second: int, outputs: int) -> None:
    net, x, y = nn.Bilinear(first, second, outputs), values(8, first), values(8, second)
    report = idfx.init_(net, (x, y), **EXACT)
    assert set(report.plan.decisions) == {"weight", "bias"}
    assert report.structure.roles["weight"].name == "bilinear form"
    assert torch.equal(net(x, torch.ones_like(y)), fitted(x, outputs))
    assert torch.equal(net(torch.ones_like(x), y), fitted(y, outputs))


def test_a_form_keeps_variances() -> None:
    net = nn.Bilinear(24, 24, 24)
    x, y = torch.randn(2, 20000, 24, generator=torch.Generator().manual_seed(0))
    idfx.init_(net, (x[:2], y[:2]))
    found = net(x, y).detach()
    assert abs(float(found.var()) - 1) < 0.05 and abs(float(found.mean())) < 0.02


def test_a_form_that_ends_a_branch_is_zero_and_one_that_is_used_otherwise_is_kept() -> None:
    starts_as_shortcuts(Small(lambda m, x: x + m.form(m.a(x), m.b(x)), a=lin(), b=lin(), form=nn.Bilinear(4, 4, 4)))

    def body(m: Any, x: Tensor) -> Tensor:
        return nn.functional.bilinear(x, x, m.w) + torch.einsum("bti,oij,btj->bto", x, m.w, x)

    for used in (body, lambda m, x: nn.functional.bilinear(x, x, m.w.transpose(0, 1))):
        structure = read(Small(used, w=values(4, 4, 4)))
        assert structure.roles["w"].name == "unresolved" and "w" in idfx.plan(structure).kept
