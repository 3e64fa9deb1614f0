"""A model without its normalisations: x · w + b in the place of n(x) · w + b, written down by hand for each norm."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from small_models import conv, lin, values
from timm.layers import BatchNormAct2d, LayerNorm2d
from torch import Tensor, nn

import idfx
from idfx.core.errors import StructureError, UsageError
from idfx.planning.without_norms import Affine


class HandWritten(nn.Module):
    """The norm of a llama, or of a gemma, which stores w - 1."""

    def __init__(self, width: int, added: float = 0.0) -> None:
        super().__init__()
        self.scale, self.added = nn.Parameter(torch.ones(width) - added), added

    def forward(self, x: Tensor) -> Tensor:
        root = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * root * (self.scale + self.added)


def along(axis: int, dims: int, value: Tensor) -> Tensor:
    return value.reshape([-1 if number == axis % dims else 1 for number in range(dims)])


# a norm, the shape of its input, and the axis of its parameters
NORMS = {
    "layer": (lambda: nn.LayerNorm(6), (3, 5, 6), -1),
    "batch 1d": (lambda: nn.BatchNorm1d(6), (3, 6), 1),
    "batch 2d": (lambda: nn.BatchNorm2d(6), (3, 6, 4, 4), 1),
    "batch 3d": (lambda: nn.BatchNorm3d(6), (2, 6, 3, 3, 3), 1),
    "group": (lambda: nn.GroupNorm(2, 6), (3, 6, 4, 4), 1),
    "instance": (lambda: nn.InstanceNorm2d(6, affine=True), (3, 6, 4, 4), 1),
    "layer of channels": (lambda: LayerNorm2d(6), (3, 6, 4, 4), 1),
    "rms": (lambda: nn.RMSNorm(6), (3, 5, 6), -1),
    "by hand": (lambda: HandWritten(6), (3, 5, 6), -1),
    "by hand, 1 + w": (lambda: HandWritten(6, 1.0), (3, 5, 6), -1),
    "none": (lambda: nn.LayerNorm(6, elementwise_affine=False), (3, 5, 6), -1),
}


def one_of(name: str) -> tuple[nn.Module, Tensor, int]:
    make, shape, axis = NORMS[name]
    norm, x = make(), values(*shape)
    with torch.no_grad():
        for number, parameter in enumerate(norm.parameters()):
            parameter.copy_(values(*parameter.shape) + number)
    return norm, x, axis


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_becomes_its_scale_and_its_shift(name):
    norm, x, axis = one_of(name)
    model = nn.Sequential(nn.Identity(), norm, nn.Tanh()).eval()
    before = copy.deepcopy(model.state_dict())
    made = idfx.without_norms(model, x)
    scale, shift = (
        dict(norm.named_parameters()).get(word) for word in ("scale" if "hand" in name else "weight", "bias")
    )
    expected = x
    if scale is not None:
        expected = expected * along(axis, x.dim(), scale + getattr(norm, "added", 0.0))
    if shift is not None:
        expected = expected + along(axis, x.dim(), shift)
    torch.testing.assert_close(made(x), torch.tanh(expected))
    assert {key: value.tolist() for key, value in made.named_parameters()} == {
        key: value.tolist() for key, value in model.named_parameters()
    }
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()) and model[1] is norm


def test_a_norm_of_several_axes_keeps_them_all():
    norm = nn.LayerNorm((4, 6))
    with torch.no_grad():
        norm.weight.copy_(values(4, 6))
    x = values(3, 4, 6)
    torch.testing.assert_close(idfx.without_norms(nn.Sequential(norm), x)(x), x * norm.weight)


def test_what_follows_in_the_module_stays():
    norm, x = BatchNormAct2d(6, act_layer=nn.SiLU), values(2, 6, 4, 4)
    with torch.no_grad():
        norm.weight.copy_(values(6))
    made = idfx.without_norms(nn.Sequential(conv(6, 6), norm), x)
    expected = nn.functional.silu(made[0](x) * norm.weight.view(1, 6, 1, 1) + norm.bias.view(1, 6, 1, 1))
    torch.testing.assert_close(made(x), expected)


def test_scales_and_shifts_go_too_where_that_is_asked():
    model = nn.Sequential(lin(4, 6), nn.LayerNorm(6), lin(6, 2))
    made = idfx.without_norms(model, values(3, 4), affine=False)
    assert [name for name, _ in made.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_norm_in_two_places_is_one_scale():
    norm = nn.LayerNorm(4)
    made = idfx.without_norms(nn.Sequential(lin(), norm, lin(), norm), values(3, 4))
    assert made[1] is made[3] and isinstance(made[1], Affine)


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = lin(), lin()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.normalize(self.a(x), dim=-1))


def test_a_norm_among_other_things_is_named_and_may_stay():
    model = nn.Sequential(lin(), nn.LayerNorm(4), Cosine())
    with pytest.raises(StructureError, match=r"Sequential: it normalises within 2, which does more than that; .*keep="):
        idfx.without_norms(model, values(3, 4))
    made = idfx.without_norms(model, values(3, 4), keep=["2"])
    assert isinstance(made[1], Affine)
    torch.testing.assert_close(made(values(3, 4)), model[2](model[0](values(3, 4))))
    with pytest.raises(
        UsageError, match=r"keep 3: no normalisation has that name; expected a pattern of .* such as 1, 2"
    ):
        idfx.without_norms(model, values(3, 4), keep=["3"])


def test_standardised_weights_are_no_normalisations_of_the_data():
    model = timm.create_model("nf_resnet26", num_classes=4)
    made = idfx.without_norms(model, torch.randn(1, 3, 64, 64))
    assert not any(isinstance(module, Affine) for module in made.modules())


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet18", (1, 3, 64, 64)), ("test_vit", (1, 3, 160, 160)), ("test_convnext", (1, 3, 64, 64))]
)
def test_known_models_have_no_norm_left_and_their_blocks_close(name, shape):
    model, x = timm.create_model(name), torch.randn(*shape)
    norms = sum(isinstance(module, nn.BatchNorm2d | nn.LayerNorm) for module in model.modules())
    made = idfx.without_norms(model, x)
    assert sum(isinstance(module, Affine) for module in made.modules()) == norms > 5
    report = idfx.init_(made, x, scheme="idfx")
    joins = [join for join in idfx.analyze(model, x).joins if join.zeroable]
    assert report.certificate.passed and report.certificate.certified == len(joins)
    graph = report.structure.graph
    assert not any(facts["kind"] == "norm" for _, facts in graph.nodes(data=True))


def test_the_program_writes_what_the_same_call_reads(run, tmp_path):
    path = tmp_path / "weights.pt"
    code, _, err = run(f"init timm:test_resnet --without-norms --scheme idfx -o {path}")
    assert code == 0 and "note: 15 normalisations are taken out; idfx.without_norms(model, example_inputs) makes" in err
    made = idfx.without_norms(timm.create_model("test_resnet"), torch.randn(1, 3, 160, 160))
    made.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert run(f"init timm:test_resnet --keep-norm bn1 -o {path}")[0] == 2
