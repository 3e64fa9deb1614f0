"""What architectures do to the textbook block, case by case, each with a truth that is written down by hand.

Every case is proven twice over: all parameters become noise, the ends and the biases behind them zero, and then every
zeroable join is its shortcut in the certificate, and the output is the one that the case computes from its own parts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_models import Small, conv, lin, read, values
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import idfx
from idfx.certification.certificate import certify
from idfx.core.records import Join, Structure

Body = Callable[..., Any]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Modules as small as these are faster without the threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v)


def image(channels: int = 4, size: int = 8) -> Tensor:
    return values(2, channels, size, size)


def mlp(m: Any, x: Tensor) -> Tensor:
    """The branch that most cases share: a, relu, b."""
    found: Tensor = m.b(m.a(x).relu())
    return found


def norms(**named: int) -> dict[str, nn.Module]:
    return {name: nn.BatchNorm2d(width) for name, width in named.items()}


def told(join: Join) -> tuple[str, tuple[str, ...]]:
    """Kind and ends of a join; an end of some rows as "b.weight[0:4]"; no ends where the join stays open."""
    found = []
    for end in join.ends if join.zeroable else ():
        rows = "" if end.rows is None else "[" + ",".join(f"{start}:{stop}" for start, stop in end.rows) + "]"
        found.append(end.parameter + rows)
    return join.kind, tuple(sorted(found))


def shake(net: nn.Module) -> None:
    """Make noise of every parameter and running variance."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32).mul_(0.5).add_(0.1))
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator).add_(0.5))


