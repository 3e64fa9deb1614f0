"""Widened models compute what the checkpoint's model does, or are refused with the place where they part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from click.testing import CliRunner
from idfx_cli.main import cli
from torch import nn

import idfx
from idfx.core.errors import CertificateError, UsageError


class Perceptron(nn.Module):
    """x + fc2(f(fc1(norm(x)))), the inner width free."""

    def __init__(self, width: int = 6, depth: int = 2, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8, dtype=dtype), nn.Linear(8, 3, dtype=dtype)
        self.norms = nn.ModuleList(nn.LayerNorm(8, dtype=dtype) for _ in range(depth))
        self.fc1 = nn.ModuleList(nn.Linear(8, width, dtype=dtype) for _ in range(depth))
        self.fc2 = nn.ModuleList(nn.Linear(width, 8, dtype=dtype) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, fc1, fc2 in zip(self.norms, self.fc1, self.fc2, strict=True):
            x = x + fc2(nn.functional.gelu(fc1(norm(x))))
        return self.head(x)


class Gated(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, width), nn.Linear(8, width), nn.Linear(width, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Packed(nn.Module):
    """Gated layers of which one weight makes gate and value, for vectors and for the channels of images."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 2 * width), nn.Linear(width, 3)
        self.conv, self.out = nn.Conv1d(1, 2 * width, 3, bias=False), nn.Conv1d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.glu(self.conv(x[:, None]).transpose(1, 2), -1).transpose(1, 2)
        x = nn.functional.pad(self.out(x)[:, 0], (1, 1))
        a, b = self.up(x).chunk(2, -1)
        return self.down(a * nn.functional.silu(b))


def convolutions(
    width: int = 4, second: int | None = None, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Module:
    """Three convolutions, one of them depthwise, with normalisations between, and a linear layer on the image."""
    second = second or width
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), norm(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, groups=width),
        norm(width), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, second, 3, bias=False), norm(second), nn.SiLU(),
        nn.Flatten(), nn.Linear(second * 4, 7), nn.Tanh(), nn.Linear(7, 3),
    )  # fmt: skip


class Squeeze(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3), nn.Conv2d(width, 3, 3)
        self.down, self.up = nn.Conv2d(width, 5, 1), nn.Conv2d(5, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x).relu()
        return self.conv2(x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid())


