"""Operators that take functions, and transforms of torch.func: read like the same model written without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import idfx
from idfx.capture.tracing import replay

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Doubled(torch.autograd.Function):
    """2 · x, with its own derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 2 * grads[0]


class Block(nn.Module):
    """A residual block whose branch is a function of the module and of the normalised input."""

    def __init__(self, branch: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.a, self.b, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.branch(self, self.norm(x)))


def _plain(m: Any, y: Tensor) -> Tensor:
    return m.b(torch.tanh(m.a(y)))


def _loop(m: Any, y: Tensor) -> Tensor:
    from torch._higher_order_ops.while_loop import while_loop

    start = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, z: i < 1, lambda i, z: (i + 1, _plain(m, z)), (start, y))[1]  # type: ignore[no-any-return]


SAME: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "vmap": lambda m, y: torch.vmap(lambda row: _plain(m, row))(y),
    "nested vmap": lambda m, y: torch.vmap(torch.vmap(lambda row: _plain(m, row)))(y[None])[0],
    "functional_call": lambda m, y: m.b(torch.func.functional_call(m.a, dict(m.a.named_parameters()), (y,)).tanh()),
    "cond": lambda m, y: torch.cond(y.shape[0] > 0, lambda z: _plain(m, z), lambda z: z, (y,)),
    "cond by value": lambda m, y: torch.cond(y.abs().sum() > -1, lambda z: _plain(m, z), lambda z: z, (y,)),
    "while_loop": _loop,
    "compiled inside": lambda m, y: torch.compile(_plain)(m, y),
    "function under vmap": lambda m, y: torch.vmap(lambda row: m.b(torch.tanh(Doubled.apply(m.a(row) / 2))))(y),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_takes_functions_is_read_like_plain_code(name: str) -> None:
    plain, model = Block(_plain), Block(SAME[name])
    wanted, found = idfx.analyze(plain, (X,)), idfx.analyze(model, (X,))
    assert [(j.kind, j.ends) for j in found.joins] == [(j.kind, j.ends) for j in wanted.joins] != []
    assert {n: r.name for n, r in found.roles.items()} == {n: r.name for n, r in wanted.roles.items()}
    assert found.unknown == () and found.capture.how == ("real" if name == "cond by value" else "meta")
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(replay(found.capture, model, (X,), {})[0], plain(X), atol=1e-6)
    certificate = idfx.init_(model, (X,)).certificate
    assert certificate is not None and certificate.passed and certificate.certified == 1


class Ensemble(nn.Module):
    """Members whose weights vmap stacks, their mean added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 8, 16)), nn.Parameter(torch.randn(3, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.vmap(lambda up, down: torch.relu(x @ up) @ down)(self.up, self.down).mean(0)


def test_weights_that_vmap_splits_end_their_branch() -> None:
    (join,) = idfx.analyze(Ensemble(), (X,)).joins
    assert (join.kind, [end.parameter for end in join.ends]) == ("identity", ["down"])


class Energy(nn.Module):
    """A layer on the gradient of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.energy, self.head = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.vmap(torch.func.grad(lambda row: self.energy(row).sum()))(x))


class Tangent(Energy):
    """A layer on a directional derivative of a network."""

    def forward(self, x: Tensor) -> Tensor:
        return self.energy[2].weight.new_ones(1) * torch.func.jvp(self.energy, (x,), (torch.ones_like(x),))[1]


