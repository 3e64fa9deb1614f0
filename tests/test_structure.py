"""Joins, ends, roles: against what other libraries zero by themselves, against counts of blocks, case by case."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import timm.layers
import torch
import torchvision
from small_models import Small, conv, ends, lin, only, read, starts_as_shortcuts, values
from torch import nn
from torch.nn import functional

import idfx
from idfx.analysis import dataflow
from idfx.analysis.paths import Paths
from idfx.analysis.rows import Exclusive
from idfx.capture.tracing import capture
from idfx.core.records import End, Example, Layout
from idfx.ops.semantics import OPERATORS, OpSemantics


def zeros(model: nn.Module) -> set[str]:
    """Parameters that are no biases and that the library itself has made zero."""
    return {n for n, p in model.named_parameters() if not n.endswith("bias") and p.numel() and not p.detach().any()}


def constants(model: nn.Module, value: float) -> set[str]:
    return {n for n, p in model.named_parameters() if p.dim() <= 3 and bool((p.detach() == value).all())}


# What other libraries zero


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "seresnet18", "regnety_004", "resnext26ts"])
def test_timm_zero_init_last_names_the_same_scales(name: str) -> None:
    zeroed = zeros(timm.create_model(name, zero_init_last=True)) - zeros(timm.create_model(name, zero_init_last=False))
    model = timm.create_model(name, zero_init_last=True)
    structure = read(model, values(1, 3, 64, 64))
    assert zeroed and all(join.zeroable for join in structure.joins)
    assert sorted(scale for join in structure.joins for scale in join.scales) == sorted(zeroed)
    assert all(len(join.scales) == 1 for join in structure.joins)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_zero_init_residual_names_the_same_scales(name: str) -> None:
    model = torchvision.models.get_model(name, zero_init_residual=True)
    structure = read(model, values(1, 3, 64, 64))
    assert sorted(scale for join in structure.joins for scale in join.scales) == sorted(zeros(model))
    assert len(zeros(model)) == len(structure.joins)


def test_swinv2_zeroes_the_norm_behind_each_branch() -> None:
    """Res-post-norm: timm itself starts these norm scales at zero."""
    model = timm.create_model("swinv2_cr_tiny_ns_224", img_size=64, window_size=2, depths=(1, 1, 1, 1))
    plain = timm.create_model(
        "swinv2_tiny_window8_256", img_size=64, window_size=4, depths=(2, 2, 1, 1), embed_dim=24, num_heads=(1, 2, 3, 4)
    )
    for net in (plain, model):
        structure = read(net, values(1, 3, 64, 64))
        normed = {end for join in structure.joins for end in ends(join)}
        assert normed == zeros(net)
        assert all(join.zeroable and len(join.ends) == 1 for join in structure.joins)
        assert all(structure.roles[name].name == "end scale" for name in normed)


@pytest.mark.parametrize("name", ["nf_regnet_b0", "nf_resnet26", "nfnet_f0"])
def test_nfnets_zero_the_gain_of_the_last_weight(name: str) -> None:
    """timm itself starts the gains of these standardised weights at zero."""
    model = timm.create_model(name)
    structure = read(model, values(1, 3, 64, 64))
    zeroed = {parameter for parameter in zeros(model) if parameter.endswith("gain")}
    assert zeroed and all(join.zeroable for join in structure.joins)
    assert all(sum(parameter in zeroed for parameter in (*ends(j), *j.scales)) == 1 for j in structure.joins)
    assert {parameter for j in structure.joins for parameter in (*ends(j), *j.scales)} >= zeroed


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("convnext_atto", {"ls_init_value": 0.125}, 0.125),
        ("convnextv2_atto", {"ls_init_value": 0.125, "use_grn": False}, 0.125),
        ("vit_tiny_patch16_224", {"init_values": 0.125, "depth": 2, "img_size": 32}, 0.125),
        ("cait_xxs24_224", {"init_values": 0.125, "depth": 2, "img_size": 64}, 0.125),
        ("poolformer_s12", {}, 1e-5),
    ],
)
def test_layer_scales_stand_behind_each_branch(name: str, options: dict[str, Any], value: float) -> None:
    model = timm.create_model(name, **options)
    size = options.get("img_size", 64)
    structure = read(model, values(1, 3, size, size))
    # The first class attention of CaiT adds to a token that depends on no input: no sum of two data nodes.
    scales = constants(model, value) - {"blocks_token_only.0.gamma_1"}
    assert scales and all(join.zeroable for join in structure.joins)
    passed = [({*(end.parameter for end in join.ends), *join.scales} & scales) for join in structure.joins]
    assert all(len(names) == 1 for names in passed)
    assert sorted(name for names in passed for name in names) == sorted(scales)


# Counts of blocks


@pytest.mark.parametrize(
    ("name", "blocks", "size"),
    [
        ("resnet18", 8, 64),
        ("resnet50", 16, 64),
        ("resnetv2_50", 16, 64),
        ("regnety_004", 16, 64),
        ("efficientnet_b0", 9, 64),
        ("convnext_tiny", 18, 64),
        ("vit_base_patch16_224", 24, 224),
        ("deit_tiny_patch16_224", 24, 224),
        ("swin_tiny_patch4_window7_224", 24, 224),
        ("mixer_b16_224", 24, 224),
        ("vgg11", 0, 32),
        ("densenet121", 0, 64),
    ],
)
def test_every_block_is_found_and_can_be_silenced(name: str, blocks: int, size: int) -> None:
    model = timm.create_model(name)
    structure = read(model, values(1, 3, size, size))
    assert len(structure.joins) == blocks
    assert all(join.zeroable for join in structure.joins)
    assert structure.unknown == ()


@pytest.mark.parametrize(("name", "blocks"), [("vit_b_16", 24), ("convnext_tiny", 18), ("resnet50", 16)])
def test_every_block_of_torchvision_is_found(name: str, blocks: int) -> None:
    model = torchvision.models.get_model(name)
    structure = read(model, values(1, 3, 224, 224))
    assert [join.zeroable for join in structure.joins] == [True] * blocks


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v2", "efficientnet_b0"])
def test_torchvision_says_which_inverted_residuals_add_their_input(name: str) -> None:
    model = torchvision.models.get_model(name)
    adding = [path for path, module in model.named_modules() if getattr(module, "use_res_connect", False)]
    structure = read(model, values(1, 3, 64, 64))
    assert [join.module for join in structure.joins] == adding
    assert all(join.zeroable and join.kind == "identity" for join in structure.joins)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_050"])
def test_timm_says_which_inverted_residuals_add_their_input(name: str) -> None:
    model = timm.create_model(name)
    adding = [path for path, module in model.named_modules() if getattr(module, "has_skip", False)]
    structure = read(model, values(1, 3, 64, 64))
    assert [join.module for join in structure.joins] == adding


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnetv2_50"])
def test_projections_are_the_blocks_with_a_downsample(name: str) -> None:
    model = timm.create_model(name)
    projecting = [path for path, m in model.named_modules() if getattr(m, "downsample", None) is not None]
    structure = read(model, values(1, 3, 64, 64))
    found = [join.module for join in structure.joins if join.kind == "projection"]
    assert found == projecting
    for join in structure.joins:
        assert bool(join.shortcut) == (join.kind == "projection")
        assert all(structure.roles[name].name == "projection shortcut" for name in join.shortcut)


# Shortcuts


def test_an_identity_shortcut() -> None:
    net = Small(lambda m, x: x + m.b(m.a(x).relu()), a=lin(), b=lin())
    join = only(read(net))
    assert (join.kind, ends(join), join.zeroed_biases, join.exclusive) == ("identity", ["b.weight"], ("b.bias",), True)
    assert (join.branch, join.shortcut) == (("a.weight", "b.weight"), ())
    starts_as_shortcuts(net)


def test_a_projection_shortcut() -> None:
    net = Small(lambda m, x: m.p(x) + m.b(m.a(x).relu()), a=lin(), b=lin(4, 6), p=lin(4, 6))
    structure = read(net)
    join = only(structure)
    assert (join.kind, ends(join), join.shortcut) == ("projection", ["b.weight"], ("p.weight",))
    assert structure.roles["p.weight"].name == "projection shortcut"
    starts_as_shortcuts(net)


def test_a_padded_shortcut() -> None:
    net = Small(lambda m, x: functional.pad(x, (0, 2)) + m.b(m.a(x).relu()), a=lin(), b=lin(4, 6))
    join = only(read(net))
    assert (join.kind, ends(join)) == ("resampled", ["b.weight"])
    starts_as_shortcuts(net)


@pytest.mark.parametrize("pool", [functional.avg_pool2d, functional.max_pool2d])
def test_a_pooled_shortcut(pool: Any) -> None:
    x = values(2, 4, 8, 8)
    net = Small(lambda m, x: pool(x, 2) + m.b(m.a(x).relu()), a=conv(stride=2), b=conv())
    join = only(read(net, x))
    assert (join.kind, ends(join), join.zeroable) == ("resampled", ["b.weight"], True)
    starts_as_shortcuts(net, x)


def test_a_strided_shortcut() -> None:
    x = values(2, 4, 8, 8)
    net = Small(lambda m, x: x[:, :, ::2, ::2] + m.b(m.a(x).relu()), a=conv(stride=2), b=conv())
    join = only(read(net, x))
    assert (join.kind, ends(join)) == ("resampled", ["b.weight"])


@pytest.mark.parametrize("form", ["number", "parameter", "division"])
def test_a_scaled_shortcut(form: str) -> None:
    scaled = {
        "number": lambda m, x: x * 0.5,
        "parameter": lambda m, x: x * m.gain,
        "division": lambda m, x: x / 2,
    }[form]
    net = Small(lambda m, x: scaled(m, x) + m.b(m.a(x).relu()), a=lin(), b=lin(), gain=values(4))
    join = only(read(net))
    assert (join.kind, ends(join), join.zeroable) == ("scaled", ["b.weight"], True)


def test_a_sum_written_as_a_subtraction() -> None:
    join = only(read(Small(lambda m, x: torch.sub(m.b(m.a(x).relu()), x, alpha=-1), a=lin(), b=lin())))
    assert (join.kind, ends(join)) == ("identity", ["b.weight"])


def test_a_sum_that_is_scaled_afterwards() -> None:
    net = Small(lambda m, x: (x + m.b(m.a(x).relu())) * 0.7071, a=lin(), b=lin())
    join = only(read(net))
    assert (join.kind, ends(join)) == ("identity", ["b.weight"])


# Ends


@pytest.mark.parametrize("order", ["γ·f", "f·γ", "drop path between", "addcmul", "alpha"])
def test_a_scale_parameter_behind_the_end(order: str) -> None:
    bodies: dict[str, Callable[..., Any]] = {
        "γ·f": lambda m, x: x + m.gamma * m.b(m.a(x).relu()),
        "f·γ": lambda m, x: m.b(m.a(x).relu()) * m.gamma + x,
        "drop path between": lambda m, x: x + m.drop(m.gamma * m.b(m.a(x).relu())),
        "addcmul": lambda m, x: torch.addcmul(x, m.gamma, m.b(m.a(x).relu())),
        "alpha": lambda m, x: torch.add(x, m.gamma * m.b(m.a(x).relu()), alpha=0.5),
    }
    net = Small(bodies[order], a=lin(), b=lin(), gamma=values(4), drop=timm.layers.DropPath(0.3)).train()
    structure = read(net)
    join = only(structure)
    assert (ends(join), join.scales, join.zeroed_biases, join.zeroable) == (["b.weight"], ("gamma",), ("b.bias",), True)
    assert structure.roles["gamma"].name == "branch scale"
    starts_as_shortcuts(net)


def test_post_norm_leaves_the_end_before_the_sum() -> None:
    net = Small(lambda m, x: m.norm(x + m.b(m.a(x).relu())), a=lin(), b=lin(), norm=nn.LayerNorm(4))
    join = only(read(net))
    assert (join.kind, ends(join), join.scales) == ("identity", ["b.weight"], ())
    starts_as_shortcuts(net)


def test_res_post_norm_puts_the_zero_into_the_norm_scale() -> None:
    net = Small(lambda m, x: x + m.norm(m.b(m.a(x).relu())), a=lin(), b=lin(), norm=nn.LayerNorm(4))
    structure = read(net)
    join = only(structure)
    assert (ends(join), join.zeroed_biases) == (["norm.weight"], ("norm.bias",))
    assert structure.roles["norm.weight"].name == "end scale"
    assert structure.roles["b.weight"].name == "inner"
    starts_as_shortcuts(net)


def test_running_statistics_are_a_fixed_scale() -> None:
    x = values(2, 4, 6, 6)
    net = Small(lambda m, x: x + m.norm(m.b(m.a(x).relu())), a=conv(), b=conv(bias=False), norm=nn.BatchNorm2d(4))
    join = only(read(net, x))
    assert (ends(join), join.scales, join.zeroed_biases) == (["b.weight"], ("norm.weight",), ("norm.bias",))
    starts_as_shortcuts(net, x)


def test_a_standardised_weight_has_its_zero_in_the_gain() -> None:
    x = values(2, 4, 6, 6)
    net = Small(
        lambda m, x: x + m.b(m.a(x).relu()), a=conv(), b=timm.layers.ScaledStdConv2d(4, 4, 3, padding=1, bias=False)
    )
    structure = read(net, x)
    join = only(structure)
    assert (ends(join), join.zeroable) == (["b.gain"], True)
    starts_as_shortcuts(net, x)


@pytest.mark.parametrize("form", ["parametrisation", "hook"])
def test_a_normalised_weight_has_its_zero_in_the_length(form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apply = nn.utils.parametrizations.weight_norm if form == "parametrisation" else nn.utils.weight_norm
        net = Small(lambda m, x: x + m.b(m.a(x).relu()), a=lin(), b=apply(lin()))
    length = "b.parametrizations.weight.original0" if form == "parametrisation" else "b.weight_g"
    join = only(read(net))
    assert (ends(join), join.zeroed_biases, join.zeroable) == ([length], ("b.bias",), True)


def test_a_gated_value_path_ends_in_the_value() -> None:
    glu = Small(lambda m, x: x + m.v(x) * m.g(x).sigmoid(), v=lin(), g=lin())
    assert ends(only(read(glu))) == ["v.weight"]
    starts_as_shortcuts(glu)
    fused = Small(lambda m, x: x + functional.glu(m.both(x)), both=lin(4, 8))
    assert only(read(fused)).ends == (End("both.weight", ((0, 4),)),)
    starts_as_shortcuts(fused)
    excite = Small(
        lambda m, x: x + (y := m.b(m.a(x).relu())) * m.e(m.s(y.mean((2, 3), keepdim=True)).relu()).sigmoid(),
        a=conv(), b=conv(), s=conv(4, 2, 1), e=conv(2, 4, 1),
    )  # fmt: skip
    assert ends(only(read(excite, values(2, 4, 6, 6)))) == ["b.weight"]


def test_which_rows_end_a_gated_branch_depends_on_the_factor_that_is_silenced() -> None:
    """Both factors are rows of one weight; whichever is silenced, the other half only steers."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        value, gate = m.fc(x).chunk(2, -1)
        return x + value * gate

    flow = dataflow.read(capture(Small(body, fc=nn.Linear(4, 8)), Example((torch.ones(2, 4),))))
    kinds = {term.kind: position for position, term in enumerate(flow.terms)}
    product, rows = kinds["product"], Exclusive(flow, Paths(flow)).rows
    value, gate = flow.terms[product].operands
    assert rows(kinds["contract"], kinds["sum"], {product: value}) == ((0, 4),)
    assert rows(kinds["contract"], kinds["sum"], {product: gate}) == ((4, 8),)