def close(net: nn.Module, structure: Structure, *, but: str = "") -> None:
    """Write zeros to the ends of every zeroable join, and to what must be zero with them."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for join in structure.joins:
            for end in join.ends if join.zeroable else ():
                if end.parameter == but:
                    continue
                weight, layout = parameters[end.parameter], structure.roles[end.parameter].layout
                if end.rows is None or layout is None:
                    weight.zero_()
                    continue
                axes = layout.out_axes
                moved = weight.movedim(axes, tuple(range(len(axes))))
                rows = moved.flatten(0, len(axes) - 1).clone()
                for start, stop in end.rows:
                    rows[start:stop] = 0
                weight.copy_(rows.view(moved.shape).movedim(tuple(range(len(axes))), axes))
            for name in join.zeroed_biases if join.zeroable else ():
                parameters[name].zero_()


def prove(net: nn.Module, structure: Structure, inputs: tuple[Any, ...], closed: Body | None = None) -> None:
    """The ends at zero make every zeroable join its shortcut, and no end can be left out."""
    net.eval()
    zeroable = sum(join.zeroable for join in structure.joins)
    shake(net)
    before = certify(net, structure, eps=0.0)
    assert not any(check.status == "identity" for check in before.checks), "the proof below would say nothing"
    close(net, structure)
    certificate = certify(net, structure, eps=0.0)
    assert certificate.certified == zeroable, certificate.checks
    if closed is not None:
        with torch.no_grad():
            found, wanted = net(*inputs), closed(net, *inputs)
            pairs = zip(found, wanted, strict=True) if isinstance(found, (list, tuple)) else [(found, wanted)]
            assert all(torch.equal(*pair) for pair in pairs)
    for end in {end.parameter for join in structure.joins if join.zeroable for end in join.ends}:
        shake(net)
        close(net, structure, but=end)
        assert certify(net, structure, eps=0.0).certified < zeroable, f"{end} need not be zero"


@dataclass(frozen=True)
class Case:
    """A module, its inputs, its joins as (kind, ends) with no ends where one stays open, and the kinds of other sums.

    `closed` computes the output from the parts of the module when all ends are zero.
    """

    body: Body
    parts: dict[str, Any]
    joins: list[tuple[str, tuple[str, ...]]]
    inputs: tuple[Any, ...] = (values(2, 3, 4),)
    closed: Body | None = None
    sums: list[str] | None = None


def same(m: Any, x: Tensor, *rest: Any) -> Tensor:
    """The input itself."""
    return x


AB = {"a": lin(), "b": lin()}
CASES: dict[str, Case] = {}
BROKEN: dict[str, str] = {}


def case(name: str, body: Body, joins: list[tuple[str, tuple[str, ...]]], broken: str = "", **options: Any) -> None:
    """Write a case down; `broken` says in a sentence what idfx does wrong today."""
    fields = {name: options.pop(name) for name in ("inputs", "closed", "sums") if name in options}
    CASES[name] = Case(body, options, joins, **fields)
    if broken:
        BROKEN[name] = broken


# Activation before and behind, projections, pooled and padded shortcuts


def preact(m: Any, x: Tensor) -> Tensor:
    return x + m.b(m.n2(m.a(m.n1(x).relu())).relu())


def preact_projected(m: Any, x: Tensor) -> Tensor:
    y = m.n1(x).relu()
    return m.p(y) + m.b(m.n2(m.a(y)).relu())


def postact_twice(m: Any, x: Tensor) -> Tensor:
    y = (x + m.n1(m.b(m.a(x).relu()))).relu()
    return (m.p(y) + m.d(m.c(y).relu())).relu()


def hiera(m: Any, x: Tensor) -> Tensor:
    """The query is pooled, and so is the projected shortcut."""
    y = m.norm(x)

    def pool(z: Tensor) -> Tensor:
        return z.unflatten(1, (2, 2)).amax(2)

    return pool(m.p(y)) + m.o(attend(pool(m.q(y)), m.k(y), m.v(y)))


case("pre-activation", preact, [("identity", ("b.weight",))], inputs=(image(),), closed=same,
     a=conv(), b=conv(), **norms(n1=4, n2=4))  # fmt: skip
case("pre-activation, the projection takes what is activated", preact_projected, [("projection", ("b.weight",))],
     inputs=(image(),), closed=lambda m, x: m.p(m.n1(x).relu()),
     a=conv(4, 6, stride=2), b=conv(6, 6), p=conv(4, 6, 1, stride=2), **norms(n1=4, n2=6))  # fmt: skip
case("post-activation, identity and projection", postact_twice,
     [("identity", ("b.weight",)), ("projection", ("d.weight",))], inputs=(image(),),
     closed=lambda m, x: m.p(x.relu()).relu(),
     a=conv(), b=conv(), c=conv(4, 6), d=conv(6, 6), p=conv(4, 6, 1), n1=nn.BatchNorm2d(4))  # fmt: skip
case("a pooled projection", lambda m, x: m.p(functional.avg_pool2d(x, 2)) + mlp(m, x), [("projection", ("b.weight",))],
     inputs=(image(),), closed=lambda m, x: m.p(functional.avg_pool2d(x, 2)),
     a=conv(4, 6, stride=2), b=conv(6, 6), p=conv(4, 6, 1))  # fmt: skip
case("pooled and padded channels",
     lambda m, x: functional.pad(functional.avg_pool2d(x, 2), (0, 0, 0, 0, 0, 2)) + mlp(m, x),
     [("resampled", ("b.weight",))], inputs=(image(),),
     closed=lambda m, x: functional.pad(functional.avg_pool2d(x, 2), (0, 0, 0, 0, 0, 2)),
     a=conv(4, 6, stride=2), b=conv(6, 6))  # fmt: skip
case("channels padded with another tensor of zeros",
     lambda m, x: torch.cat((x, x.new_zeros(2, 2, 8, 8)), 1) + mlp(m, x), [("resampled", ("b.weight",))],
     inputs=(image(),), closed=lambda m, x: functional.pad(x, (0, 0, 0, 0, 0, 2)),
     a=conv(4, 6), b=conv(6, 6))  # fmt: skip
case("pooled query beside a pooled projection", hiera, [("projection", ("o.weight",))], inputs=(values(2, 4, 4),),
     closed=lambda m, x: m.p(m.norm(x)).unflatten(1, (2, 2)).amax(2),
     norm=nn.LayerNorm(4), p=lin(4, 6), q=lin(4, 6), k=lin(4, 6), v=lin(4, 6), o=lin(6, 6))  # fmt: skip


# Scales, gains, standardised weights


def normaliser_free(m: Any, x: Tensor) -> Tensor:
    y = m.n(x).relu() * 0.9
    return x + m.gain * 0.2 * mlp(m, y)


def standardised(w: Tensor) -> Tensor:
    return (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5)


def standardised_as_a_batch(w: Tensor) -> Tensor:
    flat = w.reshape(1, w.shape[0], -1)
    return functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)


case("skip gain and a scaled activation", normaliser_free, [("identity", ("b.weight",))], closed=same,
     n=nn.LayerNorm(4), a=lin(), b=lin(), gain=torch.ones(()))  # fmt: skip
case("a transition of a normaliser-free net",
     lambda m, x: m.p(y := x.relu() * 0.9) + m.gain * mlp(m, y) * 0.2, [("projection", ("b.weight",))],
     closed=lambda m, x: m.p(x.relu() * 0.9), a=lin(), b=lin(), p=lin(), gain=torch.ones(()))  # fmt: skip
case("a weight standardised by hand, with a gain",
     lambda m, x: x + functional.linear(m.a(x).relu(), standardised(m.w) * m.gain[:, None]),
     [("identity", ("gain",))], closed=same, a=lin(), w=values(4, 4), gain=torch.ones(4))  # fmt: skip
case("a weight standardised as a batch, with a norm behind it",
     lambda m, x: x + m.n(functional.conv2d(m.a(x).relu(), standardised_as_a_batch(m.w), padding=1)),
     [("identity", ("n.weight",))], inputs=(image(),), closed=same, a=conv(), w=values(4, 4, 3, 3),
     n=nn.BatchNorm2d(4))  # fmt: skip
case("a scale that no weight stands before", lambda m, x: x + m.alpha * x.sigmoid().mean(-1, keepdim=True),
     [("identity", ("alpha",))], closed=same, alpha=torch.ones(()))  # fmt: skip
case("a scalar that opens a branch", lambda m, x: x + m.alpha * mlp(m, x), [("identity", ("b.weight",))],
     closed=same, alpha=torch.zeros(()), **AB)  # fmt: skip
case("a factor of one half on either side of attention",
     lambda m, x: (y := x + 0.5 * mlp(m, x)) + 0.5 * m.d(m.c(y).relu()),
     [("identity", ("b.weight",)), ("identity", ("d.weight",))], closed=same, **AB, c=lin(), d=lin())  # fmt: skip


# Kernels side by side


def mobileone(m: Any, x: Tensor) -> Tensor:
    out = m.n1(m.one(x)) + m.n0(x)
    for number in range(2):
        out = out + m.norms[number](m.convs[number](x))
    return out.relu()


case("over-parametrised kernels beside a normalised identity", mobileone,
     [("scaled", ("one.weight",)), ("scaled", ("convs.0.weight",)), ("scaled", ("convs.1.weight",))],
     inputs=(image(),), closed=lambda m, x: m.n0(x).relu(), one=conv(kernel=1, bias=False), **norms(n0=4, n1=4),
     norms=nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2)),
     convs=nn.ModuleList(conv(bias=False) for _ in range(2)))  # fmt: skip
case("two kernels and a plain identity before a norm", lambda m, x: m.n(m.n3(m.three(x)) + m.one(x) + x),
     [("identity", ("one.weight", "three.weight"))], inputs=(image(),), closed=lambda m, x: m.n(x), sums=["parallel"],
     one=conv(kernel=1), three=conv(), **norms(n=4, n3=4))  # fmt: skip
case("kernels of three shapes and no identity",
     lambda m, x: (m.square(x) + m.tall(x) + m.wide(x)).relu(), [], inputs=(image(),), sums=["parallel", "parallel"],
     square=conv(), tall=nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
     wide=nn.Conv2d(4, 4, (1, 3), padding=(0, 1)))  # fmt: skip


# Gates


def gated_convolution(m: Any, x: Tensor) -> Tensor:
    """MambaOut: one third gates, one third passes, one third is convolved."""
    gate, kept, mixed = m.fc1(m.norm(x)).split((4, 2, 2), -1)
    mixed = m.mix(mixed.transpose(1, 2)).transpose(1, 2)
    return x + m.fc2(functional.gelu(gate) * torch.cat((kept, mixed), -1))


case("a gated convolution of a part", gated_convolution, [("identity", ("fc2.weight",))], closed=same,
     norm=nn.LayerNorm(4), fc1=lin(4, 8), fc2=lin(), mix=nn.Conv1d(2, 2, 3, padding=1, groups=2))  # fmt: skip
case("a star product with a weight behind it",
     lambda m, x: x + m.out(m.g(functional.relu6(m.f1(y := m.dw(x))) * m.f2(y))), [("identity", ("out.weight",))],
     inputs=(image(),), closed=same, dw=conv(groups=4), f1=conv(4, 8, 1), f2=conv(4, 8, 1), g=conv(8, 4, 1),
     out=conv(groups=4))  # fmt: skip
case("a gated unit with a norm in its middle", lambda m, x: x + m.c(m.n(functional.silu(m.a(x)) * m.b(x))),
     [("identity", ("c.weight",))], closed=same, **AB, n=nn.LayerNorm(4), c=lin())  # fmt: skip
case("a gate alone is no join", lambda m, x, g: x * m.psi((m.w_g(g) + m.w_x(x)).relu()).sigmoid(), [],
     inputs=(values(2, 3, 4), values(2, 3, 4).flip(0)), sums=["fusion"], psi=lin(), w_g=lin(), w_x=lin())  # fmt: skip
case("the value of a fused gate ends in its rows", lambda m, x: x + (p := m.both(x).chunk(2, -1))[0] * p[1].sigmoid(),
     [("identity", ("both.weight[0:4]",))], closed=same,
     both=lin(4, 8))  # fmt: skip


# Streams that are no plain sums


def highway(m: Any, x: Tensor) -> Tensor:
    t = m.g(x).sigmoid()
    return t * m.a(x).relu() + (1 - t) * x


def gru_gated(m: Any, x: Tensor) -> Tensor:
    """The gate of GTrXL: a GRU whose state is the stream and whose input is the output of a layer."""
    y = m.layer(x).relu()
    r, z = (m.wr(y) + m.ur(x)).sigmoid(), (m.wz(y) + m.uz(x) - m.bias).sigmoid()
    return (1 - z) * x + z * (m.wg(y) + m.ug(r * x)).tanh()


def mixed(m: Any, h: Tensor) -> Tensor:
    """One hyper-connection over streams (batch, streams, width): a weighted sum is read, the output written to all."""
    alpha = m.norm(h) @ m.dynamic + m.static
    mix = alpha.transpose(-1, -2) @ h
    return mix[:, 1:] + m.write[:, None] * mlp(m, mix[:, 0])[:, None]


def mixed_by_weights(m: Any, h: Tensor) -> Tensor:
    mix = m.static.t() @ h
    return mix[:, 1:] + mlp(m, mix[:, :1])


def mixed_outwards(m: Any, h: Tensor) -> Tensor:
    """The same with the streams apart, and an outer product for what is written, whose vector is a scale."""
    mix = torch.einsum("bst,bsd->btd", (m.norm(h) @ m.dynamic).tanh() + m.static, h)
    read, kept = mix.split((1, 3), 1)
    return kept + torch.einsum("bd,s->bsd", mlp(m, read[:, 0]), m.write)


GATED = {name: lin(bias=False) for name in ("layer", "wr", "ur", "wz", "uz", "wg", "ug")}
MIXED = {
    "a": lin(),
    "b": lin(),
    "norm": nn.LayerNorm(4),
    "dynamic": values(4, 4),
    "static": values(3, 4),
    "write": values(3),
}
case("a highway carries its input by a gate", highway, [("scaled", ("a.weight",))],
     closed=lambda m, x: (1 - m.g(x).sigmoid()) * x, g=lin(), a=lin())  # fmt: skip
case("a highway whose gates are apart", lambda m, x: m.a(x).relu() * m.g(x).sigmoid() + x * m.c(x).sigmoid(),
     [("scaled", ("a.weight",))], closed=lambda m, x: x * m.c(x).sigmoid(),
     g=lin(), a=lin(), c=lin())  # fmt: skip
case("two highways in a row", lambda m, x: highway(m.second, highway(m.first, x)),
     [("scaled", ("first.a.weight",)), ("scaled", ("second.a.weight",))],
     first=nn.ModuleDict({"g": lin(), "a": lin()}), second=nn.ModuleDict({"g": lin(), "a": lin()}))  # fmt: skip
case("a gated recurrent unit as a block", gru_gated, [("scaled", ("ug.weight", "wg.weight"))], inputs=(values(2, 4),),
     **GATED, bias=values(4))  # fmt: skip
case("a state that a gate updates from another input is no block",
     lambda m, x, c: (z := m.g(x).sigmoid()) * m.b((m.a(x) + c).relu()) + (1 - z) * x, [], sums=["fusion", "fusion"],
     inputs=(values(2, 4), values(2, 4).flip(0)), g=lin(), **AB)  # fmt: skip
case("gates over two projections are no block",
     lambda m, x: m.a(x) * m.g(x).sigmoid() + m.b(x).relu() * m.h(x).sigmoid(), [], sums=["fusion"],
     g=lin(), h=lin(), **AB)  # fmt: skip
case("streams that data mix", mixed, [("resampled", ("b.weight",))], inputs=(values(2, 3, 4),), **MIXED)
case("streams that weights mix", mixed_by_weights, [("resampled", ("b.weight",))], inputs=(values(2, 3, 4),),
     closed=lambda m, h: (m.static.t() @ h)[:, 1:], **AB, static=values(3, 4))  # fmt: skip
case("streams that are written by an outer product", mixed_outwards, [("resampled", ("b.weight",))],
     inputs=(values(2, 3, 4),), **MIXED)  # fmt: skip
case("a scale by an einsum that sums over nothing", lambda m, x: x + torch.einsum("bsd,d->bsd", mlp(m, x), m.gamma),
     [("identity", ("b.weight",))], closed=same, **AB, gamma=values(4))  # fmt: skip
case("parts of one layer are no streams", lambda m, x: (p := m.both(x).split((4, 4), -1))[0] + mlp(m, p[1]), [],
     sums=["fusion"], both=lin(4, 8), **AB)  # fmt: skip
case("a token of a layer that goes to all is no stream",
     lambda m, x: (y := m.both(x))[:, 1:] + mlp(m, y[:, :1]), [], sums=["fusion"], both=lin(), **AB)  # fmt: skip


# Slices


def dual_path(m: Any, x: Tensor) -> Tensor:
    """DPN: four channels are added, the others grow."""
    kept, dense = x[..., :4], x[..., 4:]
    y = m.b(m.a(x).relu())
    return torch.cat((kept + y[..., :4], dense, y[..., 4:]), -1)


def hierarchical(m: Any, x: Tensor) -> Tensor:
    """Res2Net: what the first half gives is added to the second half, and stays an output of its own."""
    first, second = m.a(x).chunk(2, -1)
    first = m.c1(first).relu()
    second = m.c2(second + first).relu()
    return x + m.b(torch.cat((first, second), -1))


def partial(m: Any, x: Tensor) -> Tensor:
    """FasterNet: a convolution of some channels, the others beside it."""
    some, others = x.split((2, 2), 1)
    return x + mlp(m, torch.cat((m.part(some), others), 1))


case("some channels added, some grown", dual_path, [("resampled", ("b.weight[0:4]",))], inputs=(values(2, 3, 6),),
     closed=lambda m, x: torch.cat((x, m.b(m.a(x).relu())[..., 4:]), -1), a=lin(6, 4), b=lin(4, 6))  # fmt: skip
case("a hierarchy of slices", hierarchical, [("resampled", ()), ("identity", ("b.weight",))], closed=same,
     **AB, c1=lin(2, 2), c2=lin(2, 2))  # fmt: skip
case("a partial convolution", partial, [("identity", ("b.weight",))], inputs=(image(),), closed=same,
     a=conv(4, 8, 1), b=conv(8, 4, 1), part=conv(2, 2))  # fmt: skip
case("a cheap copy beside a primary one ends in the primary",
     lambda m, x: x + torch.cat((y := m.b(m.a(x).relu()), m.cheap(y)), 1), [("identity", ("b.weight",))],
     inputs=(image(),), closed=same, a=conv(), b=conv(4, 2, 1),
     cheap=conv(2, 2, groups=2, bias=False))  # fmt: skip
case("an output layer for residual and skip",
     lambda m, x: (x + (p := m.b(m.a(x).tanh()).chunk(2, -1))[0]) * 0.7 + m.c(p[1]),
     [("identity", ("b.weight[0:4]",)), ("scaled", ("c.weight",))], closed=lambda m, x: x * 0.7, a=lin(), b=lin(4, 8),
     c=lin())  # fmt: skip


# Streams and cells


def enlarged(x: Tensor, factor: int = 2) -> Tensor:
    return functional.interpolate(x, scale_factor=factor)


def two_resolutions(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """HRNet: two streams, each taking up the other."""
    fine, coarse = m.fine(x).relu(), m.coarse(x).relu()
    return (fine + enlarged(m.up(coarse))).relu(), (m.down(fine) + coarse).relu()


def cell(m: Any, x: Tensor) -> Tensor:
    """NASNet: sums of operations on two earlier states."""
    before, now = m.p(x).relu(), m.a(m.p(x).relu()).relu()
    left = m.s1(now.relu()) + m.s2(before.relu())
    right = m.s3(left.relu()) + functional.avg_pool2d(now, 3, 1, 1)
    return torch.cat((left, right), 1)


case("two streams of different resolution", two_resolutions, [], inputs=(image(),), sums=["fusion", "fusion"],
     fine=conv(), coarse=conv(stride=2), up=conv(kernel=1), down=conv(stride=2))  # fmt: skip
case("three scales added", lambda m, x: m.a(x) + enlarged(m.b(functional.avg_pool2d(x, 2)), 2)
     + enlarged(m.c(functional.avg_pool2d(x, 4)), 4), [], inputs=(image(),), a=conv(), b=conv(), c=conv())  # fmt: skip
case("a state added to an operation on a later one",
     lambda m, x: (y := m.p(x).relu()) + m.s(m.a(y).relu()), [("identity", ("s.weight",))],
     inputs=(image(),), closed=lambda m, x: m.p(x).relu(), p=conv(), a=conv(), s=conv())  # fmt: skip
case("a generator block enlarges both sides",
     lambda m, x: m.p(enlarged(x)) + m.b(m.a(enlarged(x.relu())).relu()), [("projection", ("b.weight",))],
     inputs=(image(),), closed=lambda m, x: m.p(enlarged(x)),
     p=conv(4, 6, 1), a=conv(4, 6), b=conv(6, 6))  # fmt: skip
case("a decoder block enlarges its input", lambda m, x: enlarged(x) + m.b(enlarged(m.a(x).relu())),
     [("resampled", ("b.weight",))], inputs=(image(),), closed=lambda m, x: enlarged(x),
     a=conv(), b=conv())  # fmt: skip
case("two heads are no block", lambda m, x, c: m.head(x) + (m.table(c) * x).sum(-1, keepdim=True), [],
     inputs=(values(2, 4), torch.tensor([1, 3])),
     head=lin(4, 1), table=nn.Embedding(5, 4))  # fmt: skip


# Shortcuts beside what has no weight


def pooled_query(m: Any, x: Tensor) -> Tensor:
    """MViT v2: the pooled query is added to what attention gives."""
    y = m.norm(x)
    q, k, v = m.q(y), m.k(y), m.v(y)
    return x + m.o(attend(q, k, v) + q)


case("the query added to its attention", pooled_query, [("identity", ("v.weight",)), ("identity", ("o.weight",))],
     closed=same, norm=nn.LayerNorm(4), q=lin(), k=lin(), v=lin(), o=lin())  # fmt: skip
case("a Fourier mixer", lambda m, x: m.n(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real), [("identity", ())],
     n=nn.LayerNorm(4))  # fmt: skip
case("the difference to a pooled map without a scale",
     lambda m, x: x + (functional.avg_pool2d(x, 3, 1, 1) - x), [("identity", ())], inputs=(image(),),
     unused=lin())  # fmt: skip


# Used elsewhere too


def around(m: Any, x: Tensor) -> Tensor:
    """One weight before the fork and in the branch: at zero there, nothing of the input would be left."""
    y = m.a(x)
    return y + m.a(m.b(y).relu())


case("a weight twice in its branch", lambda m, x: x + m.a(m.a(x).relu()), [("identity", ("a.weight",))],
     closed=same, a=lin())  # fmt: skip
case("a weight and its transpose", lambda m, x: x + (x @ m.w).relu() @ m.w.t(), [("identity", ("w",))],
     closed=same, w=values(4, 4))  # fmt: skip
case("a weight in a branch and in the branch inside it",
     lambda m, x: x + m.a((y := m.b(x).relu()) + m.a(y).tanh()), [("identity", ("a.weight",))] * 2,
     closed=same, **AB)  # fmt: skip
case("a weight before the fork and in the branch", around, [("identity", ())], **AB)
case("a weight in one branch that ends another",
     lambda m, x: (y := x + m.b(m.a(x).relu())) + m.a(m.c(y).relu()), [("identity", ("b.weight",)), ("identity", ())],
     **AB, c=lin())  # fmt: skip
case("a weight on the shortcut and in the branch", lambda m, x: m.a(x) + m.a(m.b(x).relu()), [("projection", ())],
     **AB)  # fmt: skip


def runge_kutta(m: Any, x: Tensor) -> Tensor:
    """A step of the classical Runge-Kutta method: each slope is used in the next stage and in the sum of all."""
    one = mlp(m, x)
    two = mlp(m, x + one / 2)
    three = mlp(m, x + two / 2)
    return x + (one + 2 * two + 2 * three + mlp(m, x + three)) / 6


def momentum(m: Any, x: Tensor) -> Tensor:
    """A velocity that remembers the first branch: both must be zero for the second join to be its shortcut."""
    velocity = mlp(m, x)
    y = x + velocity
    return y + (velocity / 2 + m.d(m.c(y).relu()))


def slopes_returned(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Heun's method, but the first slope is an output too: only what runs through the joins may be zero."""
    one = mlp(m, x)
    return x + (one + mlp(m, x + one)) / 2, one


