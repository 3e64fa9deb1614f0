"""Estimators, quantisers and normalisations are read by what they compute, however they are written.

The truths are written down by hand; degrees of homogeneity are those of school algebra.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import Small, lin, read, values
from torch import Tensor, nn
from torch.nn import functional

import idfx
from idfx.ops.kinds import Kind
from idfx.planning.file import from_json, to_json

AB = {"a": lin(4, 8), "b": lin(8, 4)}
Body = Callable[[Any, Tensor], Tensor]


class Round(torch.autograd.Function):
    """Rounding whose gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def ternary(w: Tensor) -> Tensor:
    size = w.abs().mean().clamp(min=1e-5)
    return (w / size).round().clamp(-1, 1) * size


def eight_bits(x: Tensor) -> Tensor:
    steps = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return (x * steps).round().clamp(-128, 127) / steps


def estimated(w: Tensor) -> Tensor:
    return w + (ternary(w) - w).detach()


def estimated_backwards(w: Tensor) -> Tensor:
    return ternary(w).detach() - w.detach() + w


def own_function(w: Tensor) -> Tensor:
    size = w.abs().mean().clamp(min=1e-5)
    return Round.apply(w / size).clamp(-1, 1) * size


def fake(w: Tensor) -> Tensor:
    steps, zeros = torch.full((w.shape[0],), 0.01), torch.zeros(w.shape[0], dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(w, steps, zeros, 0, -128, 127)


@pytest.mark.parametrize("quantised", [estimated, estimated_backwards, own_function, fake])
def test_a_quantised_weight_ends_its_branch(quantised: Callable[[Tensor], Tensor]) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        h = functional.linear(x, quantised(m.a.weight)).relu()
        h = h + (eight_bits(h) - h).detach()
        return x + functional.linear(h, quantised(m.b.weight))

    net = Small(body, **copy.deepcopy(AB))
    structure = read(net, values(2, 4))
    assert [[end.parameter for end in join.ends] for join in structure.joins if join.zeroable] == [["b.weight"]]
    assert len(structure.joins) == 1 and structure.roles["a.weight"].name == "inner"
    assert {found.kind for found in structure.sums} <= {"straight-through"}
    if quantised is not own_function:  # a graph has no gradient of a function of one's own
        certificate = idfx.init_(net, (values(2, 4),)).certificate
        assert certificate is not None and certificate.certified == 1
    with torch.no_grad():
        net.b.weight.zero_()
        assert torch.equal(net(values(2, 4)), values(2, 4))


@pytest.mark.parametrize("rounded", [lambda x: x + (eight_bits(x) - x).detach(), eight_bits, fake])
def test_a_quantiser_after_an_end_keeps_its_zero(rounded: Callable[[Tensor], Tensor]) -> None:
    net = Small(lambda m, x: x + rounded(m.b(m.a(x).relu())), **copy.deepcopy(AB))
    structure = read(net, values(2, 4))
    assert [join.zeroable for join in structure.joins] == [True] and structure.joins[0].ends[0].parameter == "b.weight"


def test_the_step_of_a_quantiser_is_no_gain() -> None:
    """Learned step size: it divides the weight before it multiplies the rounded one."""

    def body(m: Any, x: Tensor) -> Tensor:
        scaled = (m.b.weight / m.step).clamp(-8, 7)
        return functional.linear(x, (scaled + (scaled.round() - scaled).detach()) * m.step)

    net = Small(body, b=lin(bias=False), step=torch.tensor(0.1))
    assert read(net, values(2, 4)).roles["step"].name == "other"
    idfx.init_(net, (values(2, 4),))
    assert float(net.step.detach()) == pytest.approx(0.1)


def test_codes_of_a_table_are_not_what_they_stand_for() -> None:
    """Vector quantisation: the nearest code of zero is not zero, so a weight before it ends nothing."""

    def body(m: Any, x: Tensor) -> Tensor:
        z = m.b(m.a(x).relu())
        nearest = m.codes[torch.cdist(z, m.codes).argmin(-1)]
        return x + (z + (nearest - z).detach())

    net = Small(body, **copy.deepcopy(AB), codes=values(6, 4))
    ends = [end.parameter for join in read(net, values(2, 4)).joins for end in join.ends if join.zeroable]
    assert "b.weight" not in ends


def test_a_difference_to_an_average_is_no_estimator() -> None:
    net = Small(lambda m, x: x + (x.mean(0, keepdim=True).expand_as(x) - x), a=lin())
    assert [join.kind for join in read(net, values(2, 4)).joins] == ["identity"]


@pytest.mark.parametrize("bound", ["buffer", "parameter", "extremes"])
def test_a_clamp_between_tensors_passes_zero(bound: str) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.b(m.a(x).relu())
        if bound == "extremes":
            return x + torch.maximum(torch.minimum(y, m.limit), -m.limit)
        return x + torch.clamp(y, -m.high, m.high) if bound == "parameter" else x + torch.clamp(y, -m.limit, m.limit)

    net = Small(body, **copy.deepcopy(AB), high=torch.tensor(3.0))
    net.register_buffer("limit", torch.tensor(1e10))
    structure = read(net, values(2, 4))
    assert [[end.parameter for end in join.ends] for join in structure.joins] == [["b.weight"]]


def size(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True)


NORMS: dict[str, Body] = {
    "divided by its length": lambda m, x: functional.normalize(x, dim=-1) * 4**0.5 * m.g,
    "root mean square": lambda m, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.g,
    "the scale before the division": lambda m, x: m.g * x / (size(x) + 1e-6),
    "mean and deviation": lambda m, x: m.g * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6),
    "variance": lambda m, x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt() * m.g,
    "mean size": lambda m, x: x / x.abs().mean(-1, keepdim=True).clamp(min=1e-5) * m.g,
    "largest entry": lambda m, x: x.float() / x.abs().amax(-1, keepdim=True).clamp(min=1e-5) * m.g,
}
OTHERS: dict[str, Body] = {
    "multiplied by it again": lambda m, x: x / size(x).clamp(min=1e-5) * size(x).clamp(min=1e-5) * m.g,
    "divided by its square root": lambda m, x: x / (size(x) + 1e-6).sqrt() * m.g,
    "divided by one more than it": lambda m, x: x / (1 + size(x)) * m.g,
    "divided by a gate": lambda m, x: x / (2 + x.tanh()) * m.g,
}