def test_a_star_product_needs_one_of_its_factors() -> None:
    net = Small(lambda m, x: x + m.a(x) * m.b(x), a=lin(), b=lin())
    join = only(read(net))
    assert ends(join) in (["a.weight"], ["b.weight"]) and join.zeroable


@pytest.mark.parametrize("fused", [True, False])
def test_attention_ends_in_its_output_or_else_in_its_value(fused: bool) -> None:
    def mix(q: Any, k: Any, v: Any) -> Any:
        if fused:
            return functional.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    bare = Small(lambda m, x: x + mix(m.q(x), m.k(x), m.v(x)), q=lin(), k=lin(), v=lin())
    assert ends(only(read(bare))) == ["v.weight"]
    whole = Small(lambda m, x: x + m.o(mix(m.q(x), m.k(x), m.v(x))), q=lin(), k=lin(), v=lin(), o=lin())
    assert ends(only(read(whole))) == ["o.weight"]


def test_multihead_attention_ends_in_its_output_projection() -> None:
    net = Small(lambda m, x: x + m.attention(x, x, x)[0], attention=nn.MultiheadAttention(4, 2, batch_first=True))
    structure = read(net)
    join = only(structure)
    assert (ends(join), join.zeroed_biases) == (["attention.out_proj.weight"], ("attention.out_proj.bias",))
    assert structure.roles["attention.in_proj_weight"].name == "inner"
    starts_as_shortcuts(net)


