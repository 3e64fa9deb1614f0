"""Roles and traits, against what the author of each little model knows of it."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from small_models import Small, conv, lin, read, values
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import idfx
from idfx.core.records import Layout

IMAGE = values(2, 4, 8, 8)


def roles(net: nn.Module, *inputs: Any) -> dict[str, tuple[str, set[str]]]:
    found = read(net, *inputs).roles
    assert all(role.evidence for role in found.values())
    assert all(evidence for role in found.values() for evidence in role.traits.values())
    return {name: (role.name, {*role.traits} - {"tall", "wide"}) for name, role in found.items()}


def stages(m: Any, x: Any) -> Any:
    x = m.stem(x)
    x = x + m.b1(m.a1(x).relu())
    x = m.down(x)
    y = m.norm(m.a2(x)).relu()
    x = m.cut(x) + m.scale * m.b2(y)
    return m.head(x.mean((2, 3)))


def test_places_along_a_network() -> None:
    net = Small(
        stages, stem=conv(4, 6), a1=conv(6, 6), b1=conv(6, 6), down=conv(6, 8, 2, stride=2), a2=conv(8, 8),
        norm=nn.BatchNorm2d(8), b2=conv(8, 8), cut=conv(8, 8, 1), scale=nn.Parameter(torch.ones(8, 1, 1)),
        head=lin(8, 5),
    )  # fmt: skip
    found = {name: role for name, (role, _) in roles(net, IMAGE).items()}
    assert {name: role for name, role in found.items() if name.endswith("weight") or name == "scale"} == {
        "stem.weight": "input stem", "a1.weight": "inner", "b1.weight": "end", "down.weight": "transition",
        "a2.weight": "inner", "norm.weight": "norm scale", "b2.weight": "end", "cut.weight": "projection shortcut",
        "scale": "branch scale", "head.weight": "head",
    }  # fmt: skip
    assert {found[f"{name}.bias"] for name in ("stem", "a1", "b1", "down", "head")} == {"bias"}
    assert found["norm.bias"] == "norm shift"


class Block(nn.Module):
    """Attention with scores scaled by a learned temperature and biased by a table, then a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 8), nn.Parameter(values(1, 5, 8))
        self.first = nn.Parameter(values(1, 1, 8))
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.temperature, self.table = nn.Parameter(torch.ones(1)), nn.Parameter(values(11))
        self.register_buffer("index", (torch.arange(6)[:, None] - torch.arange(6)[None]) + 5)
        self.gate, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.tokens(words) + self.places
        x = torch.cat((self.first.expand(len(words), -1, -1), x), 1)
        scores = functional.normalize(self.q(x), dim=-1) @ functional.normalize(self.k(x), dim=-1).mT
        weights = (scores * self.temperature + self.table[self.index]).softmax(-1)
        x = x + self.o(weights @ self.v(x))
        return x + self.down(functional.silu(self.gate(x)) * self.up(x))


def test_what_weights_of_a_transformer_do() -> None:
    found = roles(Block(), torch.tensor([[1, 2, 3, 4, 5]]))
    weights = {name.removesuffix(".weight"): role for name, role in found.items() if not name.endswith("bias")}
    assert weights == {
        "tokens": ("embedding", set()), "places": ("position", set()), "first": ("token", set()),
        "q": ("inner", {"query", "gating"}), "k": ("inner", {"key", "gating"}), "v": ("inner", {"value"}),
        "o": ("end", {"attention output"}), "temperature": ("scale", set()), "table": ("position", set()),
        "gate": ("inner", {"gate", "expansion"}), "up": ("inner", {"expansion"}), "down": ("end", {"contraction"}),
    }  # fmt: skip


def test_a_fused_weight_is_all_three() -> None:
    def body(m: Any, x: Any) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)
        return x + m.o(functional.scaled_dot_product_attention(q, k, v, m.bias))

    found = roles(Small(body, qkv=lin(4, 12), o=lin(), bias=nn.Parameter(values(3, 3))))
    assert found["qkv.weight"] == ("inner", {"query", "key", "value"})
    assert found["bias"][0] == "attention bias" and found["o.weight"] == ("end", {"attention output"})


def test_squeeze_and_excite_gates_and_steers() -> None:
    def body(m: Any, x: Any) -> Any:
        y = m.b(m.d(x).relu())
        return x + y * m.e(m.s(y.mean((2, 3), keepdim=True)).relu()).sigmoid()

    found = roles(Small(body, d=conv(4, 4, groups=4), b=conv(), s=conv(4, 2, 1), e=conv(2, 4, 1)), IMAGE)
    assert found["d.weight"] == ("inner", {"depthwise"}) and found["b.weight"] == ("end", set())
    assert found["s.weight"] == ("inner", {"gating"}) and found["e.weight"] == ("inner", {"gate", "gating"})


