"""Every scheme is held to its own claim: orthogonality, exact linearity, closed branches, sizes by depth."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

import idfx
from idfx.core.errors import IdfxError, PlanError, UsageError
from idfx.core.records import End, Scalar
from idfx.fills import fill_, fills
from idfx.fills.geometry import Shard
from idfx.planning.file import from_json, to_json
from idfx.planning.scalars import fold_
from idfx.schemes.scheme import SCHEMES


class Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))): a convolutional block with a scale behind its last weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))


class Plain(nn.Module):
    """x + fc2(relu(fc1(x))): a block without normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.fc1(x).relu())


def conv_net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Residual(8), Residual(8), nn.Flatten(), nn.Linear(8 * 36, 4))
    return net.eval(), torch.randn(2, 3, 6, 6)


def plain_net(depth: int = 3, width: int = 8) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, width), *(Plain(width) for _ in range(depth)), nn.Linear(width, 4))
    return net, torch.randn(5, 6)


def transformer() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval(), torch.randn(2, 5, 16)


MODELS = {"conv": conv_net, "plain": plain_net, "transformer": transformer}


@pytest.mark.parametrize("name", list(SCHEMES))
@pytest.mark.parametrize("model", MODELS)
def test_every_scheme_runs_is_told_and_leaves_what_it_does_not_write(name, model):
    net, x = MODELS[model]()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    report = idfx.init_(net, (x,), scheme=name)
    assert set(report.plan.decisions) | set(report.plan.kept) == set(report.structure.parameters)
    assert all(decision.reason for decision in report.plan.decisions.values())
    assert report.certificate is not None and report.certificate.finite
    after = fold_(net).state_dict() if report.plan.scalars else net.state_dict()
    scaled = {end.parameter for scalar in report.plan.scalars for end in scalar.on}
    for key in {*report.plan.kept} - scaled:
        assert torch.equal(after[key], before[key])
    assert list(after) == list(before)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_a_plan_is_the_same_after_its_file(name):
    net, x = conv_net()
    plan = idfx.plan(idfx.analyze(net, (x,)), name)
    again = from_json(to_json(plan))
    assert to_json(again) == to_json(plan) and again.scalars == plan.scalars


@pytest.mark.parametrize("name", ["idinit", "idfx", "zero-gamma", "fixup", "skipinit", "rezero", "zero"])
def test_schemes_that_close_branches_are_certified_to_do_so(name):
    net, x = conv_net()
    certificate = idfx.init_(net, (x,), scheme=name).certificate
    assert certificate is not None and certificate.passed and certificate.certified == 2


@pytest.mark.parametrize("name", ["kaiming", "xavier", "orthogonal", "eoi"])
def test_schemes_that_close_nothing_claim_nothing(name):
    net, x = conv_net()
    certificate = idfx.init_(net, (x,), scheme=name).certificate
    assert certificate is not None and certificate.passed
    assert [check.status for check in certificate.checks] == ["unclaimed"] * 2


def orthonormal(weight: torch.Tensor, gain: float = 1.0) -> bool:
    """Whether the rows or the columns of a weight, whichever are fewer, are orthonormal times a gain."""
    w = weight.detach().flatten(1).double() / gain
    product = w @ w.T if len(w) <= w.shape[1] else w.T @ w
    return torch.allclose(product, torch.eye(len(product), dtype=torch.float64), atol=1e-6)


def test_idfx_closes_a_branch_at_its_norm_and_fills_what_is_inside_with_orthogonal_matrices():
    net, x = conv_net()
    report = idfx.init_(net, (x,), scheme="idfx")
    assert report.certificate is not None and report.certificate.certified == 2
    for block in (net[1], net[2]):
        assert torch.equal(block.norm2.weight, torch.full((8,), 1e-6)) and bool((block.norm1.weight == 1).all())
        assert orthonormal(block.conv1.weight, math.sqrt(2)) and orthonormal(block.conv2.weight)
    assert orthonormal(net[0].weight) and orthonormal(net[4].weight)
    idfx.init_(net, (x,), scheme="idfx", ends="weight")
    assert bool((net[1].norm2.weight == 1).all()) and 0 < float(net[1].conv2.weight.detach().abs().max()) < 1e-5
    idfx.init_(net, (x,), scheme="idfx", eps=0.0, head="zero")
    assert not net[1].norm2.weight.any() and not net[4].weight.any()