def test_transposed_weights_keep_their_axes() -> None:
    """GPT-2's Conv1D: addmm with a weight (in, out)."""
    net = Small(
        lambda m, x: x + torch.addmm(m.bias, m.a(x).relu().view(-1, 6), m.weight).view(x.shape),
        a=lin(4, 6), weight=values(6, 4), bias=values(4),
    )  # fmt: skip
    structure = read(net)
    join = only(structure)
    assert (ends(join), join.zeroed_biases) == (["weight"], ("bias",))
    layout = structure.roles["weight"].layout
    assert layout == Layout(out_axis=1, in_axis=0) and layout.matrix((6, 4)) == (4, 6)
    starts_as_shortcuts(net)


@pytest.mark.parametrize(
    ("body", "shape", "matrix"),
    [
        (lambda m, x: x + torch.einsum("bti,io->bto", m.a(x).relu(), m.w), (6, 4), (4, 6)),
        (lambda m, x: x + torch.einsum("oi,bti->bto", m.w, m.a(x).relu()), (4, 6), (4, 6)),
        (lambda m, x: x + m.a(x).relu() @ m.w, (6, 4), (4, 6)),
        (lambda m, x: x + m.a(x).relu() @ m.w.t(), (4, 6), (4, 6)),
        (lambda m, x: x + (m.w @ m.a(x).relu().transpose(1, 2)).transpose(1, 2), (4, 6), (4, 6)),
        (lambda m, x: x + functional.linear(m.a(x).relu(), m.w.transpose(0, 1)), (6, 4), (4, 6)),
    ],
)
def test_a_bare_weight_is_a_weight(body: Any, shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    net = Small(body, a=lin(4, 6), w=values(*shape))
    structure = read(net)
    assert ends(only(structure)) == ["w"]
    layout = structure.roles["w"].layout
    assert layout is not None and layout.matrix(shape) == matrix
    starts_as_shortcuts(net)


def test_a_recurrent_layer_ends_no_branch_unless_a_linear_follows() -> None:
    bare = Small(lambda m, x: x + m.rnn(x)[0], rnn=nn.LSTM(4, 4, batch_first=True))
    assert not only(read(bare)).zeroable
    closed = Small(lambda m, x: x + m.out(m.rnn(x)[0]), rnn=nn.GRU(4, 5, batch_first=True), out=lin(5, 4))
    join = only(read(closed))
    assert (ends(join), join.zeroable) == (["out.weight"], True)
    starts_as_shortcuts(closed)


def test_a_function_that_is_not_zero_at_zero_ends_no_branch() -> None:
    in_place = functools.partial(functional.hardsigmoid, inplace=True)
    for function in (torch.sigmoid, torch.cos, torch.exp, functional.softplus, lambda x: x.softmax(-1), in_place):
        join = only(read(Small(lambda m, x, f=function: x + f(m.a(x)), a=lin())))
        assert not join.zeroable and not join.ends and join.reason


@pytest.mark.parametrize(
    "function",
    [torch.tanh, torch.sin, functional.gelu, functional.silu, functional.hardswish, functional.mish, functional.elu,
     functional.leaky_relu, torch.abs, torch.square, functional.softsign, lambda x: x.clamp(0, 6),
     functional.hardtanh, lambda x: x * torch.sigmoid(1.702 * x), lambda x: x.relu() ** 2,
     *(lambda x, f=f: f(x, inplace=True) for f in (functional.leaky_relu, functional.elu, functional.celu,
                                                   functional.selu, functional.hardtanh)),
     lambda x: torch.ldexp(x, torch.tensor(0))],
)  # fmt: skip
def test_a_function_that_is_zero_at_zero_passes_the_end_on(function: Any) -> None:
    net = Small(lambda m, x: x + function(m.a(x)), a=lin())
    assert ends(only(read(net))) == ["a.weight"]
    starts_as_shortcuts(net)


# Several operands, several branches


def test_parallel_attention_and_mlp_are_two_joins() -> None:
    def body(m: Any, x: Any) -> Any:
        y = m.norm(x)
        return x + m.o(functional.scaled_dot_product_attention(m.q(y), m.q(y), m.v(y))) + m.b(m.a(y).relu())

    net = Small(body, norm=nn.LayerNorm(4), q=lin(), v=lin(), o=lin(), a=lin(), b=lin())
    assert [ends(join) for join in read(net).joins] == [["o.weight"], ["b.weight"]]
    starts_as_shortcuts(net)


def test_branches_added_first_end_together() -> None:
    net = Small(lambda m, x: (m.b(m.a(x).relu()) + m.d(m.c(x).tanh())) + x, a=lin(), b=lin(), c=lin(), d=lin())
    assert sorted(ends(only(read(net)))) == ["b.weight", "d.weight"]
    starts_as_shortcuts(net)


def test_a_sum_of_a_stack_is_a_sum() -> None:
    net = Small(
        lambda m, x: x + torch.stack([m.b(m.a(x).relu()), m.d(m.c(x).relu())]).sum(0),
        a=lin(),
        b=lin(),
        c=lin(),
        d=lin(),
    )
    assert sorted(ends(only(read(net)))) == ["b.weight", "d.weight"]
    starts_as_shortcuts(net)


def test_the_branches_of_repvgg() -> None:
    """Kernels of equal length are a parallel sum; the normalised identity beside them is their shortcut."""
    x = values(2, 4, 6, 6)
    net = Small(
        lambda m, x: (m.n1(m.one(x)) + m.n3(m.three(x)) + m.n0(x)).relu(),
        one=conv(kernel=1, bias=False), three=conv(bias=False),
        n0=nn.BatchNorm2d(4), n1=nn.BatchNorm2d(4), n3=nn.BatchNorm2d(4),
    )  # fmt: skip
    structure = read(net, x)
    join = only(structure)
    assert (join.kind, sorted(ends(join))) == ("scaled", ["one.weight", "three.weight"])
    assert [found.kind for found in structure.sums] == ["parallel"]
    starts_as_shortcuts(net, x)


def test_a_pooled_difference_ends_in_its_scale() -> None:
    """PoolFormer: x + γ·(pool(x) − x) has no weight in its branch."""
    x = values(2, 4, 6, 6)
    net = Small(
        lambda m, x: x + m.gamma.view(1, -1, 1, 1) * (functional.avg_pool2d(x, 3, 1, 1) - x), gamma=torch.ones(4)
    )
    structure = read(net, x)
    join = only(structure)
    assert (join.kind, ends(join), join.zeroable) == ("identity", ["gamma"], True)
    starts_as_shortcuts(net, x)


def test_a_pooling_branch_without_any_parameter_is_a_join_that_stays_open() -> None:
    x = values(2, 4, 6, 6)
    join = only(read(Small(lambda m, x: x + functional.avg_pool2d(x, 3, 1, 1).relu(), unused=lin()), x))
    assert (join.kind, join.ends, join.zeroable) == ("identity", (), False)


def test_blocks_nest() -> None:
    def body(m: Any, x: Any) -> Any:
        y = m.a(x).relu()
        return x + m.d(y + m.c(m.b(y).relu()))

    net = Small(body, a=lin(), b=lin(), c=lin(), d=lin())
    inner, outer = read(net).joins
    assert (ends(inner), ends(outer)) == (["c.weight"], ["d.weight"])
    assert (inner.parent, outer.parent) == (outer.name, None)
    starts_as_shortcuts(net)


def test_an_hourglass_adds_its_input() -> None:
    x = values(2, 4, 8, 8)
    net = Small(
        lambda m, x: x + m.up(functional.interpolate(m.down(functional.max_pool2d(x, 2)).relu(), scale_factor=2)),
        down=conv(), up=conv(),
    )  # fmt: skip
    join = only(read(net, x))
    assert (join.kind, ends(join), join.zeroable) == ("identity", ["up.weight"], True)
    starts_as_shortcuts(net, x)


def test_a_pyramid_that_fuses_resolutions_has_no_residual_joins() -> None:
    def body(m: Any, x: Any) -> Any:
        fine = m.stem(x).relu()
        coarse = m.down(fine).relu()
        top = m.top(coarse)
        return m.lateral(fine) + functional.interpolate(top, scale_factor=2), top

    net = Small(body, stem=conv(), down=conv(stride=2), top=conv(kernel=1), lateral=conv(kernel=1))
    structure = read(net, values(2, 4, 8, 8))
    assert structure.joins == () and [found.kind for found in structure.sums] == ["fusion"]


def test_concatenation_is_no_join() -> None:
    net = Small(lambda m, x: m.b(torch.cat((x, m.a(x).relu()), -1)), a=lin(), b=lin(8, 4))
    structure = read(net)
    assert structure.joins == () and structure.sums == ()


def test_a_shared_module_makes_one_end_for_two_joins() -> None:
    block = Small(lambda m, x: x + m.b(m.a(x).relu()), a=lin(), b=lin())
    net = Small(lambda m, x: m.block(m.block(x).tanh()), block=block)
    joins = read(net).joins
    assert [ends(join) for join in joins] == [["block.b.weight"]] * 2
    assert all(join.zeroable for join in joins) and len({join.name for join in joins}) == 2
    starts_as_shortcuts(net)


# Slices


def sliced_in_place(m: Any, x: Any) -> Any:
    y = m.b(m.a(x).relu())
    y[..., :4] += x
    return y


def sliced_and_joined(m: Any, x: Any) -> Any:
    y = m.b(m.a(x).relu())
    return torch.cat((y[..., :4] + x, y[..., 4:]), -1)


@pytest.mark.parametrize("body", [sliced_in_place, sliced_and_joined])
def test_a_shortcut_for_part_of_the_channels_never_silences_the_rest(body: Any) -> None:
    """RexNet: of the six outputs of b, four have a shortcut; the other two go on alone."""
    net = Small(body, a=lin(), b=lin(4, 6))
    join = only(read(net))
    assert (join.kind, join.ends, join.zeroable) == ("identity", (End("b.weight", ((0, 4),)),), True)


def scanned(m: Any, x: Any) -> Any:
    """Mamba-2: one depthwise kernel makes the value v and what it is multiplied by; d · v passes the scan."""
    v, b, c = m.conv(x).chunk(3, 1)
    return m.out(((v * b).cumsum(2) * c + v * m.d).transpose(1, 2))


@pytest.mark.parametrize("scheme", ["idinit", "idfx"])
def test_rows_that_make_the_shortcut_do_not_end_the_branch(scheme: str) -> None:
    """Closing v would close d · v with it; b closes the scan alone, and no other row of the kernel is written."""
    net = Small(scanned, conv=nn.Conv1d(12, 12, 3, padding=1, groups=12), out=lin(), d=torch.ones(4, 1))
    before = net.conv.weight.detach().clone()
    assert only(read(net, values(2, 12, 5))).ends == (End("conv.weight", ((4, 8),)),)
    report = idfx.init_(net, (values(2, 12, 5),), scheme=scheme)
    assert report.certificate is not None and report.certificate.certified == 1
    after = net.conv.weight.detach()
    assert torch.equal(after[:4], before[:4]) and torch.equal(after[8:], before[8:])
    assert 0 < float(after[4:8].abs().max()) <= 1e-6


@pytest.mark.parametrize("rest", ["kept", "dropped"])
def test_a_shortcut_from_part_of_the_channels(rest: str) -> None:
    net = Small(lambda m, x: x[..., :3] + m.b(m.a(x).relu()), a=lin(), b=lin(4, 3))
    if rest == "kept":
        net = Small(lambda m, x: torch.cat((x[..., :3] + m.b(m.a(x).relu()), x[..., 3:]), -1), a=lin(), b=lin(4, 3))
    join = only(read(net))
    assert (join.kind, ends(join), join.zeroable) == ("resampled", ["b.weight"], True)


# Not to be zeroed


def test_an_end_that_reaches_the_outputs_by_another_way_is_not_zeroed() -> None:
    def body(m: Any, x: Any) -> Any:
        y = m.b(m.a(x).relu())
        return x + y, y.tanh()

    join = only(read(Small(body, a=lin(), b=lin())))
    assert not join.exclusive and not join.zeroable and "b.weight" in join.reason


def test_an_end_used_in_the_next_branch_too_is_not_zeroed() -> None:
    """Cascaded groups: what the first branch gives is added to its own input and to that of the next."""

    def body(m: Any, x: Any) -> Any:
        y = m.b(m.a(x).relu())
        return torch.cat((x + y, m.c(y).relu()), -1)

    structure = read(Small(body, a=lin(), b=lin(), c=lin()))
    assert not structure.joins[0].zeroable and structure.roles["b.weight"].name != "end"


def test_a_frozen_end_is_not_zeroed() -> None:
    net = Small(lambda m, x: x + m.b(m.a(x).relu()), a=lin(), b=lin())
    net.b.weight.requires_grad_(False)
    join = only(read(net))
    assert not join.zeroable and "b.weight" in join.reason and "frozen" in join.reason


def test_an_end_that_is_elsewhere_no_end_is_not_zeroed_and_both_places_are_named() -> None:
    block = Small(lambda m, x: x + m.b(m.a(x).relu()), a=lin(), b=lin())
    head = Small(lambda m, x: m.fc(x), fc=lin())
    head.fc.weight = block.b.weight
    structure = read(Small(lambda m, x: m.head(m.block(x)), block=block, head=head))
    join = only(structure)
    assert not join.zeroable
    assert "block.b.weight" in join.reason and "head.fc" in join.reason
    assert structure.roles["block.b.weight"].name not in ("end", "end scale")


def test_tied_weights_are_one_parameter() -> None:
    net = Small(
        lambda m, ids: m.head((y := m.table(ids)) + m.b(m.a(y).relu())), table=nn.Embedding(7, 4), a=lin(), b=lin(),
        head=lin(4, 7, bias=False),
    )  # fmt: skip
    net.head.weight = net.table.weight
    structure = read(net, torch.tensor([[1, 2, 3]]))
    assert ends(only(structure)) == ["b.weight"]
    assert structure.parameters["table.weight"].aliases == ("head.weight",)
    assert "head.weight" not in structure.roles and structure.roles["table.weight"].name == "embedding"
    plan = idfx.plan(structure)
    assert "head.weight" not in {*plan.decisions, *plan.kept}


# Sums that are none of features


def test_rotary_embedding_is_no_join() -> None:
    def turn(x: Any) -> Any:
        angle = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None]
        first, second = x.chunk(2, -1)
        return x * angle.cos() + torch.cat((-second, first), -1) * angle.sin()

    net = Small(
        lambda m, x: x + m.o(functional.scaled_dot_product_attention(turn(m.q(x)), turn(m.k(x)), m.v(x))),
        q=lin(), k=lin(), v=lin(), o=lin(),
    )  # fmt: skip
    structure = read(net)
    assert ends(only(structure)) == ["o.weight"] and len(structure.sums) == 2


