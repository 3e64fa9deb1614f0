"""What a batch shows, against torch run by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy import stats
from torch import Tensor, nn

import idfx
from idfx.analysis.queries import StructureQueries
from idfx.core.findings import Batch, Observation
from idfx.core.records import Example
from idfx.measuring.batches import enlarged, sizes
from idfx.measuring.hessian import hessian
from idfx.measuring.images import _within, images
from idfx.measuring.jacobian import Linearisation
from idfx.measuring.observation import observe, unit_gradients
from idfx.measuring.replay import Replay
from idfx.measuring.statistics import effective_rank, flat_share, sure_attention
from idfx.measuring.trend import trend
from idfx.measuring.trial import on_first


class Block(nn.Module):
    """A residual block with everything written in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)

    def branch(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y += x
        return self.act(y)


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), Block(4), Block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def observed(model: nn.Module, x: Tensor, seed: int = 0) -> Observation:
    return observe(model, idfx.analyze(model, (x,)), Batch("given", len(x), (tuple(x.shape),)), seed)[0]


def test_values_are_those_of_a_training_step_without_dropout() -> None:
    model, x = convnet(), torch.randn(4, 3, 6, 6)
    before = copy.deepcopy(model.state_dict())
    points = {(point.kind, point.name): point for point in observed(model, x).points}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    seen: dict[tuple[str, str], Tensor] = {}
    for name, module in twin.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.ReLU)):
            kind = "activation" if isinstance(module, nn.ReLU) else "weight"
            module.register_forward_hook(
                lambda _, __, result, key=(kind, name): seen.__setitem__(key, result.detach().clone())
            )
    twin(x)
    assert seen.keys() <= points.keys()
    for key, value in seen.items():
        point, flat = points[key], value.flatten().numpy().astype(np.float64)
        assert point.mean == pytest.approx(flat.mean(), abs=1e-6)
        assert point.variance == pytest.approx(flat.var(), rel=1e-5)
        assert point.kurtosis == pytest.approx(stats.kurtosis(flat), rel=1e-4, abs=1e-5)
        assert point.units == value.shape[1]
    relu = seen["activation", "1.act"]
    constant = [bool((relu[:, unit] == relu[0, unit, 0, 0]).all()) for unit in range(4)]
    assert points["activation", "1.act"].dead == sum(constant) / 4
    assert points["activation", "1.act"].saturated == pytest.approx(float((relu == 0).float().mean()))


def test_main_stem_and_branches_are_told_apart() -> None:
    points = observed(convnet(), torch.randn(4, 3, 6, 6)).points
    blocks = {(point.kind, point.name): point.block for point in points}
    assert blocks["weight", "0"] is None and blocks["weight", "5"] is None and blocks["join", "1"] is None
    assert blocks["weight", "1.conv"] == "1" and blocks["weight", "2.conv"] == "2"
    assert blocks["activation", "1.act"] is None


def test_gradients_are_those_of_torch_for_a_gradient_of_norm_one() -> None:
    model, x = convnet(), torch.randn(4, 3, 6, 6)
    found = observed(model, x, seed=3)
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    arrived: dict[str, float] = {}
    for name in ("0", "1.conv", "5"):
        twin.get_submodule(name).register_full_backward_hook(
            lambda _, __, given, name=name: arrived.__setitem__(name, float(given[0].norm()))
        )
    output = twin(x)
    (gradient,) = unit_gradients([output], 3)
    assert float(gradient.norm()) == pytest.approx(1, rel=1e-6)
    output.backward(gradient)
    for name, parameter in twin.named_parameters():
        assert found.gradients[name] == pytest.approx(float(parameter.grad.norm()), rel=1e-4, abs=1e-7)
    points = {point.name: point for point in found.points if point.kind == "weight"}
    for name, norm in arrived.items():
        assert points[name].gradient == pytest.approx(norm, rel=1e-4)


