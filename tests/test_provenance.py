"""What an author set on purpose is kept; draws, neutral constants and trained values are not taken for it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import idfx
from idfx.building.build import build
from idfx.capture.tracing import capture
from idfx.planning.make import make_plan


class Net(nn.Module):
    """A stem, a residual block and a head."""

    def __init__(self, width: int = 16, classes: int = 6) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(8, width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.fc2(torch.tanh(self.fc1(self.norm(x))))
        return self.head(x)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
Author = Callable[[Net], object]


def net(author: Author = lambda made: None, **options: int) -> Net:
    torch.manual_seed(0)
    made = Net(**options)
    with torch.no_grad():
        author(made)
    return made


def log_uniform(bias: Tensor) -> Tensor:
    """The inverse of softplus on numbers from 0.001 to 0.1, as in Mamba."""
    step = torch.exp(torch.rand(bias.shape) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3))
    return bias.copy_(step + torch.log(-torch.expm1(-step)))


def added(bias: Tensor) -> Tensor:
    """A prior on most entries of a draw, as in YOLO."""
    bias[2:] += -4.6
    return bias


ON_PURPOSE: dict[str, tuple[str, Author]] = {
    "a prior": ("head.bias", lambda made: made.head.bias.fill_(-4.6)),
    "a prior on some entries of a draw": ("head.bias", lambda made: made.head.bias[2:4].fill_(-4.6)),
    "a prior added to a draw": ("fc1.bias", lambda made: added(made.fc1.bias)),
    "an identity transform": ("head.bias", lambda made: made.head.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))),
    "an inverse softplus": ("fc1.bias", lambda made: log_uniform(made.fc1.bias)),
    "phases": ("stem.bias", lambda made: made.stem.bias.uniform_(0, 2 * math.pi)),
    "a ramp around 0": ("stem.bias", lambda made: made.stem.bias.copy_(torch.linspace(-1, 1, 16))),
    "a zero head": ("head.weight", lambda made: made.head.weight.zero_()),
    "an average": ("head.weight", lambda made: made.head.weight.fill_(1 / 16)),
    "a permutation": ("stem.weight", lambda made: made.stem.weight.copy_(torch.eye(8).flip(0).repeat(2, 1))),
}

NOT_ON_PURPOSE: dict[str, Author] = {
    "the classes' own": lambda made: None,
    "small draws": lambda made: [p.normal_(std=1e-4) for p in made.parameters() if p.dim() > 1],
    "truncated draws": lambda made: [nn.init.trunc_normal_(p, std=0.02) for p in made.parameters() if p.dim() > 1],
    "biases drawn around 0": lambda made: [p.normal_(std=1e-6) for n, p in made.named_parameters() if "bias" in n],
    "zero biases": lambda made: [p.zero_() for n, p in made.named_parameters() if "bias" in n],
    "orthogonal weights": lambda made: [nn.init.orthogonal_(p) for p in made.parameters() if p.dim() > 1],
    "sparse weights": lambda made: [nn.init.sparse_(p, 0.8) for p in made.parameters() if p.dim() > 1],
    "half precision": lambda made: [p.copy_(p.bfloat16()) for p in made.parameters()],
    "a zero end": lambda made: made.fc2.weight.zero_(),
    "a zero inner weight, which closes the block": lambda made: made.fc1.weight.zero_(),
    "a norm scale of 0, which closes the block": lambda made: made.norm.weight.zero_(),
}


@pytest.mark.parametrize("what", ON_PURPOSE)
@pytest.mark.parametrize("scheme", ["idinit", "idfx", "kaiming"])
def test_what_was_set_on_purpose_stays(what: str, scheme: str) -> None:
    name, author = ON_PURPOSE[what]
    model, before = net(author), net(author)
    report = idfx.init_(model, (X,), scheme=scheme)
    assert torch.equal(model.get_parameter(name), before.get_parameter(name))
    assert [kept for kept, why in report.plan.kept.items() if why.startswith("set on purpose: ")] == [name]
    assert any(name in note and "--overwrite-deliberate" in note for note in report.plan.notes)


@pytest.mark.parametrize("what", ON_PURPOSE)
def test_an_option_overwrites_it(what: str) -> None:
    author, plain = net(ON_PURPOSE[what][1]), net()
    idfx.init_(author, (X,), overwrite_deliberate=True)
    idfx.init_(plain, (X,))
    assert all(map(torch.equal, author.parameters(), plain.parameters()))


@pytest.mark.parametrize("what", NOT_ON_PURPOSE)
def test_draws_and_neutral_constants_are_written(what: str) -> None:
    model, plain = net(NOT_ON_PURPOSE[what]), net()
    report = idfx.init_(model, (X,))
    idfx.init_(plain, (X,))
    assert report.plan.kept == {} and report.plan.notes == ()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


@pytest.mark.parametrize("seed", range(200))
def test_no_draw_is_taken_for_a_purpose(seed: int) -> None:
    """Also in half precision, where torch's uniform draws have 256 values."""
    torch.manual_seed(seed)
    kind = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
    structure = _structure(kind)
    with torch.no_grad():
        for module in structure[0].modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    assert make_plan(structure[1]).kept == {}