def moved(model: nn.Module, seed: int = 4) -> nn.Module:
    """A model whose every parameter and statistic is something of its own."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.3 * torch.randn_like(value)
        for name, value in model.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 * ("var" in name))
    return model.eval()


def apart(one: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        a, b = one(x), other(x)
    return float((a - b).abs().max() / b.abs().max())


VECTOR, IMAGE = torch.randn(4, 5), torch.randn(2, 3, 8, 8)
CASES = {
    "mlp twice": (Perceptron(), Perceptron(12), VECTOR),
    "mlp by a half": (Perceptron(), Perceptron(9), VECTOR),
    "mlp times seven and a bit": (Perceptron(), Perceptron(43), VECTOR),
    "gated mlp": (Gated(), Gated(10), torch.randn(2, 3, 8)),
    "packed gated layers": (Packed(), Packed(7), VECTOR),
    "all channels": (convolutions(), convolutions(8), IMAGE),
    "some channels": (convolutions(), convolutions(6, 5), IMAGE),
    "one after the other": (convolutions(), convolutions(4, 9), IMAGE),
    "squeeze and excite": (Squeeze(), Squeeze(7), IMAGE),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wider_model_computes_what_the_narrow_one_does(case):
    narrow, wide, x = moved(case[0]), moved(case[1], 9), case[2]
    report = idfx.init_(wide, (x,), checkpoint=narrow.state_dict(), widen=True)
    growth = report.certificate.growth
    assert growth.widened and not report.plan.decisions and growth.place == ""
    other = torch.randn(64, *x.shape[1:])
    wide.eval()
    assert apart(wide, narrow, other) < 1e-5 and growth.difference < 1e-5 and growth.preserved == growth.difference
    in_training = apart(wide.train(), narrow.train(), other)  # with the statistics of the batch
    assert in_training < 1e-4


def test_copies_of_a_unit_learn_different_things():
    narrow, wide = moved(Perceptron()), Perceptron(12)
    idfx.init_(wide, (VECTOR,), checkpoint=narrow.state_dict(), widen=True)
    first = wide.fc1[0].weight
    assert torch.equal(first[:6], first[6:]) and torch.equal(first[:6], narrow.fc1[0].weight)
    second = wide.fc2[0].weight
    assert torch.allclose(second[:, :6] + second[:, 6:], narrow.fc2[0].weight, atol=1e-6)
    assert not torch.isclose(second[:, :6], second[:, 6:], rtol=1e-4).any(1).all()
    optimiser = torch.optim.SGD(wide.parameters(), lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        wide(VECTOR).pow(2).sum().backward()
        optimiser.step()
    assert not torch.isclose(first[:6], first[6:], rtol=0, atol=1e-6).all(1).any()


@pytest.mark.parametrize("times", [2, 5])
def test_divided_weights_have_the_variance_of_a_draw_for_their_fan_in(times):
    """The inner weights of n units with the variance v become those of k · n units with the variance v / k."""
    narrow, wide = Perceptron(300), Perceptron(300 * times)
    idfx.init_(wide, (VECTOR,), checkpoint=narrow.state_dict(), widen=True)
    before, after = narrow.fc2[0].weight.detach(), wide.fc2[0].weight.detach()
    assert float(after.pow(2).mean()) == pytest.approx(float(before.pow(2).mean()) / times, rel=0.05)


def test_wider_and_deeper_at_once():
    narrow, large = moved(Perceptron()), Perceptron(15, depth=4)
    report = idfx.init_(large, (VECTOR,), checkpoint=narrow.state_dict(), widen=True, eps=0.0)
    growth = report.certificate.growth
    assert len(growth.blocks) == 2 and growth.difference < 1e-5 and apart(large, narrow, torch.randn(64, 5)) < 1e-5
    large = Perceptron(15, depth=4)
    report = idfx.init_(large, (VECTOR,), checkpoint=narrow.state_dict(), widen=True, eps=1e-2)
    assert report.certificate.growth.preserved < 1e-5 < report.certificate.growth.difference
    assert report.certificate.growth.difference == pytest.approx(apart(large, narrow, VECTOR), rel=1e-3)


def test_half_precision_is_judged_by_its_rounding():
    narrow = moved(Perceptron(dtype=torch.bfloat16))
    wide = Perceptron(12, dtype=torch.bfloat16)
    growth = idfx.init_(wide, (VECTOR.bfloat16(),), checkpoint=narrow.state_dict(), widen=True).certificate.growth
    assert growth.preserved < 0.05


class Normalised(nn.Module):
    """A gated layer in one weight, with a normalisation between that has the halves, too, but is no bias."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(5, 2 * width), nn.BatchNorm1d(2 * width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.norm(self.up(x)).chunk(2, -1)
        return self.down(a.sigmoid() * b)