case("the stages of Runge-Kutta", runge_kutta, [("identity", ("b.weight",))] * 7, closed=same, **AB)
case("a branch that returns in the next", momentum,
     [("identity", ("b.weight",)), ("identity", ("b.weight", "d.weight")), ("scaled", ("d.weight",))],
     closed=same, **AB, c=lin(), d=lin())  # fmt: skip
case("stages whose slope is returned as well", slopes_returned, [("identity", ())] * 3, **AB)


def cascade(m: Any, x: Tensor) -> Tensor:
    """EdgeNeXt: each slice takes up what the one before gave, and all are put side by side."""
    slices = x.chunk(2, -1)
    first = m.c1(slices[0]).relu()
    second = m.c2(first + slices[1]).relu()
    return torch.cat((first, second), -1)


def dense_attention(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The branch is an output of its own."""
    y = mlp(m, x)
    return x + y, y


case("a cascade of slices", cascade, [("resampled", ())], c1=lin(2, 2), c2=lin(2, 2))
case("a branch that is returned as well", dense_attention, [("identity", ())], **AB)
case("an input added twice", lambda m, x: x + (x + mlp(m, x)), [("identity", ("b.weight",))],
     closed=lambda m, x: x + x, sums=["parallel"], **AB)  # fmt: skip
case("a long skip over blocks", lambda m, x: (y := m.p(x)) + m.t((z := y + m.b(m.a(y).relu())) + m.d(m.c(z).relu())),
     [("identity", ("b.weight",)), ("identity", ("d.weight",)), ("identity", ("t.weight",))],
     closed=lambda m, x: m.p(x), p=lin(), t=lin(), **AB, c=lin(), d=lin())  # fmt: skip


# Operators out of the ordinary


def by_length(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def outlook(m: Any, x: Tensor) -> Tensor:
    """VOLO: values unfolded, mixed by weights of the centre, folded again."""
    batch, channels, height, width = x.shape
    v = functional.unfold(m.v(x), 3, padding=1).view(batch, channels, 9, height * width)
    weights = m.attn(x).flatten(2).view(batch, 9, 9, height * width).softmax(2)
    mixed = torch.einsum("bcjn,bijn->bcin", v, weights).reshape(batch, channels * 9, height * width)
    return x + m.proj(functional.fold(mixed, (height, width), 3, padding=1))


def spectral_filter(m: Any, x: Tensor) -> Tensor:
    """GFNet: multiplied in the frequencies by a learned filter."""
    frequencies = torch.fft.rfft(m.norm(x), dim=1, norm="ortho") * torch.view_as_complex(m.filter)
    return x + torch.fft.irfft(frequencies, n=x.shape[1], dim=1, norm="ortho")


def experts(m: Any, x: Tensor) -> Tensor:
    return torch.einsum("btd,ehd->bteh", x, m.w_in).relu()


def added_in_place(m: Any, x: Tensor, z: Tensor) -> Tensor:
    """The first is halved and the second doubled on the way, and both put right again."""
    both = [x * 2, z / 2]
    torch._foreach_mul_(both, [0.5, 2.0])
    torch._foreach_add_(both, [mlp(m, x), m.c(z).tanh()], alpha=3)
    return torch.cat((both[0].flatten(0, 1), both[1]))


case("activations clipped before and behind",
     lambda m, x: x + m.b(m.a(x.clamp(-1, 1)).clamp(-1, 1).relu()).clamp(min=-0.5, max=0.5),
     [("identity", ("b.weight",))], closed=same, **AB)  # fmt: skip
case("a norm written with rsqrt behind the branch", lambda m, x: x + by_length(mlp(m, x), m.w), [("identity", ("w",))],
     closed=same, w=torch.ones(4), **AB)  # fmt: skip
case("unfolded and folded", outlook, [("identity", ("proj.weight",))], inputs=(image(),), closed=same,
     v=conv(kernel=1), attn=conv(4, 81, 1), proj=conv(kernel=1))  # fmt: skip
case("a filter in the frequencies", spectral_filter, [("identity", ("filter",))], closed=same,
     norm=nn.LayerNorm(4), filter=values(2, 4, 2))  # fmt: skip
case("a sum inside a matrix product", lambda m, x: torch.addmm(x, m.a(x).relu(), m.w), [("identity", ("w",))],
     inputs=(values(3, 4),), closed=same, a=lin(), w=values(4, 4))  # fmt: skip
case("a sum inside a batched matrix product", lambda m, x: torch.baddbmm(x, x.softmax(1).transpose(1, 2), m.v(x)),
     [("identity", ("v.weight",))], inputs=(values(2, 4, 4),), closed=same, v=lin())  # fmt: skip
case("rows added at their places",
     lambda m, x: x.index_add(0, (i := torch.tensor([0, 2], device=x.device)), mlp(m, x[i])),
     [("identity", ("b.weight",))], inputs=(values(3, 4),), closed=same, **AB)  # fmt: skip
case("rows put and accumulated",
     lambda m, x: x.index_put((i := torch.tensor([0, 2], device=x.device),), mlp(m, x[i]), accumulate=True),
     [("identity", ("b.weight",))], inputs=(values(3, 4),), closed=same, **AB)  # fmt: skip


def frames(m: Any, x: Tensor) -> Tensor:
    """The second frame is read only by the branch: closing the branch would lose the frame."""
    first, second = x.unbind(1)[:2]
    return first + m.b(m.a(second).relu())


def unrolled(m: Any, x: Tensor) -> Tensor:
    """A recurrence: each step reads an entry of its own."""
    state = torch.tanh(m.a(x[:, 0]))
    for t in range(1, 3):
        state = torch.tanh(m.a(x[:, t]) + m.b(state))
    return state


def coupled(m: Any, x: Tensor) -> Tensor:
    """The halves of a reversible block both go on."""
    first, second = x.chunk(2, -1)
    first = first + m.b(second).relu()
    return torch.cat((first, second + m.a(first).relu()), -1)


def deep_supervision(m: Any, x: Tensor) -> Tensor:
    """A prediction from a coarse resolution beside one from a fine one."""
    y = m.a(x).relu()
    return m.p(y) + m.up(m.b(functional.max_pool2d(y, 2)).relu())


case("two frames", frames, [], sums=["fusion"], **AB)
case("steps of a recurrence", unrolled, [], sums=["fusion"] * 2, **AB)
case("a reversible coupling", coupled, [("resampled", ("a.weight",)), ("resampled", ("b.weight",))],
     closed=same, a=lin(2, 2), b=lin(2, 2))  # fmt: skip
case("a transposed convolution comes back from a coarser resolution", deep_supervision, [], sums=["fusion"],
     inputs=(image(),), a=conv(), b=conv(), p=conv(4, 3, 1), up=nn.ConvTranspose2d(4, 3, 2, 2))  # fmt: skip
case("a normalisation folded into its weight",
     lambda m, x: x + functional.linear(x, m.w * (m.g / m.s.exp())[:, None], m.shift - 0.5 * m.shift),
     [("identity", ("w",))], closed=same, w=values(4, 4), g=values(4), s=values(4), shift=values(4))  # fmt: skip
case("a low-rank pair beside its weight", lambda m, x: x + functional.linear(m.a(x).relu(), m.w + m.up @ m.down),
     [("identity", ("up", "w"))], closed=same,
     a=lin(), w=values(4, 4), up=values(4, 2), down=values(2, 4))  # fmt: skip
case("two weights side by side", lambda m, x: x + functional.linear(m.a(x).relu(), torch.cat((m.w1, m.w2))),
     [("identity", ("w1", "w2"))], closed=same, a=lin(), w1=values(1, 4), w2=values(3, 4))  # fmt: skip
case("the gated half of a GLU", lambda m, x: x + functional.glu(m.b(m.a(x).relu())),
     [("identity", ("b.weight[0:4]",))], closed=same, a=lin(), b=lin(4, 8))  # fmt: skip
case("a GLU along another axis", lambda m, x: x + functional.glu(m.b(m.a(x).relu()).transpose(1, 2), 1).transpose(1, 2),
     [("identity", ("b.weight[0:4]",))], closed=same, a=lin(), b=lin(4, 8))  # fmt: skip
case("a step held for a while", lambda m, x: x + x @ (m.w * (m.step.exp() - 1) / m.step), [("identity", ("w",))],
     closed=same, w=values(4, 4), step=values(4, 4))  # fmt: skip
case("the largest at a place is no sum",
     lambda m, x: x.scatter_reduce(0, torch.zeros(3, 4, dtype=torch.int64, device=x.device), mlp(m, x), "amax"), [],
     inputs=(values(3, 4),), **AB)  # fmt: skip
case("ranks are not zero", lambda m, x: x + mlp(m, x).sort(-1)[1].to(x.dtype), [],
     sums=["index"], **AB)  # fmt: skip
case("the sum of input and branch in a stack", lambda m, x: torch.stack((x, mlp(m, x))).sum(0),
     [("identity", ("b.weight",))], closed=same, **AB)  # fmt: skip
case("a sum written into a given tensor", lambda m, x: torch.add(x, mlp(m, x), out=torch.empty(0, device=x.device)),
     [("identity", ("b.weight",))], closed=same, **AB)  # fmt: skip
case("a product and a map written into given tensors",
     lambda m, x: x + torch.tanh(torch.matmul(m.a(x), m.w, out=(y := torch.empty_like(x))), out=y),
     [("identity", ("w",))], closed=same, a=lin(), w=values(4, 4))  # fmt: skip
case("lists added entry by entry", lambda m, x, z: torch._foreach_add([x, z], [mlp(m, x), m.c(z).tanh()]),
     [("identity", ("b.weight",)), ("identity", ("c.weight",))], inputs=(values(2, 3, 4), values(5, 4)),
     closed=lambda m, x, z: [x, z], **AB, c=lin())  # fmt: skip
case("lists added to in place", added_in_place,
     [("scaled", ("b.weight",)), ("scaled", ("c.weight",))], inputs=(values(2, 3, 4), values(5, 4)),
     closed=lambda m, x, z: torch.cat((x.flatten(0, 1), z)), **AB, c=lin())  # fmt: skip
case("the sum of a stack along its last axis",
     lambda m, x: torch.stack((mlp(m, x), x), -1).sum(3, keepdim=True).squeeze(-1), [("identity", ("b.weight",))],
     closed=same, **AB)  # fmt: skip
case("the mean of input and branch", lambda m, x: torch.stack((x, mlp(m, x))).mean(0), [("scaled", ("b.weight",))],
     closed=lambda m, x: x / 2, **AB)  # fmt: skip
case("a sum of what was put side by side and cut again",
     lambda m, x: torch.cat((x, mlp(m, x)), 1).unflatten(1, (2, 3)).sum(1), [("identity", ("b.weight",))],
     closed=same, **AB)  # fmt: skip
case("a sum over a new axis of parts", lambda m, x: torch.cat((x[None], mlp(m, x)[None])).sum((0,)),
     [("identity", ("b.weight",))], closed=same, **AB)  # fmt: skip
case("a sum over the axis along which parts lie is none of them",
     lambda m, x: torch.cat((x, mlp(m, x)), 1).sum(1), [], sums=[], **AB)  # fmt: skip
case("a sum over another axis than that of the stack",
     lambda m, x: torch.stack((x, mlp(m, x)), 1).sum(2), [], sums=[], **AB)  # fmt: skip
case("neighbours added, not the parts",
     lambda m, x: torch.cat((x, mlp(m, x)), 1).unflatten(1, (3, 2)).sum(2), [], sums=[], **AB)  # fmt: skip
case("steps of one solver", lambda m, x: (y := x + 0.1 * mlp(m, x)) + 0.1 * mlp(m, y),
     [("identity", ("b.weight",))] * 2, closed=same, **AB)  # fmt: skip
case("a step inside a step", lambda m, x: x + 0.1 * mlp(m, x + 0.05 * mlp(m, x)), [("identity", ("b.weight",))] * 2,
     closed=same, **AB)  # fmt: skip
case("a scaled shortcut before a norm", lambda m, x: m.n(1.8 * x + mlp(m, x)), [("scaled", ("b.weight",))],
     closed=lambda m, x: m.n(1.8 * x), n=nn.LayerNorm(4), **AB)  # fmt: skip
case("a decoder that adds its skip", lambda m, x: (d := m.p(x).relu()) + m.b(enlarged(m.a(d).relu())),
     [("identity", ("b.weight",))], inputs=(image(),), closed=lambda m, x: m.p(x).relu(), p=conv(),
     a=conv(stride=2), b=conv())  # fmt: skip
case("a branch that is subtracted", lambda m, x: x - mlp(m, x), [("identity", ("b.weight",))], closed=same, **AB)
case("a transposed convolution ends a branch", lambda m, x: x + m.up(m.down(x).relu()), [("identity", ("up.weight",))],
     inputs=(image(),), closed=same, down=nn.Conv2d(4, 6, 2, 2), up=nn.ConvTranspose2d(6, 4, 2, 2))  # fmt: skip
case("experts in one weight", lambda m, x: x + torch.einsum("bteh,edh,bte->btd", experts(m, x), m.w_out, m.router(x)),
     [("identity", ("w_out",))], closed=same, w_in=values(2, 6, 4), w_out=values(2, 4, 6),
     router=nn.Sequential(lin(4, 2), nn.Softmax(-1)))  # fmt: skip


# Side by side instead of added


def one_shot(m: Any, x: Tensor) -> Tensor:
    """VoVNet: everything side by side once, then added to the input."""
    outs = [x, y := m.a(x).relu(), m.b(y).relu()]
    return x + m.c(torch.cat(outs, -1))


def unet(m: Any, x: Tensor) -> Tensor:
    down = m.a(x).relu()
    middle = functional.interpolate(m.b(functional.max_pool2d(down, 2)).relu(), scale_factor=2)
    found: Tensor = m.c(torch.cat((down, middle), 1))
    return found


case("aggregated once and added", one_shot, [("identity", ("c.weight",))], closed=same, **AB, c=lin(12, 4))
case("a skip by concatenation", unet, [], inputs=(image(),), sums=[], a=conv(), b=conv(), c=conv(8, 4))
case("branches side by side", lambda m, x: torch.cat((m.a(x), m.b(x), x), -1), [], sums=[], **AB)
case("a plain chain", lambda m, x: m.b(m.a(x).relu()), [], sums=[], **AB)


# Additions that are none of features


case("a decayed average over time", lambda m, x: torch.stack(list(decayed(m, x.unbind(1))), 1), [], a=lin())
case("coupling: half of the entries scaled and shifted",
     lambda m, x: torch.cat((p := x.chunk(2, -1), p[0], p[1] * m.s(p[0]).exp() + m.t(p[0]))[1:], -1), [],
     s=lin(2, 2), t=lin(2, 2))  # fmt: skip
case("a coupling that only adds",
     lambda m, x: torch.cat((p := x.chunk(2, -1), p[0], p[1] + m.b(m.a(p[0]).relu()))[1:], -1),
     [("resampled", ("b.weight",))], closed=same, a=lin(2, 4), b=lin(4, 2))  # fmt: skip
case("a mean and a draw", lambda m, x: m.mu(x) + torch.ones_like(x) * (0.5 * m.logvar(x)).exp(), [],
     mu=lin(), logvar=lin())  # fmt: skip
case("the running sum of skip outputs",
     lambda m, x: m.s1(y := m.a(x).relu()) + m.s2(m.b(y).relu()), [],
     broken="of two skip outputs, summed, the first is called the projection shortcut of the second",
     **AB, s1=lin(), s2=lin())  # fmt: skip


def decayed(m: Any, steps: tuple[Tensor, ...]) -> list[Tensor]:
    """h = 0.9 h + a(x), step by step."""
    states = [m.a(steps[0])]
    for step in steps[1:]:
        states.append(0.9 * states[-1] + m.a(step))
    return states


# Weights that are made of others before their use


case("a spectral norm undoes any size", lambda m, x: x + m.b(x).relu(), [("identity", ())],
     b=parametrizations.spectral_norm(lin()))  # fmt: skip
case("a scale behind a spectral norm", lambda m, x: x + m.gamma * m.b(x).relu(), [("identity", ("gamma",))],
     closed=same, b=parametrizations.spectral_norm(lin()), gamma=torch.ones(1))  # fmt: skip
case("a weight before a spectral norm", lambda m, x: x + mlp(m, x), [("identity", ("a.weight",))], closed=same,
     a=lin(), b=parametrizations.spectral_norm(lin()))  # fmt: skip
case("an orthogonal weight is never zero", lambda m, x: x + m.b(x).relu(), [("identity", ())],
     b=parametrizations.orthogonal(lin()))  # fmt: skip
case("a weight before an orthogonal one", lambda m, x: x + mlp(m, x), [("identity", ("a.weight",))], closed=same,
     a=lin(), b=parametrizations.orthogonal(lin()))  # fmt: skip
case("a weight of low rank", lambda m, x: x + functional.linear(m.a(x).relu(), m.u @ m.v), [("identity", ("u",))],
     closed=same, a=lin(), u=values(4, 2), v=values(2, 4))  # fmt: skip
case("a low-rank addition to a weight is an end as well",
     lambda m, x: x + mlp(m, x) + m.up(m.down(m.a(x).relu())),
     [("identity", ("b.weight",)), ("identity", ("up.weight",))], closed=same, **AB,
     down=lin(4, 2, bias=False), up=lin(2, 4, bias=False))  # fmt: skip
case("a masked weight", lambda m, x: x + functional.linear(m.a(x).relu(), m.w.tril()), [("identity", ("w",))],
     closed=same, a=lin(), w=values(4, 4))  # fmt: skip
case("a weight on the left", lambda m, x: x + (m.w @ m.a(x).relu()), [("identity", ("w",))], inputs=(values(2, 4, 4),),
     closed=same, a=lin(), w=values(4, 4))  # fmt: skip
case("keys and values of other widths", lambda m, x, c: x + m.attention(x, c, c, need_weights=False)[0],
     [("identity", ("attention.out_proj.weight",))], inputs=(values(2, 3, 4), values(2, 5, 6)), closed=same,
     attention=nn.MultiheadAttention(4, 2, kdim=6, vdim=6, batch_first=True))  # fmt: skip
case("attention without a softmax ends in its value",
     lambda m, x: x + (m.q(x) @ m.k(x).transpose(1, 2)).tril() @ m.v(x),
     [("identity", ("v.weight",))], closed=same, q=lin(), k=lin(), v=lin())  # fmt: skip
case("a weight made of data", lambda m, x, s: x + torch.bmm(x, m.w * m.s(s)[:, None]), [("identity", ("w",))],
     inputs=(values(2, 3, 4), values(2, 4)), closed=same, w=values(1, 4, 4), s=lin())  # fmt: skip


# How a forward is run


def without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.a(x).relu()
    return x + m.b(y)


def in_half(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mlp(m, x)
    return x + y.float()


case("gradients switched off inside", without_gradients, [("identity", ("b.weight",))], closed=same, **AB)
case("autocast inside", in_half, [("identity", ("b.weight",))], closed=same, **AB)


class Swish(torch.autograd.Function):
    """x sigmoid(x) with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = x.sigmoid()
        return gradient * gate * (1 + x * (1 - gate))


case("a function with a backward pass of its own", lambda m, x: x + Swish.apply(mlp(m, x)),
     [("identity", ("b.weight",))], closed=same, **AB)  # fmt: skip
case("a scripted branch", lambda m, x: x + m.scripted(x), [("identity", ("scripted.2.weight",))], closed=same,
     scripted=torch.jit.script(nn.Sequential(lin(), nn.ReLU(), lin())))  # fmt: skip
case("a compiled branch", lambda m, x: x + m.compiled(x), [("identity", ("compiled._orig_mod.2.weight",))], closed=same,
     compiled=torch.compile(nn.Sequential(lin(), nn.ReLU(), lin()), backend="eager"))  # fmt: skip
case("a checkpointed branch", lambda m, x: x + checkpoint(lambda y: mlp(m, y), x, use_reentrant=False),
     [("identity", ("b.weight",))], closed=same, **AB)  # fmt: skip
case("a branch for some entries", lambda m, x: torch.where(x > 0, x + mlp(m, x), x), [("identity", ("b.weight",))],
     closed=same, **AB)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.xfail(strict=True, reason=BROKEN[name])] if name in BROKEN else [])
        for name in CASES
    ],
)
def test_joins_and_ends_are_those_by_construction(name: str) -> None:
    found = CASES[name]
    net = Small(found.body, **copy.deepcopy(found.parts))
    structure = read(net, *found.inputs)
    assert structure.unknown == ()
    assert sorted(map(told, structure.joins)) == sorted(found.joins)
    assert found.sums is None or [join.kind for join in structure.sums] == found.sums
    if structure.joins:
        prove(net, structure, found.inputs, found.closed)


