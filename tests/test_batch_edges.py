"""What one batch shows of models that are out of the ordinary: expectations come from torch, or from the formula."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import idfx
from idfx.core.findings import Audit
from idfx.measuring.observation import unit_gradients
from idfx.measuring.statistics import flat_share

BATCH = ["forward", "backward", "jacobian"]


class Written(nn.Module):
    """A forward that is a function, with parts."""

    def __init__(self, function: Callable[..., object], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def warned(audit: Audit) -> list[tuple[str, str]]:
    return [(found.metric, found.message) for found in audit.at_least("warning")]


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(
    ("function", "flat"),
    [
        (torch.square, math.erf(0.005 / math.sqrt(2))),  # |2x| < 0.01
        (lambda x: torch.relu(x).square(), 0.5 + math.erf(0.005 / math.sqrt(2)) / 2),
        (torch.abs, 0.0),
        (torch.relu, 0.5),
    ],
    ids=["square", "squared relu", "abs", "relu"],
)
def test_saturation_does_not_depend_on_the_unit_of_powers(
    function: Callable[[Tensor], Tensor], flat: float, size: float
) -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(1)) * size
    assert flat_share(function, (x,), {}) == pytest.approx(flat, abs=0.01)


def test_a_reciprocal_root_of_a_large_variance_is_no_flat_function() -> None:
    variance = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 1000 + 5000
    assert flat_share(torch.rsqrt, (variance,), {}) == 0
    assert flat_share(torch.log, (variance,), {}) == 0


def test_saturation_is_told_only_of_functions_that_act_entry_by_entry_and_can_be_flat() -> None:
    x = torch.randn(4, 3, 8)
    for axis in (1, 2, -1):
        assert math.isnan(flat_share(functional.log_softmax, (x, axis), {}))
        assert math.isnan(flat_share(torch.cumsum, (x, axis), {}))
    assert math.isnan(flat_share(torch.exp, (x - 9,), {}))
    assert flat_share(torch.tanh, (x + 9,), {}) == 1


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_a_model_that_ends_in_log_softmax(axis: int) -> None:
    model = Written(lambda self, x: functional.log_softmax(self.fc(x), axis), fc=nn.Linear(8, 16))
    assert not warned(idfx.audit(model, (torch.randn(6, 3, 8),), only=BATCH))


def test_a_root_mean_square_written_by_hand_is_not_saturated_by_small_embeddings() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(50, 32)
    nn.init.normal_(table.weight, std=1e-3)

    def forward(self: Written, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-8))

    model = Written(forward, table=table, head=nn.Linear(32, 50))
    assert not warned(idfx.audit(model, (torch.randint(0, 50, (8, 12)),), only=BATCH))


def test_a_backward_pass_that_torch_refuses_is_left_out_with_its_words() -> None:
    model = Written(lambda self, x: self.two(self.one(x).exp().add_(1)), one=nn.Linear(8, 8), two=nn.Linear(8, 4))
    x = torch.randn(16, 8)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(x).sum().backward()
    model.zero_grad()
    audit = idfx.audit(model, (x,), only=BATCH)
    assert audit.metrics == ("forward",)
    assert "modified by an inplace operation" in audit.left_out["backward"]
    assert len(audit.profile) == 3 and all(point.gradient is None for point in audit.profile)


@pytest.mark.parametrize("end", [lambda y: y.argmax(-1), lambda y: y[:0]], ids=["whole numbers", "nothing"])
def test_outputs_without_a_floating_number_send_no_gradient_and_no_warning(end: Callable[[Tensor], Tensor]) -> None:
    model = Written(lambda self, x: end(self.fc(x)), fc=nn.Linear(8, 4))
    audit = idfx.audit(model, (torch.randn(16, 8),), only=BATCH, also=["curvature"])
    assert not warned(audit)
    assert "no output is floating-point" in audit.left_out["backward"]
    assert "no floating-point output" in audit.left_out["curvature"]


def test_a_detached_output_is_still_told() -> None:
    model = Written(lambda self, x: self.fc(x).detach(), fc=nn.Linear(8, 4))
    assert (
        "it gets no gradient from this batch"
        in dict(warned(idfx.audit(model, (torch.randn(16, 8),), only=["backward"])))["backward"]
    )


def test_gradients_of_complex_parameters_count_both_parts() -> None:
    def forward(self: Written, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) @ self.mix, n=x.shape[-1])

    torch.manual_seed(0)
    model = Written(forward, mix=nn.Parameter(torch.randn(9, 9, dtype=torch.complex64) / 3))
    x = torch.randn(8, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audit = idfx.audit(model, (x,), only=["backward"], also=["curvature"])
    output = model(x)
    output.backward(unit_gradients([output], 0)[0])
    expected = math.hypot(float(model.mix.grad.real.norm()), float(model.mix.grad.imag.norm()))
    assert audit.parameters[0].gradient == pytest.approx(expected, rel=1e-5)
    assert "mix is complex" in audit.left_out["curvature"]


def test_experts_that_another_batch_is_routed_to_otherwise() -> None:
    def forward(self: Written, x: Tensor) -> Tensor:
        value, chosen = self.router(x).softmax(-1).max(-1, keepdim=True)
        for number, expert in enumerate(self.experts):
            rows = (chosen[:, 0] == number).nonzero()[:, 0]
            x = x.index_add(0, rows, value[rows] * expert(x[rows]))
        return x

    torch.manual_seed(0)
    model = Written(forward, router=nn.Linear(16, 4), experts=nn.ModuleList(nn.Linear(16, 16) for _ in range(4)))
    audit = idfx.audit(model, (torch.randn(33, 16),), only=BATCH)
    assert audit.metrics == ("backward", "forward", "jacobian")
    assert audit.measures["forward"]["correlation"] == "a second batch does not fit the graph of the first one"
    assert all(point.correlation is None for point in audit.profile)


def test_batch_normalisation_of_one_number_per_channel_keeps_its_running_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(1, 16)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model.train()(x)
    audit = idfx.audit(model, (x,), only=BATCH)
    assert not warned(audit)
    assert audit.profile[-1].mean == pytest.approx(model.eval()(x).mean().item(), abs=1e-6)


def test_a_batch_normalisation_that_is_called_twice_has_the_statistics_of_each_call() -> None:
    torch.manual_seed(0)
    norm, first, head = nn.BatchNorm1d(6), nn.Linear(4, 6), nn.Linear(12, 3)

    def forward(self: Written, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.norm(self.first(x)), self.norm(self.first(y))], -1))

    x, y = torch.randn(5, 4) * 100 + 5, torch.randn(5, 4) * 0.01
    model = Written(forward, norm=norm, first=first, head=head)
    (found,) = idfx.audit(model, (x, y), only=["jacobian"]).spectra
    stds = [(first(z).var(0, correction=0) + norm.eps).sqrt() for z in (x, y)]
    # Samples do not mix: for each the matrix is [H₁ D₁ W, H₂ D₂ W].
    parts = (head.weight[:, :6] / stds[0] @ first.weight, head.weight[:, 6:] / stds[1] @ first.weight)
    one = torch.cat(parts, 1).detach()
    assert found.largest == pytest.approx(float(torch.linalg.svdvals(one)[0]), rel=1e-4)
    assert found.mean_square == pytest.approx(float(one.square().sum()) / 3, rel=1e-4)


def test_a_model_on_the_meta_device_is_refused() -> None:
    with pytest.raises(idfx.IdfxError, match=r"weight is on the meta device; expected values\."):
        idfx.audit(nn.Linear(4, 4, device="meta"), (torch.ones(2, 4),))


def test_outputs_that_are_not_numbers_are_not_called_the_same() -> None:
    model = Written(lambda self, x: torch.log(self.fc(x)), fc=nn.Linear(8, 16))
    messages = [message for _, message in warned(idfx.audit(model, (torch.randn(16, 8),), only=["forward"]))]
    assert messages == ["the values after fc.weight contain NaN or Inf"]


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_a_batch_of_one_number_throughout_finds_no_fault_in_a_sound_model(number: float) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc(self.norm(x).relu())

    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(5)), nn.Linear(32, 4))
    audit = idfx.audit(model, (torch.full((8, 32), number),), only=BATCH)
    assert not warned(audit)
    assert str(audit.measures["forward"]["inputs"]).startswith("constant")
    nn.init.constant_(model[2].fc.weight, math.inf)
    assert idfx.audit(model, (torch.full((8, 32), number),), only=BATCH).verdict == "error"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"only": "forward"}, r"metrics 'forward': a string; expected several of them\. Write \['forward'\]"),
        ({"example_kwargs": ["forward"]}, "example_kwargs: a list; expected inputs by name"),
        ({"seed": 2**64}, "seed=18446744073709551616; expected a number"),
        ({"budget": None}, "budget=None; expected seconds above 0"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_in_one_line(given: dict[str, object], words: str) -> None:
    with pytest.raises(idfx.IdfxError, match=words):
        idfx.audit(nn.Linear(4, 4), (torch.ones(2, 4),), **given)  # type: ignore[arg-type]