def test_the_cubic_inside_gelu_is_no_join() -> None:
    def gelu_new(x: Any) -> Any:
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))

    net = Small(lambda m, x: x + m.b(gelu_new(m.a(x))), a=lin(), b=lin())
    structure = read(net)
    assert ends(only(structure)) == ["b.weight"] and len(structure.sums) == 1


def test_integer_positions_are_no_sum_of_features() -> None:
    def body(m: Any, ids: Any, mask: Any) -> Any:
        positions = mask.cumsum(1) * mask + ids * 0
        x = m.table(ids) + m.place(positions)
        return x + m.b(m.a(x).relu())

    net = Small(body, table=nn.Embedding(9, 4), place=nn.Embedding(9, 4), a=lin(), b=lin())
    structure = read(net, torch.tensor([[1, 2, 3]]), torch.tensor([[1, 1, 1]]))
    join = only(structure)
    assert (join.kind, ends(join)) == ("identity", ["b.weight"])
    assert {structure.roles[name].name for name in ("table.weight", "place.weight")} == {"embedding"}


def test_the_mask_of_an_attention_is_no_join() -> None:
    def body(m: Any, x: Any, mask: Any) -> Any:
        scores = m.q(x) @ m.k(x).transpose(1, 2) + (1.0 - mask)[:, None, :] * -1e4 + m.bias
        return x + m.o(scores.softmax(-1) @ m.v(x))

    net = Small(body, q=lin(), k=lin(), v=lin(), o=lin(), bias=values(3, 3))
    assert ends(only(read(net, values(2, 3, 4), torch.ones(2, 3)))) == ["o.weight"]