# Modules that need more than one look


def test_a_pruned_weight_ends_in_what_is_left_of_it() -> None:
    net = Small(lambda m, x: x + mlp(m, x), **copy.deepcopy(AB))
    prune.random_unstructured(net.b, "weight", 0.5)
    structure = read(net)
    assert [told(join) for join in structure.joins] == [("identity", ("b.weight_orig",))]
    prove(net, structure, (values(2, 3, 4),), same)


@pytest.mark.parametrize("norm", [None, "train"])
def test_counters_of_training_mode_are_no_sums(norm: str | None) -> None:
    """A batch normalisation in training mode counts its batches; that is no sum, and nothing is counted."""
    net = Small(lambda m, x: (x + m.n(m.b(m.a(x).relu()))).relu(), a=conv(), b=conv(), n=nn.BatchNorm2d(4))
    net.train(norm == "train")
    structure = read(net, image())
    assert [told(join) for join in structure.joins] == [("identity", ("b.weight",))] and structure.sums == ()
    assert net.n.num_batches_tracked == 0 and not net.n.running_mean.any()


def viewed(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y.view(-1, 4).add_(mlp(m, x).view(-1, 4))
    return y


def sliced(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] += mlp(m, x)[:, :2]
    return y


@pytest.mark.parametrize(("body", "kind"), [(viewed, "identity"), (sliced, "resampled")])
def test_a_branch_added_into_a_view_is_certified(body: Body, kind: str) -> None:
    net = Small(body, **copy.deepcopy(AB))
    structure = read(net)
    assert [told(join) for join in structure.joins] == [(kind, ("b.weight",))]
    prove(net, structure, (values(2, 3, 4),), same)


class Masked(nn.Module):
    """A linear layer behind a mask."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x * self.mask)


def test_one_buffer_under_two_names_is_certified() -> None:
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    net = nn.Sequential(Masked(mask), Masked(mask))
    structure = read(net, values(2, 4))
    assert [told(join) for join in structure.joins] == [("identity", (f"{i}.layer.weight",)) for i in range(2)]
    prove(net, structure, (values(2, 4),), lambda m, x: x)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_weight_norm_along_the_inputs_starts_finite(dim: int) -> None:
    """A transposed convolution counts its inputs first, and so does a linear layer normalised along axis 1."""
    layer: nn.Module = nn.ConvTranspose1d(8, 4, 4, 2, padding=1) if dim == 0 else nn.Linear(8, 4)
    first: nn.Module = nn.Conv1d(4, 8, 3, padding=1) if dim == 0 else nn.Linear(4, 8)
    net = nn.Sequential(first, parametrizations.weight_norm(layer, dim=dim))
    x = values(2, 4, 6) if dim == 0 else values(2, 4)
    idfx.init_(net, (x,))
    assert net(x).isfinite().all()


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_spectral_norm_is_one_after_initialisation(norm: Any) -> None:
    net = nn.Sequential(norm(nn.Linear(8, 8)))
    report = idfx.init_(net, (values(2, 8),))
    assert {"0.parametrizations.weight.original", "0.weight_orig"} & set(report.plan.decisions)
    net.eval()(values(2, 8))
    assert torch.linalg.matrix_norm(net[0].weight.detach(), 2) < 1.01


def test_a_complex_end_is_not_zeroed() -> None:
    """As a frozen one, it keeps the author's values, so its join stays open."""
    real, imaginary = values(2, 4, 4)
    w = torch.complex(real, imaginary)
    x = torch.complex(values(2, 4), values(2, 4).flip(0))
    net = Small(lambda m, x: x + torch.einsum("oi,bi->bo", m.w, x), w=w)
    assert [join.zeroable for join in read(net, x).joins] == [False]
    report = idfx.init_(net, (x,))
    assert report.certificate is not None and report.certificate.passed


def test_a_sparse_input_is_certified() -> None:
    net = Small(lambda m, x, graph: x + (graph @ m.b(x)).relu(), b=lin())
    inputs = values(3, 4), torch.eye(3).to_sparse_csr()
    structure = read(net, *inputs)
    assert [told(join) for join in structure.joins] == [("identity", ("b.weight",))]
    prove(net, structure, inputs, same)


def test_a_discriminator_of_strided_convolutions_lets_the_signal_through() -> None:
    layers = [nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 4, 2, 1), nn.LeakyReLU(0.2)]
    net = nn.Sequential(*layers, nn.Conv2d(16, 1, 4, 1, 0))
    x = image(3, 16)
    idfx.init_(net, (x,))
    first, second = net(x).flatten()
    assert first != second