def test_only_what_is_detached_has_lost_its_gradient() -> None:
    class Straight(nn.Module):
        """Rounds on the way forward, and passes the gradient by; keeps a copy without one."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.lost = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.one(x)
            kept = y.detach()
            y = y + (y.round() - y).detach()
            return self.two(y) + self.lost(x).detach(), kept

    torch.manual_seed(0)
    model, x = Straight(), torch.randn(8, 6)
    found = observed(model, x, seed=1)
    outputs = list(model(x))
    gradient = unit_gradients(outputs[:1], 1)
    torch.autograd.backward(outputs[:1], gradient)
    assert found.gradients["one.weight"] == pytest.approx(float(model.one.weight.grad.norm()), rel=1e-4)
    assert found.gradients["lost.weight"] == 0 and model.lost.weight.grad is None


def test_correlation_is_the_cosine_between_independent_batches() -> None:
    torch.manual_seed(0)
    shifted = nn.Sequential(nn.Linear(400, 400))
    nn.init.normal_(shifted[0].weight, std=0.05)
    nn.init.constant_(shifted[0].bias, 3.0)
    found = observed(shifted, torch.randn(64, 400))
    # Entries are bias plus noise of variance 400 · 0.05² = 1: the cosine is 9 / (9 + 1).
    assert found.correlation == pytest.approx(0.9, abs=0.01)
    nn.init.zeros_(shifted[0].bias)
    assert observed(shifted, torch.randn(64, 400)).correlation == pytest.approx(0, abs=0.03)


def test_effective_rank_is_the_entropy_of_the_singular_values() -> None:
    values = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 20)
    singular = np.linalg.svd(values.double().numpy(), compute_uv=False)
    shares = singular / singular.sum()
    assert effective_rank(values, -1)[0] == pytest.approx(math.exp(stats.entropy(shares)), rel=1e-6)
    assert effective_rank(torch.ones(50, 20), -1)[0] == pytest.approx(1, abs=1e-6)


def test_saturation_of_functions_is_read_from_their_derivative() -> None:
    x = torch.linspace(-10, 10, 20001)
    expected = float((torch.sigmoid(x) * (1 - torch.sigmoid(x)) < 0.01).float().mean())
    assert flat_share(torch.sigmoid, (x,), {}) == pytest.approx(expected, abs=1e-3)
    assert math.isnan(flat_share(torch.round, (x,), {}))
    assert math.isnan(flat_share(torch.nn.functional.prelu, (torch.randn(2, 3, 4), torch.ones(3)), {}))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_that_picks_one_place(causal: bool) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 7, 4) * 5, torch.randn(2, 3, 7, 4) * 5
    scores = query[:1] @ key[:1].mT / 2
    if causal:
        scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf)
    expected = float((scores.softmax(-1).amax(-1) > 0.99).float().mean())
    args = (query, key, torch.randn(2, 3, 7, 4), None, 0.0, causal)
    assert sure_attention(args, {}) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[1.0, 3.0, 2.0, 9.0, 30.0], [5.0, 4.0, 4.5, 1.0]])
def test_trend_is_that_of_scipy(values: list[float]) -> None:
    expected = stats.linregress(range(len(values)), np.log10(values))
    found = trend(values)
    assert found is not None
    assert found.slope == pytest.approx(expected.slope) and found.error == pytest.approx(expected.stderr)
    assert trend([1.0, 0.0, 2.0, 3.0]) is None


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(x.shape))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


class Buffered(nn.Module):
    """Writes its values into a tensor that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 12, dtype=x.dtype)
        y[:, :6] = self.one(x).tanh()
        y[:, 6:] = self.two(x).sigmoid()
        return y


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (Attention, (2, 5, 8)),
    "recurrent": (Recurrent, (2, 5, 4)),
    "buffered": (Buffered, (3, 6)),
    "gelu": (lambda: nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.GroupNorm(3, 9), nn.Linear(9, 4)), (3, 7)),
    "pooled": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(True), nn.MaxPool2d(2), nn.Flatten()), (2, 2, 8, 8)),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_the_jacobian_is_that_of_torch(name: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    structure = idfx.analyze(model, (x,))
    found = Linearisation(model, structure, StructureQueries(structure).flow, {}).whole()
    by_columns = torch.stack([found.forward(unit) for unit in torch.eye(found.columns, dtype=torch.float64)], 1)
    by_rows = torch.stack([found.adjoint(unit) for unit in torch.eye(found.rows, dtype=torch.float64)])
    expected = torch.autograd.functional.jacobian(model.eval(), x).reshape(found.rows, found.columns)
    assert torch.allclose(by_rows, expected, atol=1e-10)
    assert torch.allclose(by_columns, expected, atol=1e-10)


def test_batch_normalisations_are_held_at_the_statistics_of_the_batch() -> None:
    model, x = convnet(), torch.randn(4, 3, 5, 5)
    structure = idfx.analyze(model, (x,))
    run = Replay(model, structure.capture)
    run.run(structure.capture.example)
    found = Linearisation(model, structure, StructureQueries(structure).flow, run.statistics)
    whole = found.whole()
    matrix = torch.stack([whole.adjoint(unit) for unit in torch.eye(whole.rows)])
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    twin.train()(x)  # running statistics are those of the batch now, but the variance has n − 1 in it
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= 99 / 100
    expected = torch.autograd.functional.jacobian(twin.eval(), x).reshape(whole.rows, whole.columns)
    assert torch.allclose(matrix, expected, atol=1e-5)
    blocks = {join.name: found.block(join) for join in structure.joins}
    for place, join in (("1", blocks["1"]), ("2", blocks["2"])):
        assert join is not None
        block = twin.get_submodule(place)
        value = twin[: int(place)](x).detach()
        sum_alone = torch.autograd.functional.jacobian(lambda v, block=block: v + block.branch(v), value)
        got = torch.stack([join.forward(unit) for unit in torch.eye(join.columns)], 1)
        assert torch.allclose(got, sum_alone.reshape(join.rows, join.columns), atol=1e-5)


def test_whole_numbers_are_differentiated_at_the_rows_that_they_look_up() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3), nn.Tanh())
    ids = torch.tensor([[1, 7, 7]])
    structure = idfx.analyze(model, (ids,))
    whole = Linearisation(model, structure, StructureQueries(structure).flow, {}).whole()
    assert (whole.rows, whole.columns) == (9, 12)
    rows = model[0](ids).detach()
    expected = torch.autograd.functional.jacobian(model[1:], rows).reshape(9, 12)
    got = torch.stack([whole.forward(unit) for unit in torch.eye(12)], 1)
    assert torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_hessian_is_that_of_torch(classes: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)).double(), torch.randn(6, 4).double()
    structure = idfx.analyze(model, (x,))
    found, words = hessian(model, structure, seed=2)
    names, values = zip(*((name, value.detach()) for name, value in model.named_parameters()), strict=True)
    generator = torch.Generator().manual_seed(2)
    if classes > 1:
        target = torch.randint(classes, (6,), generator=generator)
        assert words.startswith("cross-entropy")
    else:
        target = torch.randn(6, 1, generator=generator).double()
        assert words.startswith("mean squared error")

    def loss(*given: Tensor) -> Tensor:
        output = torch.func.functional_call(model, dict(zip(names, given, strict=True)), (x,))
        return nn.functional.cross_entropy(output, target) if classes > 1 else ((output - target) ** 2).mean()

    parts = torch.autograd.functional.hessian(loss, values)
    sizes = [value.numel() for value in values]
    expected = torch.cat([torch.cat([p.reshape(n, m) for p, m in zip(row, sizes, strict=True)], 1)
                          for row, n in zip(parts, sizes, strict=True)])  # fmt: skip
    got = torch.stack([found.forward(unit) for unit in torch.eye(found.columns, dtype=torch.float64)], 1)
    assert torch.allclose(got, expected, atol=1e-10)