def test_idfx_lets_the_main_stem_pass_and_closes_branches_without_a_norm_at_their_weight():
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    net, x = nn.Sequential(stem, Plain(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(5, 6)
    report = idfx.init_(net, (x,), scheme="idfx")
    assert report.certificate is not None and report.certificate.certified == 1
    first = stem[1](stem[0](x))
    assert torch.allclose(net[1](stem(x)), first, atol=1e-4)  # identities behind the first weight, and a closed branch
    assert orthonormal(stem[0].weight, math.sqrt(2)) and orthonormal(net[2].weight, math.sqrt(2))
    assert orthonormal(net[1].fc1.weight, math.sqrt(2)) and float(net[1].fc2.weight.detach().abs().max()) < 1e-5


@pytest.mark.parametrize("norm", [False, True])
def test_idfx_shrinks_the_inside_of_branches_with_the_depth_where_nothing_normalises(norm):
    net = nn.Sequential(nn.Linear(6, 8), *(Plain(8) for _ in range(9)), *([nn.LayerNorm(8)] * norm), nn.Linear(8, 4))
    idfx.init_(net, (torch.randn(5, 6),), scheme="idfx")
    gain = math.sqrt(2) * (1 if norm else 9**-0.5)  # m = 2 weights in each of L = 9 branches
    assert orthonormal(net[1].fc1.weight, gain) and orthonormal(net[9].fc1.weight, gain)
    assert orthonormal(net[0].weight)
    idfx.init_(net, (torch.randn(5, 6),), scheme="idfx", depth=False)
    assert orthonormal(net[1].fc1.weight, math.sqrt(2)) and orthonormal(net[9].fc1.weight, math.sqrt(2))


def test_idfx_reads_fused_queries_keys_and_values_as_three_matrices():
    net, x = transformer()
    idfx.init_(net, (x,), scheme="idfx")
    for layer in net.layers:
        query, *others = layer.self_attn.in_proj_weight.chunk(3)
        assert all(orthonormal(part) for part in others) and query.abs().max() < 1e-5
    idfx.init_(net, (x,), scheme="idfx", even=False)
    for layer in net.layers:
        assert all(orthonormal(part) for part in layer.self_attn.in_proj_weight.chunk(3))
        assert not orthonormal(layer.self_attn.in_proj_weight)


def test_idfx_leaves_alone_what_a_norm_of_its_slices_would_divide_by_zero():
    norm = nn.utils.parametrizations.weight_norm

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = norm(nn.ConvTranspose1d(8, 4, 2, 2))  # its norms are those of the inputs
            self.inner, self.end = nn.ConvTranspose1d(4, 4, 1), norm(nn.ConvTranspose1d(4, 4, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.up(x)
            return y + self.end(self.inner(y).relu())

    for options in ({}, {"other": "identity", "stem": "identity"}):
        torch.manual_seed(0)
        report = idfx.init_(net := Net(), (x := torch.randn(2, 8, 5),), scheme="idfx", certify=False, **options)
        assert bool(net(x).isfinite().all())
    assert "up.parametrizations.weight.original1" in report.plan.kept


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"main": "orthogonal"}, {"0.2.weight", "0.4.weight"}),
        ({"inner": "identity"}, {"1.fc1.weight"}),
        ({"other": "random"}, {"2.weight"}),
        ({"stem": "keep"}, {"0.0.weight"}),
        ({"stem": "mirrored"}, {"0.0.weight"}),
        ({"head": "identity"}, {"4.weight"}),
        ({"eps": 0.0}, {"1.fc2.weight"}),
        ({"ends": "weight"}, set()),
        ({"depth": False}, set()),  # of one branch, 1^(−1/2) is 1
    ],
)
def test_an_option_of_idfx_changes_what_it_speaks_of(options, changed):
    stem = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    net, x = nn.Sequential(stem, Plain(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(5, 6)
    structure = idfx.analyze(net, (x,))
    plain, other = (idfx.plan(structure, "idfx", **given).decisions for given in ({}, options))
    assert {name for name in {*plain, *other} if plain.get(name) != other.get(name)} == changed


class Depthwise(nn.Module):
    """A depthwise kernel on the main stem, and one inside of a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stem = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.inner, self.end = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(self.first(x))
        return x + self.end(torch.relu(self.inner(x)))


@pytest.mark.parametrize(("option", "kept"), [("auto", {"inner"}), ("identity", set()), ("keep", {"stem", "inner"})])
def test_idinit_keeps_depthwise_kernels_inside_of_branches_unless_told_otherwise(option, kept):
    torch.manual_seed(0)
    net, x = Depthwise(), torch.randn(2, 3, 6, 6)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = idfx.init_(net, (x,), depthwise=option, loosen="none")
    assert report.certificate is not None and report.certificate.certified == 1
    for name in ("stem", "inner"):
        weight = net.state_dict()[f"{name}.weight"]
        same = torch.equal(weight, before[f"{name}.weight"])
        assert same is (name in kept)
        assert same or (weight.sum() == 8 and int((weight != 0).sum()) == 8)  # one tap of each channel
    if option == "auto":
        assert torch.equal(net.stem(x[:, :1].expand(2, 8, 6, 6)), x[:, :1].expand(2, 8, 6, 6))
    assert not net.inner.bias.any() and float(net.end.weight.detach().abs().max()) < 1e-5


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(("scheme", "reference"), [("kaiming", "kaiming"), ("xavier", "xavier")])
def test_spreads_are_those_of_torch_nn_init(scheme, reference, distribution):
    net = nn.Sequential(nn.Linear(300, 500), nn.ReLU(), nn.Linear(500, 200))
    idfx.init_(net, (torch.randn(2, 300),), scheme=scheme, distribution=distribution)
    for layer in (net[0], net[2]):
        own = torch.empty_like(layer.weight)
        options: dict[str, Any] = {"nonlinearity": "relu"} if reference == "kaiming" else {}
        getattr(nn.init, f"{reference}_{distribution}_")(own, **options)
        assert layer.weight.std().item() == pytest.approx(own.std().item(), rel=0.02)
        assert layer.weight.abs().max().item() == pytest.approx(own.abs().max().item(), rel=0.25)
        assert abs(layer.weight.mean().item()) < 4 * own.std().item() / math.sqrt(own.numel())


@pytest.mark.parametrize("shape", [(7, 7), (9, 4), (4, 9)])
def test_orthogonal_rows_or_columns(shape):
    w = fill_(torch.empty(shape, dtype=torch.float64), "orthogonal", parameter="w", seed=3)
    product = w.T @ w if shape[0] >= shape[1] else w @ w.T
    assert torch.allclose(product, torch.eye(min(shape), dtype=torch.float64), atol=1e-12)


def test_a_delta_orthogonal_convolution_keeps_norms():
    conv = nn.Conv2d(6, 10, 3, padding=1, bias=False).double()
    idfx.init_(conv, (torch.randn(1, 6, 5, 5, dtype=torch.float64),), scheme="delta-orthogonal")
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    assert torch.allclose(conv(x).norm(dim=1), x.norm(dim=1), atol=1e-12)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(40, 40), (40, 24), (24, 40)])
def test_sparse_orthogonal_matrices_are_orthogonal_and_of_their_density(density, shape):
    w = fill_(torch.empty(shape), "givens", {"density": density}, parameter="w", seed=0)
    product = w.T @ w if shape[0] >= shape[1] else w @ w.T
    assert torch.allclose(product, torch.eye(min(shape)), atol=1e-5)
    wanted = round(density * w.numel())
    assert wanted - min(shape) <= int((w != 0).sum()) <= max(wanted, min(shape))


@pytest.mark.parametrize("core", ["orthogonal", "normal"])
def test_a_looks_linear_relu_net_is_linear(core):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 16, 10), nn.ReLU(), nn.Linear(10, 4),
    ).double()  # fmt: skip
    idfx.init_(net, (torch.randn(2, 3, 4, 4, dtype=torch.float64),), scheme="looks-linear", core=core)
    a, b = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    assert torch.allclose(net(2 * a - 3 * b), 2 * net(a) - 3 * net(b), atol=1e-10)
    assert float(net(a).abs().max()) > 1e-3


@pytest.mark.parametrize(("rows", "columns"), [(8, 4), (7, 3), (64, 10)])
def test_zero_mixes_all_inputs_where_a_layer_widens(rows, columns):
    w = fill_(torch.empty(rows, columns), "hadamard", parameter="w", seed=0)
    assert torch.linalg.matrix_rank(w) == columns and bool((w != 0).all())
    if rows & (rows - 1) == 0:
        assert torch.allclose(w.T @ w, torch.eye(columns), atol=1e-6)


def test_zero_draws_nothing():
    (first, x), (second, _) = conv_net(), conv_net()
    idfx.init_(first, (x,), scheme="zero", seed=0)
    idfx.init_(second, (x,), scheme="zero", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_update_of_fixup_does_not_grow_with_the_depth():
    """One step of SGD moves the function by O(learning rate) at any depth; under Kaiming it grows without bound."""

    def moved(scheme: str, depth: int) -> float:
        net, x = plain_net(depth, 32)
        idfx.init_(net, (x,), scheme=scheme)
        if scheme == "fixup":  # with the head at 0 only the head moves at first: take the step of the branches
            with torch.no_grad():
                net[-1].weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        before = net(x)
        target = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
        (before * target).mean().backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.01 * parameter.grad
        return float((net(x) - before).norm())

    assert moved("fixup", 64) / moved("fixup", 4) < 3
    assert moved("kaiming", 8) / moved("kaiming", 4) > 10


def test_inner_weights_of_fixup_have_the_size_of_rule_2():
    net, x = plain_net(9, 256)
    report = idfx.init_(net, (x,), scheme="fixup")
    first = net[1].fc1.weight
    assert first.std().item() == pytest.approx(math.sqrt(2 / 256) * 9 ** (-1 / 2), rel=0.02)
    assert not net[1].fc2.weight.any() and not net[-1].weight.any()
    assert "rule 2" in report.plan.decisions["1.fc1.weight"].reason


def test_zero_gamma_zeroes_what_timm_zeroes():
    import timm

    ours, theirs = (timm.create_model("resnet26", zero_init_last=flag) for flag in (False, True))
    plan = idfx.plan(idfx.analyze(ours), "zero-gamma")
    zeroed = {name for name, d in plan.decisions.items() if d.arguments.get("value") == 0.0 and name.endswith("weight")}
    assert zeroed == {name for name, p in theirs.named_parameters() if name.endswith("weight") and not p.any()}


@pytest.mark.parametrize("scheme", ["skipinit", "rezero"])
@pytest.mark.parametrize("model", MODELS)
def test_learned_scalars_close_branches_learn_and_fold_away(scheme, model):
    net, x = MODELS[model]()
    plain = copy.deepcopy(net)
    report = idfx.init_(net, (x,), scheme=scheme)
    assert report.certificate is not None and report.certificate.certified == len(report.structure.joins)
    alphas = [p for name, p in net.named_parameters() if name.endswith("alpha")]
    assert len(alphas) == len(report.structure.joins) and not any(float(a.detach()) for a in alphas)
    net(x).pow(2).mean().backward()
    assert all(alpha.grad is not None and float(alpha.grad) for alpha in alphas)
    with torch.no_grad():
        for number, alpha in enumerate(alphas):
            alpha.fill_(0.1 * (number + 1))
    wanted = net(x)
    plain.load_state_dict(fold_(net).state_dict(), strict=True)
    assert torch.allclose(plain(x), wanted, atol=1e-6)


@pytest.mark.parametrize("scheme", ["skipinit", "rezero"])
def test_branches_with_a_common_end_have_one_learned_scalar(scheme):
    """Heun's method calls a block twice in each of two steps: one scalar at 0 makes the identity of the whole."""

    class Heun(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

        def slope(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(torch.tanh(self.fc1(x)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(2):
                one = self.slope(x)
                x = x + (one + self.slope(x + one)) / 2
            return x

    net, x = Heun(), torch.randn(3, 6)
    report = idfx.init_(net, (x,), scheme=scheme)
    alphas = [p for name, p in net.named_parameters() if name.endswith("alpha")]
    assert len(alphas) == 1 and torch.equal(net(x), x)
    assert report.certificate is not None and report.certificate.certified == len(report.structure.joins) == 6


def test_learned_scalars_close_branches_where_a_run_takes_another_path_than_on_meta_tensors():
    net, x = plain_net()

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x if x.is_meta else x + 0.0)  # more calls than on the meta device

    certificate = idfx.init_(Looking(), (x,), scheme="rezero").certificate
    assert certificate is not None and certificate.certified == 3


def test_the_multiplier_of_fixup_is_one_and_nothing_else_changes():
    (one, x), (other, _) = plain_net(), plain_net()
    idfx.init_(one, (x,), scheme="fixup", multipliers=True)
    idfx.init_(other, (x,), scheme="fixup")
    assert sum(name.endswith("alpha") for name, _ in one.named_parameters()) == 3
    again = idfx.init_(plain_net()[0], (x,), scheme="fixup", multipliers=True).certificate
    assert again is not None and again.certified == 3
    assert all(torch.equal(a, b) for a, b in zip(fold_(one).parameters(), other.parameters(), strict=True))


def test_a_scalar_that_cannot_be_added_is_refused_and_nothing_is_written():
    net, x = plain_net()
    net[2].fc2.weight = net[1].fc2.weight
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PlanError, match="tied to"):
        idfx.init_(net, (x,), scheme="rezero")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_mimetic_products_are_near_multiples_of_the_identity():
    net, x = transformer()
    idfx.init_(net, (x,), scheme="mimetic", alpha_vo=0.0, beta_vo=0.4, alpha_qk=0.0, beta_qk=0.7)
    attention = net.layers[1].self_attn
    query, key, value = attention.in_proj_weight.chunk(3)
    assert torch.allclose(attention.out_proj.weight @ value, -0.4 * torch.eye(16), atol=1e-5)
    for head in range(2):
        rows = slice(head * 8, head * 8 + 8)
        product = query[rows].T @ key[rows]
        sizes = torch.linalg.svdvals(product)
        assert torch.allclose(sizes, torch.tensor([0.7] * 8 + [0.0] * 8), atol=1e-5)
        assert torch.allclose(product, product.T, atol=1e-5)


def test_t_fixup_scales_values_outputs_and_mlps_of_an_encoder():
    net = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(128, 2, 512, 0.0, batch_first=True), 6, enable_nested_tensor=False
    ).eval()
    idfx.init_(net, (torch.randn(1, 4, 128),), scheme="t-fixup")
    layer, factor = net.layers[3], 0.67 * 6**-0.25
    square, wide = math.sqrt(2 / 256), math.sqrt(2 / 640)
    parts = layer.self_attn.in_proj_weight.chunk(3)
    for weight, std in (
        (parts[0], square), (parts[1], square), (parts[2], square * factor),
        (layer.self_attn.out_proj.weight, square * factor), (layer.linear1.weight, wide * factor),
        (layer.linear2.weight, wide * factor),
    ):  # fmt: skip
        assert weight.std().item() == pytest.approx(std, rel=0.03)


class Translator(nn.Module):
    """Embeddings, torch's own encoder and decoder of different depths, and a head."""

    def __init__(self, width: int, encoder: int, decoder: int, batch_first: bool) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(300, width), nn.Embedding(200, width)
        self.stacks = nn.Transformer(width, 4, encoder, decoder, 4 * width, 0.0, batch_first=batch_first)
        self.head = nn.Linear(width, 200)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.head(self.stacks(self.source(source), self.target(target)))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("batch_first", [True, False])
def test_t_fixup_scales_each_stack_of_an_encoder_decoder_by_its_own_depth(batch_first):
    """Huang et al.: 0.67 N^(-1/4) in the encoder, (9M)^(-1/4) in the decoder; (9N)^(-1/4), (9M)^(-1/4) before them."""
    d, n, m = 128, 2, 3
    net = Translator(d, n, m, batch_first).eval()
    idfx.init_(net, (torch.randint(300, (5, 6)), torch.randint(200, (5, 6))), scheme="t-fixup")
    encoder, decoder = 0.67 * n ** (-1 / 4), (9 * m) ** (-1 / 4)
    square, wide = math.sqrt(2 / (d + d)), math.sqrt(2 / (d + 4 * d))

    def holds(weight: torch.Tensor, std: float) -> None:
        assert weight.std().item() == pytest.approx(std, rel=0.02)

    for stack, factor, attentions in (
        (net.stacks.encoder, encoder, ("self_attn",)),
        (net.stacks.decoder, decoder, ("self_attn", "multihead_attn")),
    ):
        for layer in stack.layers:
            for name in attentions:
                attention = getattr(layer, name)
                query, key, value = attention.in_proj_weight.chunk(3)
                for weight, std in ((query, square), (key, square), (value, square * factor)):
                    holds(weight, std)
                holds(attention.out_proj.weight, square * factor)
            holds(layer.linear1.weight, wide * factor)
            holds(layer.linear2.weight, wide * factor)
    holds(net.source.weight, d ** (-1 / 2) * (9 * n) ** (-1 / 4))
    holds(net.target.weight, d ** (-1 / 2) * (9 * m) ** (-1 / 4))
    holds(net.head.weight, math.sqrt(2 / (d + 200)))


class Attend(nn.Module):
    """Attention of two heads written by hand: a weight for queries, a fused one for keys and values, one behind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.memory = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        def heads(z: torch.Tensor) -> torch.Tensor:
            return z.unflatten(-1, (2, -1)).transpose(1, 2)

        key, value = self.memory(y).chunk(2, -1)
        q, k, v = heads(self.query(x)), heads(key), heads(value)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Stage(nn.Module):
    """A layer without normalisation, as the paper has it: attention to itself, perhaps to a memory, an MLP."""

    def __init__(self, width: int, crosses: bool) -> None:
        super().__init__()
        self.own, self.cross = Attend(width), Attend(width) if crosses else None
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.own(x, x)
        if self.cross is not None:
            x = x + self.cross(x, memory)
        return x + self.fc2(self.fc1(x).relu())


class HandWritten(nn.Module):
    """An encoder-decoder with one embedding for both, and for the output; the decoder's layers are named first."""

    def __init__(self, width: int, encoder: int, decoder: int) -> None:
        super().__init__()
        self.decoder = nn.ModuleList(Stage(width, True) for _ in range(decoder))
        self.words = nn.Embedding(300, width)
        self.encoder = nn.ModuleList(Stage(width, False) for _ in range(encoder))

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, x = self.words(source), self.words(target)
        for stage in self.encoder:
            memory = stage(memory)
        for stage in self.decoder:
            x = stage(x, memory)
        return x @ self.words.weight.T


def test_t_fixup_reads_an_encoder_decoder_written_by_hand():
    """A shared embedding is scaled once, by the encoder's depth, as in the authors' code."""
    d, n, m = 128, 4, 1
    net = HandWritten(d, n, m)
    idfx.init_(net, (torch.randint(300, (2, 5)), torch.randint(300, (2, 6))), scheme="t-fixup")
    square, wide = math.sqrt(2 / (d + d)), math.sqrt(2 / (d + 2 * d))
    found: dict[str, float] = {name: p.std().item() for name, p in net.named_parameters() if p.dim() == 2}
    wanted = {"words.weight": d ** (-1 / 2) * (9 * n) ** (-1 / 4)}
    for stack, depth, factor in (("encoder", n, 0.67 * n ** (-1 / 4)), ("decoder", m, (9 * m) ** (-1 / 4))):
        for i in range(depth):
            stage = f"{stack}.{i}"
            for attention in ("own", "cross") if stack == "decoder" else ("own",):
                key, value = net.get_submodule(f"{stage}.{attention}").memory.weight.chunk(2)
                assert key.std().item() == pytest.approx(square, rel=0.02)
                assert value.std().item() == pytest.approx(square * factor, rel=0.02)
                del found[f"{stage}.{attention}.memory.weight"]
                wanted |= {f"{stage}.{attention}.query.weight": square}
                wanted |= {f"{stage}.{attention}.out.weight": square * factor}
            wanted |= {f"{stage}.fc1.weight": wide * factor, f"{stage}.fc2.weight": wide * factor}
    assert found == pytest.approx(wanted, rel=0.02)


class Mimicked(nn.Module):
    """x + out(attention(x)) of width 16 with two heads of 8, and one oddity that the method does not speak of."""

    def __init__(self, oddity: str) -> None:
        super().__init__()
        self.oddity = oddity
        inner, groups = (8 if oddity == "narrow" else 16), (1 if oddity == "grouped" else 2)
        self.query = nn.Linear(16, inner, bias=False)
        self.key, self.value = (nn.Linear(16, groups * inner // 2, bias=False) for _ in range(2))
        self.fused = nn.Linear(16, 48, bias=False) if oddity == "interleaved" else None
        self.experts = nn.Parameter(torch.randn(2, 16, 16)) if oddity == "unread" else None
        self.out = nn.Identity() if oddity == "no output" else nn.Linear(inner, 16, bias=False)
        self.out.requires_grad_(oddity != "frozen")
        self.again = 2 if oddity == "shared" else 1

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        for _ in range(self.again):
            x = x + self.attend(x, other if self.oddity == "cross" else x)
        return x

    def attend(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.fused is not None:  # of each head its query, key and value, then those of the next head
            q, k, v = self.fused(x).unflatten(-1, (2, 3, 8)).permute(3, 0, 2, 1, 4)
        else:
            query = self.query(x) if self.experts is None else x @ self.experts.sum(0)
            q, k, v = query, self.key(y), self.value(y)
            q = q.unflatten(-1, (2, -1)).transpose(1, 2)
            groups = 1 if self.oddity == "grouped" else 2
            k, v = (z.unflatten(-1, (groups, -1)).transpose(1, 2).expand(-1, 2, -1, -1) for z in (k, v))
        if self.oddity == "wider heads":  # a ninth entry, the same for all
            q, k = (torch.cat([z, torch.ones_like(z[..., :1])], -1) for z in (q, k))
        scores = q @ k.transpose(-1, -2)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


OF_ATTENTION = ("query.weight", "key.weight", "value.weight", "out.weight")
NOT_SQUARE = "its 1 part(s) of ({}, 16) are not square"
REFUSED: dict[str, dict[str, str]] = {
    "cross": dict.fromkeys(OF_ATTENTION, "attention Mimicked attends to other data than its queries come from"),
    "shared": dict.fromkeys(OF_ATTENTION, "several attentions share it"),
    "narrow": {**dict.fromkeys(OF_ATTENTION[:3], NOT_SQUARE.format(8)), "out.weight": "of (16, 8) are not square"},
    "wider heads": dict.fromkeys(OF_ATTENTION, NOT_SQUARE.format(16)),
    "grouped": {
        **dict.fromkeys(("key.weight", "value.weight"), NOT_SQUARE.format(8)),
        "query.weight": "key.weight, the other weight of its product, is kept: " + NOT_SQUARE.format(8),
        "out.weight": "value.weight, the other weight of its product, is kept: " + NOT_SQUARE.format(8),
    },
    "unread": {
        "experts": "idfx cannot read its matrix",
        "key.weight": "experts, the other weight of its product, is kept: idfx cannot read its matrix",
    },
    "interleaved": {
        "fused.weight": "its rows of queries, keys and values are not known",
        "out.weight": "fused.weight, the other weight of its product, is kept: its rows of queries",
    },
    "frozen": {
        "out.weight": "it is frozen",
        "value.weight": "out.weight, the other weight of its product, is kept: it is frozen",
    },
    "no output": {"value.weight": "attention Mimicked has no output weight for its product"},
}
# The product that the oddity leaves whole.
WRITTEN = {
    "unread": {"value.weight", "out.weight"},
    "frozen": {"query.weight", "key.weight"},
    "no output": {"query.weight", "key.weight"},
}


@pytest.mark.parametrize("oddity", REFUSED)
def test_mimetic_keeps_what_the_method_does_not_speak_of(oddity):
    torch.manual_seed(0)
    net = Mimicked(oddity)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plan = idfx.init_(net, (torch.randn(2, 5, 16), torch.randn(2, 7, 16)), scheme="mimetic").plan
    for name, reason in REFUSED[oddity].items():
        assert reason in plan.kept[name]
        assert torch.equal(net.state_dict()[name], before[name])
    written = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert written == set(plan.decisions) == WRITTEN.get(oddity, set())


def test_mimetic_writes_the_attention_that_the_oddities_start_from():
    torch.manual_seed(0)
    net = Mimicked("none")
    inputs = (torch.randn(2, 5, 16), torch.randn(2, 7, 16))
    assert set(idfx.init_(net, inputs, scheme="mimetic").plan.decisions) == set(OF_ATTENTION)


@pytest.mark.parametrize("model", ["plain", "transformer"])
def test_mimetic_keeps_what_is_no_weight_of_attention(model):
    net, x = MODELS[model]()
    before = {name: value.clone() for name, value in net.named_parameters()}
    plan = idfx.init_(net, (x,), scheme="mimetic").plan
    others = {name for name in before if not name.endswith(("in_proj_weight", "out_proj.weight"))}
    assert {name for name, reason in plan.kept.items() if "it is not an attention weight" in reason} == others
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters() if name in others)


FILLS: dict[str, dict[str, Any]] = {
    "normal": {"std": 0.5, "rows": [[2, 5]], "factor": 3.0}, "uniform": {"bound": 0.5}, "orthogonal": {},
    "hadamard": {}, "givens": {"density": 0.4}, "mirrored": {"inputs": True, "outputs": True},
}  # fmt: skip


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("layout", [None, {"out_axis": 1, "in_axis": 0, "tap_axes": [2, 3]}])
def test_the_fill_of_a_slice_is_the_slice_of_the_fill(fill, layout):
    arguments = dict(FILLS[fill])
    if fill not in ("normal", "uniform") and layout is not None:
        arguments["layout"] = layout
    whole = fill_(torch.empty(8, 6, 3, 3), fill, arguments, parameter="w", seed=5)
    for part in ((slice(0, 3), slice(0, 6)), (slice(2, 8), slice(1, 4))):
        shard = Shard((8, 6, 3, 3), (part[0].start, part[1].start, 0, 0))
        found = fill_(torch.empty_like(whole[part]), fill, arguments, parameter="w", seed=5, shard=shard)
        assert torch.equal(found, whole[part])


@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_does_not_depend_on_the_number_of_threads(fill):
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(fill_(torch.empty(64, 48), fill, FILLS[fill], parameter="w", seed=5))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_every_fill_names_its_source():
    assert [name for name in fills if "Source:" not in (fills[name].__doc__ or "")] == []


def test_every_scheme_names_its_source():
    assert [name for name in SCHEMES if "Source:" not in (SCHEMES[name].decide.__doc__ or "")] == []


BAD = {
    "a density of 0": ("eoi", {"density": 0.0}, "density 0.0; expected a number from"),
    "a mode that is none": ("kaiming", {"mode": "fan_on"}, "Did you mean fan_in"),
    "an option of another scheme": ("zero", {"tau": 1.0}, "unknown option 'tau'; it has none"),
    "a gain in words": ("orthogonal", {"gain": "aut"}, "Did you mean auto"),
    "a flag that is a number": ("fixup", {"multipliers": 1}, "expected true or false"),
    "an unknown scheme": ("kaimin", {}, "Did you mean kaiming"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_say_what_is_expected(case):
    scheme, options, message = BAD[case]
    net, x = plain_net()
    with pytest.raises(UsageError, match=message):
        idfx.init_(net, (x,), scheme=scheme, **options)


def test_a_malformed_scalar_of_a_plan_is_named():
    net, x = plain_net()
    text = to_json(idfx.plan(idfx.analyze(net, (x,)), "rezero"))
    for wrong, message in (
        (text.replace('"value": 0.0', '"value": "x"'), "plan: scalars → 0 → value is 'x'; expected a number"),
        (text.replace('"on": [', '"on": [4, '), "plan: scalars → 0 → on → 0 is 4; expected an object"),
    ):
        with pytest.raises(PlanError, match=message):
            from_json(wrong)


def test_scalars_are_of_the_named_parameter():
    net, x = plain_net()
    plan = idfx.plan(idfx.analyze(net, (x,)), "rezero")
    assert plan.scalars[0] == Scalar("1", 0.0, (End("1.fc2.weight"), End("1.fc2.bias")))
    assert issubclass(PlanError, IdfxError)


def test_options_of_a_scheme_stand_in_brackets_on_the_command_line(run, tmp_path):
    (tmp_path / "net.py").write_text("import torch\n\ndef make():\n    return torch.nn.Linear(16, 16)\n")
    command = f"plan {tmp_path / 'net.py'}:make --input-shape 1,16 --json --scheme"
    code, out, _ = run(f"{command} eoi(density=0.25,gain=2)")
    entry = json.loads(out)["parameters"]["weight"]
    assert (code, entry["fill"], entry["arguments"]) == (0, "givens", {"density": 0.25, "gain": 2})
    for scheme, message in (
        ("eoi(density=0.25", "expected NAME or NAME"),
        ("eoi(density)", "expected KEY=VALUE"),
        ("eoi(denisty=0.25)", "Did you mean density"),
        ("eio", "Did you mean eoi"),
    ):
        code, out, err = run(f"{command} {scheme}")
        assert code == 2 and message in err and not out