@pytest.mark.parametrize(("written", "body"), [*NORMS.items(), *OTHERS.items()], ids=[*NORMS, *OTHERS])
def test_a_normalisation_is_what_does_not_change_with_the_size_of_its_input(written: str, body: Body) -> None:
    net = Small(lambda m, x: m.b(body(m, m.a(x))), a=lin(bias=False), b=lin(), g=torch.ones(4))
    with torch.no_grad():
        same = bool(torch.allclose(net(values(2, 4)), net(3 * values(2, 4)), atol=1e-3))
    assert same == (written in NORMS)
    structure = read(net, values(2, 4))
    assert structure.roles["g"].name == ("norm scale" if same else "scale")
    kinds = [term.kind for term in structure.analysis.flow.terms]
    assert (Kind.NORM in kinds) == (same or written == "multiplied by it again")


def test_a_weight_standardised_by_hand_is_read_as_by_its_operator() -> None:
    def by_hand(m: Any, x: Tensor) -> Tensor:
        w = m.b.weight
        w = (w - w.mean(1, keepdim=True)) * torch.rsqrt(w.var(1, keepdim=True, unbiased=False) + 1e-5)
        return x + functional.linear(m.a(x).relu(), w * m.g[:, None])

    def by_operator(m: Any, x: Tensor) -> Tensor:
        w = functional.layer_norm(m.b.weight, (8,), None, None, 1e-5)
        return x + functional.linear(m.a(x).relu(), w * m.g[:, None])

    found = []
    for body in (by_hand, by_operator):
        structure = read(Small(body, **copy.deepcopy(AB), g=torch.ones(4)), values(2, 4))
        found.append(({name: role.name for name, role in structure.roles.items()}, structure.joins[0].ends))
    assert found[0] == found[1] and found[0][0]["b.weight"] == "inner" and found[0][0]["g"] == "end scale"


def test_a_division_that_is_undone_leaves_a_weight_its_size() -> None:
    def undone(m: Any, x: Tensor) -> Tensor:
        length = m.b.weight.norm()
        return x + functional.linear(m.a(x).relu(), (m.b.weight / length).tanh() * length)

    def divided(m: Any, x: Tensor) -> Tensor:
        return x + functional.linear(m.a(x).relu(), m.b.weight / m.b.weight.norm())

    for body, end in ((undone, "b.weight"), (divided, "a.weight")):
        (join,) = read(Small(body, **copy.deepcopy(AB)), values(2, 4)).joins
        assert [found.parameter for found in join.ends] == [end]


def steered(m: Any, x: Tensor) -> Tensor:
    """The queries come from a stream of their own with two blocks, the second one with a projection."""
    y = x + m.c1(m.c2(x).relu())
    y = m.p(y) + m.c3(m.c4(y).relu())
    weights = torch.softmax(m.q(y) @ m.k(x).mT, -1)
    return m.o(weights @ x)


def router(m: Any, x: Tensor) -> Tensor:
    """A residual layer before the gate of a mixture."""
    h = x + m.c1(m.c2(x).relu())
    return m.k(x) * torch.sigmoid(m.o(h))


def scored(m: Any, x: Tensor) -> Tensor:
    """Additive scores: a sum of two projections in a gate is no block."""
    weights = torch.softmax(m.o((m.k(x)[:, :, None] + m.c1(m.c2(x).tanh())[:, None]).tanh()).sum(-1), -1)
    return weights @ x