def test_examples_are_enlarged_only_where_they_are_one_sample() -> None:
    ids = torch.tensor([[3, 9, 5]])
    found = list(enlarged(Example((torch.zeros(1, 4), ids), {"mask": torch.ones(1, 3, dtype=torch.bool)}), 6))
    assert [words for _, words in found] == [
        "standard normal, random integers", "standard normal, repeated integers"
    ]  # fmt: skip
    drawn, repeated = (example.args[1] for example, _ in found)
    assert drawn.shape == (6, 3) and int(drawn.min()) >= 3 and int(drawn.max()) <= 9 and len(drawn.unique()) > 3
    assert torch.equal(repeated, ids.expand(6, 3))
    assert bool(found[0][0].kwargs["mask"].all()) and found[0][0].kwargs["mask"].shape == (6, 3)
    assert abs(float(found[0][0].args[0].std()) - 1) < 0.5
    assert not list(enlarged(Example((torch.zeros(2, 4),)), 6))
    assert sizes(Example((torch.zeros(1, 10),))) == 64


def test_a_model_that_takes_no_other_number_of_samples_is_run_on_its_example() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.reshape(4))

    model, example = One(), Example((torch.randn(1, 4),))
    structure = idfx.analyze(model, example.args)
    trial = on_first(model, structure, enlarged(example, 8))
    assert trial.batch.source == "the example" and trial.whole is structure


def test_images_are_scaled_cropped_and_normalised(tmp_path: Path) -> None:
    from torchvision.io import write_png

    for number, level in enumerate((255, 0, 128)):
        write_png(torch.full((3, 20, 40), level, dtype=torch.uint8), str(tmp_path / f"{number}.png"))
    batch, words = images(tmp_path, Example((torch.zeros(1, 3, 8, 8),)), 2)
    assert batch.args[0].shape == (2, 3, 8, 8) and words.startswith("2 images of ")
    white = [(1 - mean) / deviation for mean, deviation in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert batch.args[0][0, :, 4, 4].tolist() == pytest.approx(white, rel=1e-5)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(idfx.IdfxError, match=r"0\.png.*expected an image"):
        images(tmp_path, Example((torch.zeros(1, 3, 8, 8),)), 2)
    with pytest.raises(idfx.IdfxError, match=r"the model takes \[1, 5\]; expected one image"):
        images(tmp_path, Example((torch.zeros(1, 5),)), 2)


def test_images_are_taken_folder_by_folder_and_a_haystack_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    names = ("0.png", "1.PNG", "a/c.png", "a/b/c.png")
    for name in (*names, "2.txt"):
        (tmp_path / name).touch()
    assert list(_within(tmp_path)) == [tmp_path / name for name in names]
    monkeypatch.setattr("idfx.measuring.images.LOOKED_AT", 2)
    with pytest.raises(idfx.IdfxError, match="too few images among its first 2 files"):
        list(_within(tmp_path))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mixer_s32_224"])
def test_outputs_of_the_replayed_graph_are_those_of_the_model(name: str) -> None:
    model = (
        timm.create_model(name, img_size=64)
        if "resnet" not in name and "convnext" not in name
        else timm.create_model(name)
    )
    x = torch.randn(2, 3, 64, 64)
    structure = idfx.analyze(model, (x,))
    (output,) = Replay(model, structure.capture).run(structure.capture.example, buffers={})
    assert torch.allclose(output, model.eval()(x), atol=1e-5)
