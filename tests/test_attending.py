"""By default, idinit makes scores equal and stacked identities as large as one; `published` does not.

Expected values come from the definition of a score, from running the model, and from the paper's matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import idfx

WIDTH, HEADS = 8, 2


def heads(x: torch.Tensor, count: int = HEADS) -> torch.Tensor:
    """From (batch, places, width) to (batch, heads, places, width of a head)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


class Attends(nn.Module):
    """A residual block whose attention is given: it returns queries, keys and values, and the scores are kept."""

    def __init__(self, make: Callable[[Attends, torch.Tensor], tuple[torch.Tensor, ...]], **weights: nn.Module) -> None:
        super().__init__()
        self.make, self.scores = make, torch.empty(0)
        self.norm, self.weights = nn.LayerNorm(WIDTH), nn.ModuleDict(weights)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.make(self, self.norm(x))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        self.scores = scores.detach()
        inner: torch.Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + inner


def line(out: int = WIDTH) -> nn.Linear:
    return nn.Linear(WIDTH, out)


def separate() -> Attends:
    def make(m: Attends, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(heads(m.weights[part](x)) for part in "qkv")

    return Attends(make, q=line(), k=line(), v=line())


def fused() -> Attends:
    def make(m: Attends, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(heads(part) for part in m.weights["all"](x).chunk(3, -1))

    return Attends(make, all=line(3 * WIDTH))


def multi_query() -> Attends:
    def make(m: Attends, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = m.weights["all"](x).split((WIDTH, WIDTH // HEADS, WIDTH // HEADS), -1)
        return heads(q), heads(k, 1), heads(v, 1)

    return Attends(make, all=line(2 * WIDTH))


def only_keys() -> Attends:
    def make(m: Attends, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return heads(x), heads(m.weights["k"](x)), heads(m.weights["v"](x))

    return Attends(make, k=line(), v=line())


def shared() -> Attends:
    def make(m: Attends, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        both = heads(m.weights["both"](x))
        return both, both, heads(m.weights["v"](x))

    return Attends(make, both=line(), v=line())


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions: each pair of entries is turned by an angle that grows along the places."""
    angles = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0, 0.1]).repeat(x.shape[-1] // 4 * 2)
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()


def interleaved() -> Attends:
    """Each head has its query, key and value next to each other in one weight, as in GPT-NeoX."""

    def make(m: Attends, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = heads(m.weights["all"](x)).chunk(3, -1)
        return rotated(q), rotated(k), v

    return Attends(make, all=line(3 * WIDTH))


FORMS = {form.__name__: form for form in (separate, fused, multi_query, only_keys, shared, interleaved)}


def started(form: str, **options: Any) -> tuple[Attends, idfx.Report]:
    """A model after `init_`, having run once."""
    model, x = FORMS[form](), torch.randn(2, 5, WIDTH)
    report = idfx.init_(model, (x,), **options)
    model(x)
    assert report.certificate is not None and report.certificate.passed
    return model, report


@pytest.mark.parametrize("eps", [1e-6, 0.0])
@pytest.mark.parametrize("form", FORMS)
def test_scores_start_equal(form: str, eps: float) -> None:
    torch.manual_seed(0)
    model, report = started(form, eps=eps)
    assert model.scores.abs().max() < 1e-4
    said = [d for d in report.plan.decisions.values() if "scores start" in d.reason or "attention scores" in d.reason]
    assert len(said) == 1 and "(ours)" in said[0].reason


@pytest.mark.parametrize("form", ["separate", "fused", "only_keys", "shared"])
def test_as_published_a_normalised_token_has_the_root_of_the_width_as_score_with_itself(form: str) -> None:
    torch.manual_seed(0)
    model, _ = started(form, published=True)
    own = model.scores.diagonal(dim1=-2, dim2=-1).sum(1)  # over the heads: |x|² / √D_head with |x|² = WIDTH
    assert torch.allclose(own, torch.full_like(own, WIDTH / (WIDTH / HEADS) ** 0.5), rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_equal_scores_learn(form: str) -> None:
    torch.manual_seed(0)
    model, _ = started(form)
    weight = next(p for name, p in model.named_parameters() if name in report_zero(form))
    before, optimiser = weight.detach().clone(), torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(5):
        optimiser.zero_grad()
        x = torch.randn(8, 5, WIDTH)
        (model(x) - x.flip(1)).pow(2).mean().backward()
        optimiser.step()
    assert (weight - before).abs().max() > 1e-3 and model.scores.abs().max() > 1e-3


def report_zero(form: str) -> tuple[str, ...]:
    """The weight that makes queries, or keys where no weight makes queries."""
    part = {"separate": "q", "only_keys": "k", "shared": "both"}.get(form, "all")
    return (f"weights.{part}.weight",)


def test_only_the_rows_of_the_queries_are_near_zero() -> None:
    model, _ = started("fused", loosen="none")
    q, k, v = model.get_parameter("weights.all.weight").detach().chunk(3)
    assert float(q.abs().max()) == pytest.approx(1e-6)
    assert torch.equal(k, torch.eye(WIDTH)) and torch.equal(v, torch.eye(WIDTH))


def test_the_rows_of_queries_are_found_head_by_head_and_behind_rotary_positions() -> None:
    model, _ = started("interleaved", loosen="none")
    weight = model.get_parameter("weights.all.weight").detach()
    q, k, v = weight.view(HEADS, 3, WIDTH // HEADS, WIDTH).unbind(1)
    assert float(q.abs().max()) == pytest.approx(1e-6)
    assert bool((k.abs().sum(-1) == 1).all()) and bool((v.abs().sum(-1) == 1).all())


def normed(x: torch.Tensor) -> torch.Tensor:
    """Of length √width, as an RMS normalisation makes it."""
    return nn.functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5


def both_normed() -> Attends:
    def make(m: Attends, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (heads(m.weights[part](x)) for part in "qkv")
        return normed(q), normed(k), v

    return Attends(make, q=line(), k=line(), v=line())


def fused_normed() -> Attends:
    def make(m: Attends, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = heads(m.weights["all"](x)).chunk(3, -1)
        return normed(q), normed(k), v

    return Attends(make, all=line(3 * WIDTH))


def queries_normed() -> Attends:
    def make(m: Attends, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (heads(m.weights[part](x)) for part in "qkv")
        return normed(q), k, v

    return Attends(make, q=line(), k=line(), v=line())


NORMED = {form.__name__: form for form in (both_normed, fused_normed, queries_normed)}


def own_first(model: Attends) -> float:
    """The share of places, over batch and heads, whose largest score is the one with themselves."""
    places = torch.arange(model.scores.shape[-1])
    return float((model.scores.argmax(-1) == places).float().mean())


@pytest.mark.parametrize("form", ["both_normed", "fused_normed"])
def test_queries_that_are_normalised_are_drawn(form: str) -> None:
    """Near zero, they would have any size behind the norm; as an identity, each place would look at itself."""
    torch.manual_seed(0)
    model, x = NORMED[form](), torch.randn(8, 20, WIDTH)
    if form == "both_normed":  # whose heads read the same columns for queries and keys
        idfx.init_(model, (x,), published=True, loosen="none")
        model(x)
        assert own_first(model) == 1.0
    report = idfx.init_(model, (x,), loosen="none")
    model(x)
    assert own_first(model) < 0.3
    assert [d.fill for d in report.plan.decisions.values() if "directions are drawn" in d.reason] == [
        "normal" if form == "both_normed" else "idic_normal"
    ]


def test_only_the_queries_of_a_fused_weight_are_drawn() -> None:
    torch.manual_seed(0)
    model, x = NORMED["fused_normed"](), torch.randn(2, 5, WIDTH)
    idfx.init_(model, (x,), loosen="none")
    weight = model.get_parameter("weights.all.weight").detach()
    q, k, v = weight.view(HEADS, 3, WIDTH // HEADS, WIDTH).unbind(1)
    assert bool((q != 0).all()) and float(q.std()) == pytest.approx(WIDTH**-0.5, rel=0.3)
    assert bool((k.abs().sum(-1) == 1).all()) and bool((v.abs().sum(-1) == 1).all())


def test_if_only_the_queries_are_normalised_the_keys_start_near_zero() -> None:
    torch.manual_seed(0)
    model, x = NORMED["queries_normed"](), torch.randn(2, 5, WIDTH)
    idfx.init_(model, (x,), loosen="none")
    model(x)
    assert model.scores.abs().max() < 1e-4
    assert torch.equal(model.get_parameter("weights.q.weight").detach(), torch.eye(WIDTH))


class Hidden(nn.Module):
    """A residual perceptron that widens its input by a factor."""

    def __init__(self, wide: int, narrow: int = WIDTH) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(narrow, wide), nn.Linear(wide, narrow)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return x + inner


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_stacked_identities_inside_a_branch_have_the_size_of_one(factor: int) -> None:
    model, x = Hidden(factor * WIDTH), torch.randn(3, WIDTH)
    report = idfx.init_(model, (x,))
    assert torch.allclose(model.fc1.weight.T @ model.fc1.weight, torch.eye(WIDTH), atol=1e-4)  # an isometry
    assert ("√" in report.plan.decisions["fc1.weight"].reason) == (factor > 1)
    idfx.init_(model, (x,), published=True, loosen="none")
    assert torch.equal(model.fc1.weight, torch.eye(WIDTH).repeat(factor, 1))  # the paper's equation 3


def test_a_weight_outside_branches_that_would_be_copies_is_drawn_as_large_as_an_identity() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4000), nn.ReLU(), nn.Linear(4000, 4))
    x = torch.randn(3, 4)
    report = idfx.init_(model, (x,))
    wide = model.get_parameter("2.weight").detach()
    assert torch.allclose(wide.T @ wide, torch.eye(4), atol=0.15)  # entries of variance 1 / 4000, √(2/4000) around it
    assert len(wide.unique(dim=0)) == 4000 and "is drawn" in report.plan.decisions["2.weight"].reason
    idfx.init_(model, (x,), published=True, loosen="none")
    assert torch.equal(model.get_parameter("2.weight"), torch.eye(4).repeat(1000, 1))


def test_the_reason_names_the_rule_that_spoke() -> None:
    model, x = Hidden(4 * WIDTH), torch.randn(3, WIDTH)
    shown = idfx.plan(idfx.analyze(model, (x,))).decisions["fc1.weight"].reason
    assert "tau is divided by √4" in shown and "(ours)" in shown


class Gated(nn.Module):
    """A residual block x + out(silu(gate(x)) · up(x)) that keeps the product."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.gate, self.up, self.out = nn.Linear(width, wide), nn.Linear(width, wide), nn.Linear(wide, width)
        self.product = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = nn.functional.silu(self.gate(x)) * self.up(x)
        self.product = product.detach()
        inner: torch.Tensor = self.out(product)
        return x + inner


def test_the_product_of_a_gate_and_a_value_has_no_mean() -> None:
    """E[silu(x) · x] = 1/2 for x of N(0, 1), since silu(x) · x + silu(-x) · -x = x²."""
    torch.manual_seed(0)
    model, x = Gated(64, 128), torch.randn(4096, 64)
    idfx.init_(model, (x,), published=True)
    model(x)
    assert float(model.product.mean()) == pytest.approx(0.5, abs=0.02)
    report = idfx.init_(model, (x,))
    model(x)
    assert abs(float(model.product.mean())) < 0.02
    assert "multiplies another value" in report.plan.decisions["gate.weight"].reason
    w = model.gate.weight.detach()
    assert float((w.T @ w).diagonal().mean()) == pytest.approx(1, abs=0.05)


def test_a_head_that_narrows_reads_every_feature() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)), torch.randn(2, 64)
    idfx.init_(model, (x,))
    head = model[2].weight.detach()
    assert bool((head.abs().sum(0) > 0).all())
    assert torch.allclose(head @ head.T, torch.eye(4), atol=1e-5)  # as the rows of an identity
    idfx.init_(model, (x,), published=True, loosen="none")
    assert torch.equal(model[2].weight.detach(), torch.eye(4, 64))


class Mixture(nn.Module):
    """A residual mixture of experts, of which a token takes two of four."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4, bias=False)
        self.wide = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.narrow = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.shares = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        shares, chosen = self.router(y).softmax(-1).topk(2, -1)
        shares = torch.zeros(*y.shape[:-1], 4).scatter(-1, chosen, shares)
        self.shares = shares.detach()
        for number, (wide, narrow) in enumerate(zip(self.wide, self.narrow, strict=True)):
            x = x + shares[..., number : number + 1] * narrow(wide(y).relu())
        return x


def test_the_experts_that_a_router_chooses_count_alike_and_differ_between_tokens() -> None:
    """A softmax of four scores near zero gives a quarter to each; two are taken, by the token."""
    torch.manual_seed(0)
    model, x = Mixture(), torch.randn(4, 5, WIDTH)
    report = idfx.init_(model, (x,))
    assert "router" in idfx.analyze(model, (x,)).roles["router.weight"].traits
    assert "count alike" in report.plan.decisions["router.weight"].reason
    model(x)
    assert torch.allclose(model.shares.sort(-1).values, torch.tensor([0.0, 0.0, 0.25, 0.25]), atol=1e-5)
    assert len({tuple(row) for row in (model.shares.flatten(0, 1) > 0).tolist()}) > 1
    idfx.init_(model, (x,), published=True, loosen="none")
    assert torch.equal(model.router.weight.detach(), torch.eye(4, WIDTH))


@pytest.mark.parametrize("name", ["fused", "apart"])
def test_idfx_starts_queries_near_zero_and_leaves_keys_and_values_orthogonal(name):
    torch.manual_seed(0)
    width = 8

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if name == "fused":
                self.qkv = nn.Linear(width, 3 * width)
            else:
                self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
            self.out = nn.Linear(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.qkv(x).chunk(3, -1) if name == "fused" else (self.q(x), self.k(x), self.v(x))
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts)
            return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    model, x = nn.Sequential(nn.LayerNorm(width), Attention()), torch.randn(2, 5, width)

    def parts() -> tuple[torch.Tensor, ...]:
        attention = model[1]
        return (
            attention.qkv.weight.chunk(3)
            if name == "fused"
            else tuple(getattr(attention, part).weight for part in "qkv")
        )

    report = idfx.init_(model, x, scheme="idfx")
    query, key, value = parts()
    assert report.certificate.passed and 1e-7 < query.abs().mean() < 1e-5
    for part in (key, value):
        torch.testing.assert_close(part @ part.T, torch.eye(width))
    idfx.init_(model, x, scheme="idfx", even=False)
    for part in parts():
        torch.testing.assert_close(part @ part.T, torch.eye(width))


@pytest.mark.parametrize("scheme", ["idinit", "idfx"])
def test_a_weight_of_the_stream_that_queries_are_made_of_is_no_query(scheme):
    """Queries by a residual block from the stream, as in GC ViT: its shortcut leads to a weight of the stream."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.make = nn.Linear(8, 8), nn.Linear(8, 8)
            self.kv, self.out, self.head = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            query = x + self.make(torch.tanh(x))
            key, value = self.kv(x).chunk(2, -1)
            scores = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
            return self.head(x + self.out(scores @ value))

    model = Model()
    report = idfx.init_(model, torch.randn(2, 5, 8), scheme=scheme)
    assert report.certificate.passed and model.stem.weight.square().mean().sqrt() > 0.1