def test_a_deep_stack_of_convolutions_lets_the_signal_through() -> None:
    net = nn.Sequential(*(layer for _ in range(20) for layer in (conv(4, 4), nn.ReLU())))
    x = image(4, 8).abs()
    idfx.init_(net, (x,), loosen="none")
    assert torch.equal(net(x), x)


def descent(m: Any, x: Tensor) -> Tensor:
    return x - m.b(torch.func.grad(lambda y: m.a(y).tanh().sum())(x))


@pytest.mark.parametrize("body", [lambda m, x: x + torch.func.vmap(lambda y: mlp(m, y))(x), descent])
def test_a_branch_under_a_transform_is_read_as_the_operators_inside(body: Body) -> None:
    net, inputs = Small(body, **copy.deepcopy(AB)), (values(2, 3, 4),)
    structure = read(net, *inputs)
    assert structure.unknown == ()
    assert [told(join) for join in structure.joins] == [("identity", ("b.weight",))]
    prove(net, structure, inputs, same)


def test_the_data_of_a_parameter_is_the_parameter() -> None:
    net = Small(lambda m, x: x + functional.linear(m.a(x).relu(), m.b.weight.data, m.b.bias), **copy.deepcopy(AB))
    assert [told(join) for join in read(net).joins] == [("identity", ("b.weight",))]


