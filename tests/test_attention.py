"""Queries, keys and values are distinguished by what gates what, in torch's own attention and in a hand-written one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import idfx
from idfx.analysis.queries import StructureQueries


class ByHand(nn.Module):
    """Attention from its textbook formula, with three separate weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.first(x) @ self.second(x).transpose(-2, -1) / 8**0.5
        return x + self.out(scores.softmax(-1) @ self.third(x))


class Fused(nn.Module):
    """torch's attention over one weight for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.all(x).chunk(3, -1)
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))


class Squeeze(nn.Module):
    """A gate that is no attention: it is not made of a product of data."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.value(x) * self.gate(x.mean(1, keepdim=True)).sigmoid()


def parts(model: nn.Module) -> dict[str, set[str]]:
    """The attention traits of each weight."""
    roles = idfx.analyze(model, (torch.ones(1, 4, 8),)).roles
    wanted = {"query", "key", "value"}
    return {name: wanted & set(role.traits) for name, role in roles.items() if role.layout is not None}


def test_three_weights_of_attention_written_by_hand() -> None:
    found = parts(ByHand())
    assert found == {
        "first.weight": {"query"},
        "second.weight": {"key"},
        "third.weight": {"value"},
        "out.weight": set(),
    }


@pytest.mark.parametrize(
    "attend",
    [
        lambda k, q, v: (k @ q.mT).mT.softmax(-1) @ v,
        lambda k, q, v: (k @ q.mT / 3).softmax(-2).transpose(1, 2) @ v,
        lambda k, q, v: (v.mT @ (k @ q.mT).softmax(1)).mT,
        lambda k, q, v: torch.bmm(torch.baddbmm(torch.ones(4, 4, device=k.device), k, q.mT).softmax(1).mT, v),
        lambda k, q, v: torch.einsum("bkq,bkd->bqd", torch.einsum("bkd,bqd->bkq", k, q).softmax(1), v),
        lambda k, q, v: torch.einsum("...dk,...kq->...qd", v.mT, torch.einsum("...kd,...qd->...kq", k, q).softmax(-2)),
        lambda k, q, v: (
            (
                (k.unflatten(-1, (2, 4)).transpose(1, 2) @ q.unflatten(-1, (2, 4)).permute(0, 2, 3, 1)).mT.softmax(-1)
                @ v.unflatten(-1, (2, 4)).transpose(1, 2)
            )
            .transpose(1, 2)
            .flatten(2)
        ),
    ],
)
def test_the_key_is_the_factor_with_the_places_of_the_value(attend: Callable[..., torch.Tensor]) -> None:
    """Written first among the factors of the scores, it is the key none the less, though all sizes are the same."""

    class Turned(ByHand):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.out(attend(self.first(x), self.second(x), self.third(x)))

    found = parts(Turned())
    assert (found["first.weight"], found["second.weight"]) == ({"key"}, {"query"})
    assert found["third.weight"] == {"value"}


def test_one_fused_weight_is_all_three() -> None:
    assert parts(Fused()) == {"all.weight": {"query", "key", "value"}, "out.weight": set()}


def test_a_squeeze_gate_is_no_attention() -> None:
    assert parts(Squeeze()) == {"value.weight": set(), "gate.weight": set()}


def test_cross_attention_takes_key_and_value_from_the_context() -> None:
    class Cross(ByHand):
        def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            scores = self.first(x) @ self.second(context).transpose(-2, -1)
            return x + self.out(scores.softmax(-1) @ self.third(context))

    structure = idfx.analyze(Cross(), (torch.ones(1, 4, 8), torch.ones(1, 6, 8)))
    assert [(join.kind, join.ends[0].parameter) for join in structure.joins] == [("identity", "out.weight")]
    traits = {name: structure.roles[name].traits for name in ("first.weight", "second.weight", "third.weight")}
    assert ["query" in traits["first.weight"], "key" in traits["second.weight"], "value" in traits["third.weight"]] == [
        True
    ] * 3


class Attending(nn.Module):
    """Queries of one value, keys and values of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scores = (self.q(x) @ self.k(y).transpose(-1, -2)).softmax(-1)
        return self.out(scores @ self.v(y))


class Streams(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.one, self.two, self.pool = way, Attending(), Attending(), nn.AvgPool1d(2)
        self.reduce, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        if self.way == "pooled":
            return x + self.one(x, self.norm(self.reduce(self.pool(x.transpose(1, 2)).transpose(1, 2))))
        if self.way == "latent":
            return x + self.one(self.norm(self.reduce(x)), self.norm(x))
        if self.way == "class":
            return x[:, :1] + self.one(x[:, :1], x)
        if self.way == "decoder":
            x = x + self.one(x, x)
            return x + self.two(x, memory)
        latents = self.reduce(x[:, :2]) + self.one(self.reduce(x[:, :2]), x)  # reads the input again, as a Perceiver
        return latents + self.two(latents, x)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("pooled", [False]),
        ("latent", [False]),
        ("class", [False]),
        ("decoder", [False, True]),
        ("perceiver", [False, True]),
    ],
)
def test_which_attention_crosses(way, expected):
    x, memory = torch.randn(2, 6, 4), torch.randn(2, 3, 4)
    structure = idfx.analyze(Streams(way), (x, memory))
    assert [attention.cross for attention in StructureQueries(structure).attentions] == expected