class Scaled(nn.Module):
    """Divided by a width that the code reads from the tensor."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x).tanh()
        return self.fc2(x / x.shape[-1] ** 0.5)


class Between(nn.Module):
    """A function between two layers that looks at all units."""

    def __init__(self, width: int, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.between = nn.Linear(5, width), nn.Linear(width, 3), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.between(self.fc1(x)))


def normed(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:])


def softmax(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


def halves(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1).cumsum(-1)


class Attending(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.attention, self.out = (
            nn.Linear(5, width),
            nn.MultiheadAttention(width, 2, batch_first=True),
            nn.Linear(width, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.into(x)
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])


def normalised(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 3))


def transposed(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ConvTranspose2d(width, width, 3, groups=width), nn.Conv2d(width, 3, 3)
    )


REFUSED = {
    "split": (lambda wide: Normalised(8 if wide else 4), VECTOR, r"the outputs differ .* from aten\."),
    "width in the code": (lambda wide: Scaled(8 if wide else 4), VECTOR, r"differ .* from aten\.div in the forward"),
    "softmax": (lambda wide: Between(8 if wide else 4, softmax), VECTOR, r"from aten\.softmax"),
    "norm of some units": (lambda wide: Between(6 if wide else 4, normed), VECTOR, r"from aten\.layer_norm"),
    "cumulative": (lambda wide: Between(8 if wide else 4, halves), VECTOR, r"from aten\.(flip|cumsum)"),
    "groups": (lambda wide: convolutions(8 if wide else 4, norm=lambda n: nn.GroupNorm(2, n)), IMAGE,
               r"from aten\.group_norm in 1"),
    "layer norm": (lambda wide: normalised(6 if wide else 4), VECTOR, r"from aten\.layer_norm in 1"),
    "transposed": (lambda wide: transposed(8 if wide else 4), IMAGE, r"does not run with the checkpoint's shapes"),
    "attention": (lambda wide: Attending(8 if wide else 4), torch.randn(2, 3, 5),
                  r"does not run with the checkpoint's shapes"),
    "outputs": (lambda wide: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4 if wide else 3)), VECTOR,
                r"its outputs are \[4, 4\], those of the checkpoint's model \[4, 3\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_does_not_preserve_the_function_is_refused_with_its_place(case):
    make, x, message = case
    with pytest.raises(CertificateError, match=message) as caught:
        idfx.init_(make(True), (x,), checkpoint=moved(make(False)).state_dict(), widen=True)
    assert "grew, but" in str(caught.value) and "expected the same function" in str(caught.value)


def test_a_norm_of_whole_copies_is_preserved():
    """Twice as many units, each twice: mean and variance stay as they are."""
    for narrow, wide in ((Between(4, normed), Between(8, normed)), (normalised(4), normalised(8))):
        growth = idfx.init_(wide, (VECTOR,), checkpoint=moved(narrow).state_dict(), widen=True).certificate.growth
        assert growth.difference < 1e-5 and apart(wide, narrow, torch.randn(64, 5)) < 1e-5


@pytest.mark.parametrize(
    ("narrow", "wide", "message"),
    [
        (Perceptron(12), Perceptron(6), r"fc1\.0\.weight is \[6, 8\] in the model and \[12, 8\] in the checkpoint"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 5)), "no larger kernel"),
        (nn.Sequential(nn.Embedding(5, 4)), nn.Sequential(nn.Embedding(7, 4)), "no new rows"),
    ],
)  # fmt: skip
def test_shapes_that_are_no_wider_layers_are_refused(narrow, wide, message):
    x = torch.tensor([[1, 2]]) if isinstance(wide, nn.Sequential) and isinstance(wide[0], nn.Embedding) else None
    x = x if x is not None else VECTOR if isinstance(wide, Perceptron) else IMAGE
    before = [value.clone() for value in wide.parameters()]
    with pytest.raises(UsageError, match=message):
        idfx.init_(wide, (x,), checkpoint=narrow.state_dict(), widen=True)
    assert all(map(torch.equal, before, wide.parameters()))


def test_widening_is_certified_or_not_done():
    with pytest.raises(UsageError, match="given without a certificate"):
        idfx.init_(Perceptron(12), (VECTOR,), checkpoint=Perceptron().state_dict(), widen=True, certify=False)
    with pytest.raises(UsageError, match="given without a checkpoint"):
        idfx.init_(Perceptron(12), (VECTOR,), widen=True)


def test_the_command_widens_and_writes_nothing_that_is_not_certified(tmp_path):
    spec = tmp_path / "nets.py"
    spec.write_text(
        "from torch import nn\n"
        "def small():\n    return nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3))\n"
        "def wide():\n    return nn.Sequential(nn.Linear(8, 15), nn.GELU(), nn.Linear(15, 3))\n"
        "def other():\n    return nn.Sequential(nn.Linear(8, 15), nn.Softmax(-1), nn.Linear(15, 3))\n"
    )
    small, wide, file, plan = (str(tmp_path / name) for name in ("small.pt", "wide.pt", "refused.pt", "plan.json"))
    run, shape = CliRunner().invoke, ["--input-shape", "2,8"]
    assert run(cli, ["init", f"{spec}:small", *shape, "--scheme", "kaiming", "-o", small]).exit_code == 0
    grow = [f"{spec}:wide", *shape, "--from", small, "--widen"]
    done = run(cli, ["init", *grow, "-o", wide])
    assert done.exit_code == 0 and "3 widened tensors change the outputs by" in done.output
    assert run(cli, ["plan", *grow, "-o", plan]).exit_code == 0
    again = run(cli, ["init", *grow, "--plan", plan, "-o", str(tmp_path / "again.pt")])
    assert again.exit_code == 0
    assert all(map(torch.equal, torch.load(wide).values(), torch.load(tmp_path / "again.pt").values()))
    refused = run(cli, ["init", f"{spec}:other", *shape, "--from", small, "--widen", "-o", file])
    assert refused.exit_code != 0 and not (tmp_path / "refused.pt").exists()
    assert run(cli, ["init", *grow, "--no-certify", "-o", file]).exit_code != 0