def test_the_order_of_a_product_changes_no_end() -> None:
    parts = {**AB, "g": lin()}
    first = Small(lambda m, x, c: x + m.g(c) * mlp(m, x), **copy.deepcopy(parts))
    second = Small(lambda m, x, c: x + mlp(m, x) * m.g(c), **copy.deepcopy(parts))
    inputs = values(2, 3, 4), values(2, 3, 4).flip(0)
    assert [told(join) for join in read(first, *inputs).joins] == [told(join) for join in read(second, *inputs).joins]


def modulated(m: Any, x: Tensor, c: Tensor) -> Tensor:
    """adaLN-zero: shift, scale and gate of one layer of the condition."""
    shift, scale, gate = m.modulate(c).chunk(3, -1)
    return x + gate * mlp(m, m.norm(x) * (1 + scale) + shift)


def test_a_gate_made_of_a_condition_can_close_a_branch() -> None:
    parts = {**AB, "modulate": lin(4, 12), "norm": nn.LayerNorm(4, elementwise_affine=False)}
    net, inputs = Small(modulated, **copy.deepcopy(parts)), (values(2, 3, 4), values(2, 1, 4))
    structure = read(net, *inputs)
    assert [join.kind for join in structure.joins] == ["identity"]
    prove(net, structure, inputs, same)