def _structure(kind: torch.dtype, kept: dict[torch.dtype, tuple[Net, idfx.Structure]] = {}) -> tuple:  # noqa: B006
    if kind not in kept:
        made = Net(width=24, classes=3).to(kind)
        kept[kind] = made, idfx.analyze(made, (X.to(kind),))
    return kept[kind]


def test_a_trained_model_is_initialised_as_a_fresh_one() -> None:
    model = net()
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        loss = functional.cross_entropy(model(X) * 3, torch.tensor([0, 1, 2, 1]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fresh = net()
    report = idfx.init_(model, (X,))
    idfx.init_(fresh, (X,))
    assert report.plan.kept == {}
    assert all(map(torch.equal, model.parameters(), fresh.parameters()))


def test_a_prior_on_a_trained_model_stays() -> None:
    """Training does not leave one value throughout."""
    model = net()
    with torch.no_grad():
        model.norm.weight.add_(torch.rand(16))
        model.fc1.bias.uniform_(0, 1)
        model.head.bias.fill_(-4.6)
    report = idfx.init_(model, (X,))
    assert list(report.plan.kept) == ["head.bias"]
    assert "the model is trained" in report.plan.kept["head.bias"]


class Centred(Net):
    """The scale of its norm is added to 1, so that 0 is neutral."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        normed = functional.layer_norm(x, (16,), self.norm.weight + 1, self.norm.bias)
        return self.head(x + self.fc2(torch.tanh(self.fc1(normed))))


def test_a_norm_scale_that_is_added_to_1_stays_0() -> None:
    torch.manual_seed(0)
    model = Centred()
    nn.init.zeros_(model.norm.weight)
    idfx.init_(model, (X,))
    assert not model.norm.weight.any()


class Stepped(nn.Module):
    """A step size by softplus, as in Mamba, and a gate by sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.step, self.gate, self.head = (
            nn.LayerNorm(8),
            nn.Linear(8, 16),
            nn.Linear(8, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.head(functional.softplus(self.step(x)) * torch.sigmoid(self.gate(x)))


def test_a_trained_level_stays_where_0_is_not_neutral() -> None:
    """softplus(0) = 0.69 is far from a step of 0.001 to 0.1; what training made of a gate around 0 does not stay."""
    torch.manual_seed(0)
    model = Stepped()
    with torch.no_grad():
        model.norm.weight.add_(torch.rand(8))
        log_uniform(model.step.bias)
        model.gate.bias.normal_(1.0, 0.8)
        model.head.bias.uniform_(1, 2)
    assert float(model.gate.bias.min()) < 0 < float(model.gate.bias.max())
    assert list(idfx.init_(model, (X,)).plan.kept) == ["step.bias"]


def test_a_bias_behind_an_end_is_written_and_a_note_says_so() -> None:
    model = net(lambda made: made.fc2.bias.fill_(0.5))
    report = idfx.init_(model, (X,))
    assert not model.fc2.bias.any() and report.certificate is not None and report.certificate.certified == 1
    assert [note for note in report.plan.notes if "fc2.bias (every entry is 0.5)" in note]
    kaiming = net(lambda made: made.fc2.bias.fill_(0.5))
    idfx.init_(kaiming, (X,), scheme="kaiming")  # closes no block
    assert bool((kaiming.fc2.bias == 0.5).all())


def test_what_idfx_wrote_is_no_purpose() -> None:
    model, plain = net(), net()
    idfx.init_(model, (X,), loosen="none")
    idfx.init_(model, (X,), scheme="zero")
    report = idfx.init_(model, (X,), scheme="orthogonal")
    idfx.init_(plain, (X,), scheme="orthogonal")
    assert report.plan.kept == {}
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_model_without_values_is_initialised(value: float) -> None:
    """`to_empty` often gives zeros; zero weights in series are no design."""
    model = net(lambda made: [p.fill_(0.0 if p.dim() > 1 else value) for p in made.parameters()])
    fresh = net()
    idfx.init_(model, (X,))
    idfx.init_(fresh, (X,))
    assert all(map(torch.equal, model.parameters(), fresh.parameters()))


def test_zero_weights_in_series_are_written() -> None:
    model = net(lambda made: (made.head.weight.zero_(), made.fc1.weight.zero_(), made.stem.weight.zero_()))
    assert list(idfx.init_(model, (X,)).plan.kept) == ["head.weight"]  # fc1 reads stem; the head reads fc2 as well


def test_deferred_draws_stay_deferred_and_are_judged_by_what_they_will_be(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import math, torch\nfrom torch import nn\n\n\n"
        "def factory():\n"
        "    made = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))\n"
        "    nn.init.uniform_(made[2].bias, 0, 2 * math.pi)\n"
        "    nn.init.constant_(made[4].bias, -4.6)\n"
        "    return made\n"
    )
    built = build(f"{tmp_path / 'nets.py'}:factory", input_shapes=["2,8"], device="cpu")
    pending = built.pending.names(built.model)
    assert pending == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight"}
    from idfx.analysis.structure import build_structure

    plan = make_plan(build_structure(capture(built.model, built.example)))
    assert list(plan.kept) == ["2.bias", "4.bias"]
    assert built.pending.names(built.model) == pending
    built.pending.materialize(built.model)
    assert 2 < float(built.model[2].bias.mean()) < 5 and "from 0." in plan.kept["2.bias"]


def test_explain_shows_the_value() -> None:
    from idfx.planning.explain import explain

    structure = idfx.analyze(net(ON_PURPOSE["a prior"][1]), (X,))
    assert "every entry is -4.6" in explain(structure, idfx.plan(structure), "head.bias").kept


def test_a_copy_is_judged_alike() -> None:
    model = net(ON_PURPOSE["an inverse softplus"][1])
    twin = copy.deepcopy(model)
    assert idfx.init_(model, (X,)).plan.kept == idfx.init_(twin, (X,)).plan.kept


class Adapter(nn.Module):
    """A frozen layer beside two trainable ones, the second of which starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def test_an_adapter_that_starts_as_nothing_goes_on_doing_so_exactly() -> None:
    model, x = Adapter(), torch.randn(4, 8)
    before = model(x)
    report = idfx.init_(model, (x,))
    assert torch.equal(model(x), before)
    assert report.certificate.certified == 1 and report.certificate.start.changed == 0
    model = Adapter().requires_grad_(True)  # nothing is frozen: the end starts near zero, as the method has it
    idfx.init_(model, (x,))
    assert model.up.weight.any()