class Jacobian(Energy):
    """The Jacobian of a network, flattened."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.vmap(torch.func.jacrev(self.energy))(x).flatten(1))


@pytest.mark.parametrize("kind", [Energy, Tangent, Jacobian])
def test_derivatives_inside_a_forward_replay_exactly(kind: type[Energy]) -> None:
    model = kind()
    found = idfx.analyze(model, (X,))
    assert torch.allclose(replay(found.capture, model, (X,), {})[0], model(X), atol=1e-6)
    uses = {site.parameter for site in found.sites}
    assert {"energy.0.weight", "energy.2.weight"} <= uses and found.unknown == ()


def _tangent(m: Any, y: Tensor) -> Tensor:
    return torch.func.jvp(lambda z: _plain(m, z), (y,), (torch.ones_like(y),))[1]


def _value_and_tangent(m: Any, y: Tensor) -> Tensor:
    value, tangent = torch.func.jvp(lambda z: _plain(m, z), (y,), (y,))
    return value + tangent


def _columns(m: Any, y: Tensor) -> Tensor:
    return torch.vmap(torch.func.jacfwd(lambda row: _plain(m, row)))(y).sum(-1)


@pytest.mark.parametrize("body", [_tangent, _value_and_tangent, _columns])
def test_a_branch_of_forward_derivatives_ends_in_its_last_weight(body: Callable[[Any, Tensor], Tensor]) -> None:
    """The weights have no tangents, so that products with these are zero and no branches of their own."""
    model = Block(body)
    found = idfx.analyze(model, (X,))
    assert {(join.module, tuple(end.parameter for end in join.ends)) for join in found.joins} == {("", ("b.weight",))}
    certificate = idfx.init_(model, (X,)).certificate
    assert certificate is not None and certificate.passed and certificate.certified == len(found.joins)


class Descent(Block):
    """A block on the gradient of a function, by a backward pass inside the forward."""

    def __init__(self, learned: bool) -> None:
        super().__init__(_plain)
        self.learned = learned

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = self.norm(x).detach().clone().requires_grad_()
            energy = (self.a(y).tanh() if self.learned else y).square() / 2
            energy.sum().backward()
        assert y.grad is not None
        return self.head(x + self.branch(self, y.grad))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_a_backward_pass_inside_a_forward_is_certified_and_leaves_the_gradients(learned: bool, before: bool) -> None:
    """It adds to the gradients of the parameters: a run must find none, and put back those that were there."""
    model = Descent(learned)
    if before:
        _plain(model, X).sum().backward()
    kept = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    report = idfx.init_(model, (X,))
    assert [tuple(end.parameter for end in join.ends) for join in report.structure.joins] == [("b.weight",)]
    assert report.certificate is not None and report.certificate.passed and report.certificate.certified == 1
    for name, parameter in model.named_parameters():
        now, then = parameter.grad, kept[name]
        assert (now is None) == (then is None) and (then is None or torch.equal(now, then))


class Attention(nn.Module):
    """A residual attention whose function is given."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.query, self.key, self.value = nn.LayerNorm(32), *(nn.Linear(32, 32) for _ in range(3))
        self.out, self.head, self.attend = nn.Linear(32, 32), nn.Linear(32, 4), attend

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.head(x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2)))


def _masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, q.shape[2], k.shape[2], device=q.device)
    return flex_attention(q, k, v, block_mask=mask)  # type: ignore[return-value]


def _biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    table = torch.zeros(31, device=q.device)
    return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + table[i - j + 15])  # type: ignore[return-value]


def _capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.compile(flex_attention)(q, k, v, score_mod=lambda s, b, h, i, j: 20 * torch.tanh(s / 20))


@pytest.mark.parametrize("attend", [flex_attention, _masked, _biased, _capped])
def test_flex_attention_is_read_as_attention(attend: Any) -> None:
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    wanted = idfx.analyze(Attention(scaled_dot_product_attention), (x,))
    model = Attention(attend)
    found = idfx.analyze(model, (x,))
    assert found.capture.how == "meta" and found.unknown == ()
    assert [(j.kind, j.ends) for j in found.joins] == [(j.kind, j.ends) for j in wanted.joins] != []
    for name in ("query", "key", "value", "out"):
        role, sought = found.roles[f"{name}.weight"], wanted.roles[f"{name}.weight"]
        assert (role.name, [*role.traits]) == (sought.name, [*sought.traits])
    assert idfx.audit(model, (x,)).at_least("warning") == ()
    certificate = idfx.init_(model, (x,)).certificate
    assert certificate is not None and certificate.passed
    with torch.no_grad():
        assert torch.allclose(replay(found.capture, model, (x,), {})[0], model(x), atol=1e-6)


def test_an_operator_that_becomes_a_view_of_itself_is_a_view() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            same = y.view(4, 8)
            return x + y.unsqueeze_(0).transpose_(0, 1).squeeze_(1) + 0 * same

    model = Squeezed()
    found = idfx.analyze(model, (X,))
    assert found.unknown == () and {end.parameter for join in found.joins for end in join.ends} == {"fc.weight"}
    assert torch.equal(replay(found.capture, model, (X,), {})[0], model(X))
    certificate = idfx.init_(model, (X,)).certificate
    assert certificate is not None and certificate.passed


def test_rows_that_become_complex_numbers_are_not_followed() -> None:
    """Rotary positions as complex numbers: the operator takes no whole numbers, with which rows are followed."""

    def rotated(x: Tensor) -> Tensor:
        turns = torch.polar(torch.ones(16, 4), torch.arange(16.0)[:, None] * torch.ones(4)).to(x.device)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * turns).flatten(-2)

    model = Attention(lambda q, k, v: scaled_dot_product_attention(rotated(q), rotated(k), v))
    model.key, model.value = nn.Linear(32, 32, bias=False), nn.Linear(32, 32)
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    found = idfx.analyze(model, (x,))
    assert [end.parameter for join in found.joins for end in join.ends] == ["out.weight"]
    assert "query" in found.roles["query.weight"].traits and "key" in found.roles["key.weight"].traits
    certificate = idfx.init_(model, (x,)).certificate
    assert certificate is not None and certificate.passed