def one_plus(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + weight)


def test_one_plus_weight_norms_are_no_join_and_start_at_one_or_end_a_branch() -> None:
    """Gemma: the norm multiplies by 1 + w, so that w = 0 is the identity, and w = −1 closes the branch before it."""
    before = Small(lambda m, x: x + m.b(m.a(one_plus(x, m.w)).relu()), a=lin(), b=lin(), w=torch.zeros(4))
    behind = Small(lambda m, x: x + one_plus(m.b(m.a(x).relu()), m.w), a=lin(), b=lin(), w=torch.zeros(4))
    for net, end, value in ((before, "b.weight", 0.0), (behind, "w", 1e-6 - 1)):
        structure = read(net)
        assert ends(only(structure)) == [end]
        decision = idfx.plan(structure).decisions.get("w")
        assert (decision is None and value == 0) or (decision is not None and decision.arguments == {"value": value})
        starts_as_shortcuts(net)


@pytest.mark.parametrize("layers", ["one", "two"])
def test_modulation_by_a_condition_is_no_join(layers: str) -> None:
    """FiLM, adaLN: f(x)·(1 + g(c)) + h(c) is the main stem, and silencing f would lose x."""

    def body(m: Any, x: Any, c: Any) -> Any:
        factor, shift = m.both(c).chunk(2, -1) if layers == "one" else (m.g(c), m.h(c))
        return m.out((m.f(x) * (1 + factor) + shift).relu())

    net = Small(body, f=lin(), g=lin(), h=lin(), both=lin(4, 8), out=lin())
    structure = read(net, values(2, 3, 4), values(2, 1, 4))
    assert structure.joins == ()
    assert structure.roles["f.weight"].name == "input stem"