def test_a_function_written_as_a_product_with_itself_gates_another_value() -> None:
    """GELU by its tanh, from elementary operators, as in T5."""

    def body(m: Any, x: Any) -> Any:
        g = m.g(x)
        return x + m.o(0.5 * g * (1.0 + (0.8 * (g + 0.044715 * g.pow(3))).tanh()) * m.u(x))

    found = roles(Small(body, g=lin(4, 8), u=lin(4, 8), o=lin(8, 4)))
    assert "gate" in found["g.weight"][1] and "gate" not in found["u.weight"][1]


def test_a_normalisation_by_hand_and_a_swish_are_no_gates() -> None:
    def body(m: Any, x: Any) -> Any:
        y = m.a(x)
        y = y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        z = m.c(y)
        return x + m.b(z * z.sigmoid())

    found = roles(Small(body, a=lin(), b=lin(), c=lin()))
    assert [found[f"{name}.weight"][1] & {"gate"} for name in "abc"] == [set()] * 3


def test_what_no_input_changes_is_fixed() -> None:
    """A learned query behind a weight, and a network that makes a position of coordinates."""

    def body(m: Any, x: Any) -> Any:
        query = m.query(m.latent)
        places = m.second(m.first(torch.arange(3.0, device=x.device)[:, None]).relu())
        return functional.scaled_dot_product_attention(query, m.k(x), m.v(x)) + m.head(x + places)[:, :1]

    net = Small(
        body, latent=nn.Parameter(values(1, 1, 4)), query=lin(), k=lin(), v=lin(), first=lin(1, 8), second=lin(8, 4),
        head=lin(),
    )  # fmt: skip
    found = roles(net, values(1, 3, 4))
    fixed = {name for name, (role, _) in found.items() if role == "fixed"}
    assert fixed == {
        "latent",
        *(f"{name}.{kind}" for name in ("query", "first", "second") for kind in ("weight", "bias")),
    }


@pytest.mark.parametrize(
    ("body", "shape", "layout"),
    [
        (lambda m, x: x @ m.w[2].mT, (3, 6, 4), Layout(1, 2, batch_axes=(0,))),
        (lambda m, x: functional.linear(x, m.w.t()), (4, 6), Layout(1, 0)),
        (lambda m, x: functional.linear(x, m.w[:, :, 0, 0]), (6, 4, 1, 1), Layout(0, 1, batch_axes=(2, 3))),
        (lambda m, x: functional.linear(x, m.w.view(3, 2, 4)[1]), (6, 4), Layout(0, 1, parts=3)),
        (lambda m, x: functional.linear(x, m.w[:2]) + functional.linear(x, m.w[2:]).unflatten(-1, (2, 2)).sum(-1),
         (6, 4), Layout(0, 1, parts=3)),
        (lambda m, x: functional.linear(x, m.w / m.w.std((1,), keepdim=True)), (6, 4), Layout(0, 1)),
        (lambda m, x: torch.einsum("bti,oi->bto", x, m.w), (6, 4), Layout(0, 1)),
        (lambda m, x: torch.einsum("...i,io->...o", x, m.w), (4, 6), Layout(1, 0)),
        (lambda m, x: functional.conv1d(x.mT, m.w.flip(-1)), (6, 4, 1), Layout(0, 1, tap_axes=(2,))),
    ],
)  # fmt: skip
def test_the_matrix_of_a_weight_is_read_through_views(body: Any, shape: tuple[int, ...], layout: Layout) -> None:
    assert read(Small(body, w=nn.Parameter(values(*shape)))).roles["w"].layout == layout


@pytest.mark.parametrize("name", ["test_nfnet", "resnetv2_50", "test_convnext"])
def test_weights_that_are_standardised_are_read(name: str) -> None:
    model = timm.create_model(name).eval()
    structure = idfx.analyze(model)
    assert "unresolved" not in {role.name for role in structure.roles.values()}


def test_a_weight_normalised_along_its_inputs_is_kept() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.ConvTranspose1d(4, 2, 3), dim=0))
    role = idfx.analyze(net, (values(1, 4, 5),)).roles["0.parametrizations.weight.original1"]
    assert "normalised" in role.traits and role.layout is not None
    report = idfx.init_(net, (values(1, 4, 5),))
    assert "0.parametrizations.weight.original1" in report.plan.kept


def test_scales_and_shifts_of_normalisations_by_hand() -> None:
    def body(m: Any, x: Any) -> Any:
        y = functional.layer_norm(m.a(x), (4,)) * m.scale + m.shift
        z = y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        return m.head(m.other * z + m.more) * (1 + m.near_one)

    parts = {name: nn.Parameter(values(4)) for name in ("scale", "shift", "other", "more", "near_one")}
    found = roles(Small(body, a=lin(), head=lin(), **parts))
    assert [found[name][0] for name in parts] == ["norm scale", "norm shift", "norm scale", "norm shift", "scale"]