def test_a_modulation_ends_in_the_rows_of_its_gate() -> None:
    parts = {**AB, "modulate": lin(4, 12), "norm": nn.LayerNorm(4, elementwise_affine=False)}
    structure = read(Small(modulated, **copy.deepcopy(parts)), values(2, 3, 4), values(2, 1, 4))
    assert told(structure.joins[0])[1] in (("modulate.weight[8:12]",), ("b.weight",))


@pytest.mark.parametrize(
    ("equation", "shape", "matrix"),
    [
        pytest.param("...i,io->...o", (4, 6), (6, 4)),
        ("bti,ihk->bthk", (4, 2, 3), (6, 4)),
        ("bti,hik->bhtk", (2, 4, 3), (6, 4)),
        ("bti,khi", (3, 2, 4), (6, 4)),
        ("bthk,hko->bto", (2, 6, 5), (5, 12)),
        ("bthk,okh->bto", (5, 6, 2), (5, 12)),
        ("bti,io->bto", (4, 6), (6, 4)),
        ("bteh,edh->bted", (2, 4, 6), (4, 6)),
    ],
)
def test_the_weight_of_an_einsum_is_a_matrix(equation: str, shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    inputs = values(2, 3, 4) if equation.startswith(("...", "bti")) else values(2, 3, 2, 6)
    structure = read(Small(lambda m, x: torch.einsum(equation, x, m.w), w=values(*shape)), inputs)
    layout = structure.roles["w"].layout
    assert layout is not None and layout.matrix(shape) == matrix


D, H, K = 6, 2, 3  # width, heads, width of a head


def heads_by_linear(m: Any, x: Tensor) -> Tensor:
    q, k, v = (functional.linear(x, w, b).unflatten(-1, (H, K)).transpose(1, 2) for w, b in
               ((m.q, m.bq), (m.k, m.bk), (m.v, m.bv)))  # fmt: skip
    return x + functional.linear(attend(q, k, v).transpose(1, 2).flatten(2), m.o)


def heads_by_einsum(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("bsd,dhk->bhsk", x, w) + b[:, None] for w, b in
               ((m.q, m.bq), (m.k, m.bk), (m.v, m.bv)))  # fmt: skip
    return x + torch.einsum("bhsk,hkd->bsd", attend(q, k, v), m.o)


def heads_first(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("hdk,bsd->bshk", w, x) + b for w, b in ((m.q, m.bq), (m.k, m.bk), (m.v, m.bv)))
    y = torch.einsum("bhqk,bkhd->bqhd", torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1), v)
    return x + torch.einsum("dkh,bshk->bsd", m.o, y)


def heads_by_tensordot(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.tensordot(x, w, dims=([2], [0])) + b for w, b in ((m.q, m.bq), (m.k, m.bk), (m.v, m.bv)))
    y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    return x + torch.tensordot(y, m.o, dims=2)


def heads_by_reshape(m: Any, x: Tensor) -> Tensor:
    q, k, v = ((x @ w.reshape(D, H * K) + b).unflatten(-1, (H, K)) for w, b in
               ((m.q, m.bq), (m.k, m.bk), (m.v, m.bv)))  # fmt: skip
    y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    return x + y.flatten(2) @ m.o.reshape(H * K, D)


def put(weight: Tensor, axes: str) -> Tensor:
    """A matrix of a linear layer, its outputs or its inputs counted by heads, with its axes in another order."""
    own = "dhk" if axes in ("hkd", "dkh") else "hkd"
    return torch.einsum(f"{own}->{axes}", weight.unflatten("dhk".index("h") if own == "dhk" else 0, (H, K)))


@pytest.mark.parametrize(
    ("body", "made", "read_by"),
    [
        (heads_by_einsum, "dhk", "hkd"),
        (heads_first, "hdk", "dkh"),
        (heads_by_tensordot, "dhk", "hkd"),
        (heads_by_reshape, "dhk", "hkd"),
    ],
)
def test_heads_start_as_the_linear_layers_that_they_are(body: Body, made: str, read_by: str) -> None:
    """However the axes of a projection are written, it is the same map, and gets the same matrix."""
    shifts = {name: values(H * K) for name in ("bq", "bk", "bv")}
    plain = Small(heads_by_linear, **{name: values(H * K, D) for name in "qkv"}, o=values(D, H * K), **shifts)
    parts = {name: torch.randn_like(put(getattr(plain, name), made)).contiguous() for name in "qkv"}
    if body is not heads_by_reshape:
        shifts = {name: shift.view(H, K) for name, shift in shifts.items()}
    heads = Small(body, **parts, o=torch.randn_like(put(plain.o, read_by)).contiguous(), **shifts)
    x = values(2, 4, D)
    wanted = idfx.init_(plain, (x,), loosen="none").structure
    found = idfx.init_(heads, (x,), loosen="none").structure
    for name, role in wanted.roles.items():
        assert (found.roles[name].name, set(found.roles[name].traits)) == (role.name, set(role.traits)), name
    for name in ("q", "k", "v"):
        assert torch.equal(getattr(heads, name), put(getattr(plain, name), made))
    assert torch.equal(heads.o, put(plain.o, read_by))
    assert torch.allclose(heads(x), plain(x))
    prove(heads, found, (x,), same)


def test_a_weight_and_its_transpose_start_as_the_end_that_they_are() -> None:
    """At zero neither would ever learn; the matrix is the one that is used last."""
    net, x = Small(lambda m, x: x + (x @ m.w).relu() @ m.w.t(), w=values(2, 6)), values(3, 2)
    idfx.init_(net, (x,), eps=0.01)
    assert torch.equal(net.w[:, :3], torch.tensor([[0.01, 0.0, -0.01], [0.0, 0.01, 0.0]])) and net.w[1, 3] == -0.01
    net(x).square().sum().backward()
    assert net.w.grad.any()