def test_cross_attention_joins_its_own_stream() -> None:
    net = Small(
        lambda m, x, c: x + m.o(functional.scaled_dot_product_attention(m.q(x), m.k(c), m.v(c))),
        q=lin(), k=lin(), v=lin(), o=lin(),
    )  # fmt: skip
    join = only(read(net, values(2, 3, 4), values(2, 5, 4)))
    assert (join.kind, ends(join), join.zeroable) == ("identity", ["o.weight"], True)


@pytest.mark.parametrize(
    "order",
    [
        "mlp first",
        "cross attention first",
    ],
)
def test_parallel_cross_attention_and_mlp_are_two_joins(order: str) -> None:
    def body(m: Any, x: Any, c: Any) -> Any:
        crossed = m.o(functional.scaled_dot_product_attention(m.q(x), m.k(c), m.v(c)))
        inner = m.b(m.a(x).relu())
        return x + inner + crossed if order == "mlp first" else x + crossed + inner

    net = Small(body, q=lin(), k=lin(), v=lin(), o=lin(), a=lin(), b=lin())
    joins = read(net, values(2, 3, 4), values(2, 5, 4)).joins
    assert sorted(ends(join) for join in joins) == [["b.weight"], ["o.weight"]]


# Operators that nobody knows


@pytest.fixture(scope="module")
def mystery() -> Any:
    @torch.library.custom_op("idfx_tests::mystery", mutates_args=())
    def operator(x: torch.Tensor) -> torch.Tensor:
        return x.tanh()

    @operator.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    return operator