@pytest.mark.parametrize(
    ("body", "ends"), [(steered, ["c1.weight", "c3.weight"]), (router, ["c1.weight"]), (scored, [])]
)
def test_blocks_inside_of_what_only_steers_are_blocks(body: Body, ends: list[str]) -> None:
    parts: dict[str, nn.Module] = {name: lin() for name in ("c1", "c2", "c3", "c4", "p", "q", "k", "o")}
    net = Small(body, **parts)
    structure = read(net, values(2, 3, 4))
    assert [end.parameter for join in structure.joins if join.zeroable for end in join.ends] == ends
    certificate = idfx.init_(net, (values(2, 3, 4),)).certificate
    assert certificate is not None and certificate.certified == len(ends)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: functional.layer_norm(x, (4,), m.w + 1),
        lambda m, x: functional.rms_norm(x, (4,), 1 + m.w, 1e-6),
        lambda m, x: x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + m.w.float()),
    ],
)
def test_a_scale_of_one_plus_a_weight_starts_with_the_weight_at_zero(body: Body) -> None:
    net = Small(lambda m, x: m.b(body(m, m.a(x))), a=lin(), b=lin(), w=torch.full((4,), 0.3))
    role = read(net, values(2, 4)).roles["w"]
    assert (role.name, role.added) == ("norm scale", 1.0)
    idfx.init_(net, (values(2, 4),), overwrite_deliberate=True)
    assert not bool(net.w.any())


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    ("scheme", "left"),
    [("idinit", 1e-6), ("idfx", 1e-6), ("zero", 0.0), ("zero-gamma", 0.0), ("rezero", 0.0), ("skipinit", 0.0)],
)
@pytest.mark.parametrize("added", [1.0, 0.0])
def test_a_branch_ends_at_what_acts_on_it_behind_a_norm(scheme: str, left: float, added: float) -> None:
    """A normalised branch has the size 1, so what multiplies it there must be small, be it w or 1 + w (Gemma 2)."""
    net = Small(lambda m, x: x + rms(m.a(x)) * (m.w + added), a=lin(), w=torch.full((4,), 1.0 - added))
    (join,) = read(net, values(2, 4)).joins
    assert [(end.parameter, end.added) for end in join.ends] == [("w", added)]
    report = idfx.init_(net, (values(2, 4),), scheme=scheme)
    assert report.certificate is not None and report.certificate.certified == 1
    assert torch.allclose(net.w + added, torch.full((4,), left), rtol=0.1, atol=0)
    x = values(2, 4)
    assert float((net(x) - x).detach().abs().max()) <= 2.1 * left  # a value of RMS 1 over 4 entries is 2 at most


def test_learned_scalars_of_shifted_scales_survive_a_file() -> None:
    net = Small(lambda m, x: x + rms(m.a(x)) * (m.w + 1), a=lin(), w=torch.zeros(4))
    plan = idfx.plan(read(net, values(2, 4)), "rezero")
    assert plan.scalars[0].on[0].added == 1
    assert from_json(to_json(plan)).scalars == plan.scalars


def test_a_scale_with_different_numbers_added_closes_nothing() -> None:
    """No value of w makes both 1 + w and 2 + w zero."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = x + rms(m.a(x)) * (m.w + 1)
        return y + rms(m.b(y)) * (m.w + 2)

    joins = read(Small(body, a=lin(), b=lin(), w=torch.zeros(4)), values(2, 4)).joins
    assert len(joins) == 2
    assert not any(join.zeroable and ("w" in {end.parameter for end in join.ends}) for join in joins)


def test_the_share_in_a_mixture_is_no_scale_of_a_norm() -> None:
    """One number each before a normalised value and another one are added; one alone is the scale of the norm."""

    def body(m: Any, x: Tensor) -> Tensor:
        normal = functional.rms_norm(x, (4,))
        y = m.shares[0] * normal + m.shares[1] * m.a(x)
        return m.b(m.alone * functional.rms_norm(y, (4,)))

    net = Small(body, a=lin(), b=lin(), shares=torch.ones(2), alone=torch.tensor(2.0))
    roles = read(net, values(2, 4)).roles
    assert (roles["shares"].name, roles["alone"].name) == ("scale", "norm scale")


def test_the_numbers_of_a_vector_that_act_differently_are_kept() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.b(m.numbers[0] * functional.rms_norm(m.a(x), (4,)) @ m.c.weight) * m.numbers[1]

    net = Small(body, a=lin(), b=lin(), c=lin(), numbers=torch.tensor([2.0, 3.0]))
    assert read(net, values(2, 4)).roles["numbers"].name == "scale"
    idfx.init_(net, (values(2, 4),))
    assert net.numbers.tolist() == [2.0, 3.0]


def suppressed(m: Any, x: Tensor) -> Tensor:
    """Boxes that a move by class keeps apart while overlaps are suppressed, as detectors do."""
    from torchvision.ops import nms

    boxes = m.a(x).view(-1, 4).abs().cumsum(1)
    classes = torch.arange(len(boxes)) % 2
    apart = boxes + classes[:, None] * (boxes.max() + 1)
    return boxes[nms(apart, boxes[:, 0], 0.5)]


def test_a_sum_that_only_steers_and_learns_nothing_is_no_block():
    structure = read(Small(suppressed, a=lin(4, 8)), values(3, 4))
    assert structure.joins == ()
    assert [found.kind for found in structure.sums] == ["gate"]