def test_the_value_of_fused_heads_ends_in_its_rows() -> None:
    """Of (3, H, D, K), the last third makes the value."""

    def body(m: Any, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("bsd,thdk->tbhsk", x, m.w)
        return x + attend(q, k, v).transpose(1, 2).flatten(2)

    net, x = Small(body, w=values(3, H, D, K)), values(2, 4, D)
    structure = read(net, x)
    assert [told(join) for join in structure.joins] == [("identity", (f"w[{2 * H * K}:{3 * H * K}]",))]
    prove(net, structure, (x,), same)
    idfx.init_(net, (x,), loosen="none", published=True)
    assert torch.equal(net.w[0].transpose(1, 2).flatten(0, 1), torch.eye(D))
    assert net.w[2].transpose(1, 2).flatten(0, 1).sum(1).eq(0).all()


def test_rows_are_those_of_the_axis_that_counts_outputs() -> None:
    """Outputs before the last axis: a weight on the left, and an einsum that puts them there."""
    halves: list[Body] = [
        lambda m, x: x[:, :2] + (p := (m.w @ m.a(x)).chunk(2, 1))[0] * p[1].sigmoid(),
        lambda m, x: x[:, :2] + (p := torch.einsum("btd,ot->bod", m.a(x), m.w).chunk(2, 1))[0] * p[1].sigmoid(),
    ]
    for body in halves:
        net, x = Small(body, a=lin(), w=values(4, 4)), values(2, 4, 4)
        structure = read(net, x)
        assert [told(join) for join in structure.joins] == [("resampled", ("w[0:2]",))]
        prove(net, structure, (x,), lambda m, x: x[:, :2])


def test_a_chain_of_weights_in_one_einsum_is_two_layers() -> None:
    """Whatever their order among the operands."""
    for equation, order in (("bd,rd,or->bo", "xpq"), ("rd,or,bd->bo", "pqx"), ("or,bd,rd->bo", "qxp")):

        def body(m: Any, x: Tensor, equation: str = equation, order: str = order) -> Tensor:
            given = {"x": m.a(x).relu(), "p": m.p, "q": m.q}
            return x + torch.einsum(equation, *(given[name] for name in order))

        net, x = Small(body, a=lin(), p=values(2, 4), q=values(4, 2)), values(3, 4)
        structure = read(net, x)
        layouts = structure.roles["p"].layout, structure.roles["q"].layout
        assert [layout and layout.matrix(shape) for layout, shape in zip(layouts, ((2, 4), (4, 2)), strict=True)] == [
            (2, 4), (4, 2),
        ]  # fmt: skip
        assert [told(join) for join in structure.joins] == [("identity", ("q",))]
        prove(net, structure, (x,), same)


@pytest.mark.parametrize(("equation", "place"), [("bi,ij,bj->b", 1), ("ij,bi,bj->b", 0), ("bj,bi,ij->b", 2)])
def test_a_bilinear_form_is_closed_by_its_weight(equation: str, place: int) -> None:
    """Whichever operand is the parameter; it is a form of two values and no matrix from one to the other."""

    def body(m: Any, x: Tensor) -> Tensor:
        operands = [m.a(x).relu(), m.b(x).relu()]
        operands.insert(place, m.w)
        return x + torch.einsum(equation, *operands)[:, None]

    net, x = Small(body, a=lin(), b=lin(), w=values(4, 4)), values(3, 4)
    structure = read(net, x)
    assert [told(join) for join in structure.joins] == [("identity", ("w",))]
    assert structure.roles["w"].layout is None
    prove(net, structure, (x,), same)


def adjacent(m: Any, x: Tensor, adjacency: Tensor) -> Tensor:
    return adjacency @ (x @ m.w) + m.bias


def by_hand(m: Any, x: Tensor, adjacency: Tensor) -> Tensor:
    return x @ m.w + m.bias


def as_layer(m: Any, x: Tensor, adjacency: Tensor) -> Tensor:
    return functional.linear(x, m.w.t(), m.bias)


@pytest.mark.parametrize(
    "body",
    [
        adjacent,
        by_hand,
        as_layer,
    ],
)
def test_a_bias_behind_a_weight_is_a_bias(body: Body) -> None:
    structure = read(Small(body, w=values(4, 6), bias=values(6)), values(3, 4), torch.eye(3))
    assert structure.roles["bias"].name == "bias"


def test_a_sum_that_nothing_uses_steers_nothing() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        z = m.a(x).tanh()
        _ = x + m.b(z)
        return m.c(z)

    structure = read(Small(body, **copy.deepcopy(AB), c=lin()))
    assert structure.joins == () and [join.kind for join in structure.sums] != ["gate"]


def padded(x: Tensor) -> Tensor:
    """Packed by length and padded again."""
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=3)[0]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda m, x: x * torch.slogdet(m.w)[1], id="slogdet"),
        pytest.param(lambda m, x: m.a(x) * functional.mse_loss(x, m.a(x)), id="loss"),
        pytest.param(lambda m, x: padded(m.a(x)), id="packed"),
        pytest.param(
            lambda m, x: torch.sparse.mm(m.graph.to_sparse(), m.a(x[0])), id="sparse"
        ),
        pytest.param(lambda m, x: torch.add(x, m.a(x), out=torch.empty_like(x)), id="out"),
        pytest.param(lambda m, x: torch.sigmoid(m.a(x), out=torch.empty_like(x)), id="pointwise out"),
        pytest.param(lambda m, x: torch._foreach_sqrt([m.a(x).abs(), x.abs()])[0], id="foreach"),
        pytest.param(lambda m, x: x + torch.tensor(0.0, device=x.device) * m.a(x), id="constant"),
        pytest.param(
            lambda m, x: x * torch.logdet(m.w @ m.w.t() + torch.eye(4, device=x.device)), id="logdet"
        ),
    ],
)  # fmt: skip
def test_operators_that_models_use_are_known(body: Body) -> None:
    net = Small(body, a=lin(), w=values(4, 4))
    net.register_buffer("graph", torch.eye(3))
    assert read(net).unknown == ()


def test_latents_that_attend_with_shared_weights_keep_the_data() -> None:
    """Perceiver: closed in its first round as well, the shared cross-attention would let nothing of the data in."""

    def body(m: Any, x: Tensor) -> Tensor:
        latents = m.latents.expand(2, -1, -1)
        for _ in range(2):
            latents = latents + m.o(attend(m.q(latents), m.k(x), m.v(x)))
            latents = latents + m.b(m.a(latents).relu())
        return latents

    net = Small(body, latents=values(5, 4), q=lin(), k=lin(), v=lin(), o=lin(), **copy.deepcopy(AB))
    structure = read(net)
    by_end = {join.name: told(join)[1] for join in structure.joins}
    assert list(by_end.values()).count(("b.weight",)) == 2 and ("o.weight",) not in by_end.values()
    report = idfx.init_(net, (values(2, 3, 4),), eps=0.0)
    assert report.certificate is not None and report.certificate.passed and report.certificate.distinct


@pytest.mark.parametrize(
    "spread",
    [
        lambda y, w: y[:, None] * w[:, None],
        lambda y, w: torch.einsum("bd,s->bsd", y, w),
        lambda y, w: torch.einsum("s,...d->...sd", w, y),
        lambda y, w: w[:, None] @ y[:, None],
        lambda y, w: (y[..., None] @ w.view(1, -1)).mT,
        lambda y, w: functional.linear(y[..., None], w[:, None]).mT,
        lambda y, w: torch.outer(w, y.flatten()).unflatten(1, y.shape).transpose(0, 1),
    ],
)
def test_a_vector_that_writes_to_several_streams_is_a_scale_however_it_is_written(spread: Any) -> None:
    """It keeps what its author gave it, and the last weight of the branch closes the block."""

    def body(m: Any, h: Tensor) -> Tensor:
        mix = m.static.t() @ h
        return mix[:, 1:] + spread(mlp(m, mix[:, 0]), m.write)

    net, inputs = Small(body, **copy.deepcopy(AB), static=values(3, 4), write=torch.ones(3)), values(2, 3, 4)
    assert [told(join) for join in read(net, inputs).joins] == [("resampled", ("b.weight",))]
    assert idfx.init_(net, (inputs,)).certificate.passed
    assert net.write.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("join", "carried"),
    [
        (lambda x, h, t: torch.lerp(x, h, t), lambda x, t: (1 - t) * x),
        (lambda x, h, t: torch.lerp(h, x, t), lambda x, t: t * x),
        (lambda x, h, t: torch.lerp(x, h, 0.25), lambda x, t: 0.75 * x),
        (lambda x, h, t: x.clone().lerp_(h, t), lambda x, t: (1 - t) * x),
        (lambda x, h, t: torch.add(h, x, alpha=0.5), lambda x, t: 0.5 * x),
        (lambda x, h, t: torch.addcmul(x, h, t), lambda x, t: x),
        (lambda x, h, t: torch.addcdiv(x, h, 1 + t), lambda x, t: x),
        (lambda x, h, t: torch.baddbmm(x, h, x.mT @ x, beta=0.5), lambda x, t: 0.5 * x),
    ],
)
def test_the_certificate_sees_a_shortcut_that_the_call_of_the_sum_makes(join: Any, carried: Any) -> None:
    net = Small(lambda m, x: join(x, mlp(m, x), m.g(x).sigmoid()), g=lin(), **copy.deepcopy(AB))
    x = values(2, 3, 4)
    structure = read(net, x)
    report = idfx.init_(net, (x,))
    assert [check.status for check in report.certificate.checks] == ["identity"]
    t = net.g(x).sigmoid()
    assert torch.allclose(net(x), carried(x, t), atol=1e-4)
    with torch.no_grad():
        net.b.weight.fill_(0.1)
    open_ = idfx.certify(net, structure)
    away = ((net(x) - carried(x, t)).abs().max() / carried(x, t).abs().max()).item()
    assert [check.status for check in open_.checks] == ["deviates"]
    assert [check.deviation for check in open_.checks] == pytest.approx([away], rel=1e-4)


def test_the_gate_of_an_added_highway_acts_outside_of_its_branch() -> None:
    """Without the branch, (1 − t) · x still depends on the gate, which the checkpoint does not have."""
    net = Small(lambda m, x: torch.lerp(y := m.old(x), mlp(m, y), m.g(y).sigmoid()), old=lin(), g=lin(), **AB)
    report = idfx.init_(net, (values(2, 3, 4),), checkpoint={f"old.{name}": p for name, p in lin().named_parameters()})
    growth = report.certificate.growth
    assert growth.blocks == growth.altered == (report.structure.joins[0].name,)
    assert growth.fresh == ("g.bias", "g.weight")