@pytest.fixture
def taught(mystery: Any) -> Iterator[None]:
    @idfx.operator("idfx_tests.mystery")
    def meaning(x: Any) -> OpSemantics:
        """A nonlinear function that takes zero to zero."""
        return OpSemantics("map", (x,))

    yield
    OPERATORS._items.pop("idfx_tests.mystery")


def test_an_unknown_operator_is_listed_with_its_module_and_nothing_is_concluded_across_it(mystery: Any) -> None:
    block = Small(lambda m, x: x + mystery(m.b(m.a(x).relu())), a=lin(), b=lin())
    structure = read(Small(lambda m, x: m.block(x), block=block))
    (unknown,) = structure.unknown
    assert (unknown.operator, unknown.sites) == ("idfx_tests.mystery", ("block",))
    join = only(structure)
    assert not join.zeroable and join.ends == () and "mystery" in join.reason
    assert structure.roles["block.b.weight"].name == "inner"


def test_an_unknown_operator_before_the_end_is_no_obstacle(mystery: Any) -> None:
    net = Small(lambda m, x: x + m.b(mystery(m.a(x))), a=lin(), b=lin())
    structure = read(net)
    assert (ends(only(structure)), len(structure.unknown)) == (["b.weight"], 1)
    starts_as_shortcuts(net)


def test_an_unknown_operator_on_the_shortcut_makes_no_join(mystery: Any) -> None:
    structure = read(Small(lambda m, x: mystery(x) + m.b(m.a(x).relu()), a=lin(), b=lin()))
    assert structure.joins == ()


def test_a_taught_operator_is_known(taught: None, mystery: Any) -> None:
    net = Small(lambda m, x: x + mystery(m.b(m.a(x).relu())), a=lin(), b=lin())
    structure = read(net)
    assert structure.unknown == () and ends(only(structure)) == ["b.weight"]
    starts_as_shortcuts(net)


def test_a_generator_of_transposed_convolutions_lets_the_signal_through() -> None:
    generator = nn.Sequential(
        nn.ConvTranspose2d(16, 32, 4, 1, 0),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1),
        nn.Tanh(),
    )
    noise = torch.randn(8, 16, 1, 1, generator=torch.Generator().manual_seed(0))
    idfx.init_(generator, (noise,))
    with torch.no_grad():
        images = generator.eval()(noise)
    assert images.std(0).max() > 0.1


def test_what_is_no_finished_module_is_refused() -> None:
    x = torch.ones(1, 4)
    with pytest.raises(idfx.IdfxError, match=r"model: an object of type int was given; expected a torch.nn.Module"):
        idfx.analyze(3, (x,))  # type: ignore[arg-type]
    with pytest.raises(idfx.IdfxError, match=r"model: the class Linear was given; .*Pass the model itself"):
        idfx.analyze(nn.Linear, (x,))  # type: ignore[arg-type]
    with pytest.raises(idfx.IdfxError, match=r"Sequential: 0.weight has no shape yet.*Call the model once"):
        idfx.analyze(nn.Sequential(nn.LazyLinear(8)), (x,))


def test_a_join_that_no_run_can_compare_is_said_to_be_unseen() -> None:
    from idfx.report.terminal import _certificate_rows

    net = Small(lambda m, x: torch.lerp(x, m.b(m.a(x).relu()), 0.5), a=lin(), b=lin())
    report = idfx.init_(net, (torch.ones(1, 4),))
    hidden = tuple(dataclasses.replace(join, operand=-1) for join in report.structure.joins)
    certificate = idfx.certify(net, dataclasses.replace(report.structure, joins=hidden))
    assert [check.status for check in certificate.checks] == ["unseen"]
    assert certificate.worst is None and certificate.certified == 0
    assert any(label == "unseen" and "1 join" in text for label, text in _certificate_rows(certificate))
