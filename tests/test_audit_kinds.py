"""The audit of strays, epsilons, clones, statistics, tied tables and experts: each defect, and its healthy twin."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import idfx
from idfx.core.errors import PlanError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(64, (4, 8), generator=torch.Generator().manual_seed(0))


def found(model: nn.Module, *inputs: Tensor) -> list[tuple[str, str, str]]:
    findings = idfx.audit(model, inputs or (X,), batch=False).at_least("warning")
    return [(f.severity, f.metric, f.parameter) for f in findings]


class Listed(nn.Module):
    """A layer in a Python list, or in one that torch knows."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
        self.layers = layers if hidden else nn.ModuleList(layers)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def test_layers_in_a_list_are_no_parameters():
    assert found(Listed(hidden=False)) == []
    names = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert found(Listed(hidden=True)) == [("warning", "strays", name) for name in names]
    assert len(list(Listed(hidden=True).parameters())) == 2


@pytest.mark.parametrize("anew", [True, False])
def test_layers_made_in_the_forward_are_drawn_anew(anew):
    class Making(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.kept = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn(8)
            x = x @ nn.functional.dropout(torch.eye(8), 0.1, self.training)  # drops nothing here
            return (nn.Linear(8, 4) if anew else self.kept)(self.fc(x) + noise) * torch.rand(4)

    torch.manual_seed(0)
    told = [entry for entry in found(Making()) if entry[1] == "strays"]
    assert told == ([("warning", "strays", "")] if anew else [])
    note = [note for note in idfx.plan(idfx.analyze(Making(), (X,))).notes if "no parameters" in note]
    assert len(note) == anew


class Norm(nn.Module):
    """A normalisation by hand."""

    def __init__(self, eps: float, place: str = "inside") -> None:
        super().__init__()
        self.eps, self.place, self.fc = eps, place, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.place == "inside":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.place == "scalar":  # a tensor without axes takes the dtype of the other
            return x / (x.norm(dim=-1, keepdim=True) + torch.tensor(self.eps, dtype=torch.float32))
        if self.place == "bound":
            return nn.functional.normalize(x, eps=self.eps)
        if self.place == "float32":
            return (x.float() / (x.float().pow(2).mean(-1, keepdim=True) + self.eps).sqrt()).to(x.dtype)
        return nn.functional.layer_norm(x, (8,), eps=self.eps) + self.eps


@pytest.mark.parametrize("place", ["inside", "bound", "scalar", "float32", "operator"])
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 1e-12), (torch.float16, 1e-6), (torch.float32, 1e-12)])
def test_an_eps_that_the_dtype_rounds_to_0(place, dtype, eps):
    torch.manual_seed(0)
    model = Norm(eps, place).to(dtype)
    told = [entry for entry in found(model, X.to(dtype)) if entry[1] == "epsilon"]
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.zero_()
        broken = bool(model(X.to(dtype)).isnan().any())
    assert bool(told) == broken == (place in ("inside", "bound", "scalar") and eps == 1e-12 and dtype == torch.float16)


def test_copies_of_one_layer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    copied = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    matrices = [name for name, value in copied.layers[1].named_parameters() if value.dim() == 2]
    x = torch.randn(2, 5, 16)
    assert found(copied, x) == [("warning", "clones", f"layers.1.{name}") for name in matrices]
    for module in copied.layers[1].modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    nn.init.xavier_uniform_(copied.layers[1].self_attn.in_proj_weight)
    assert found(copied, x) == []
    shared = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    assert found(nn.Sequential(shared, shared)) == []  # one tensor is no copy
    frozen = copy.deepcopy(shared)
    frozen.requires_grad_(False)
    assert found(nn.Sequential(shared, frozen)) == []
    assert found(nn.Sequential(shared, copy.deepcopy(shared))) == [("warning", "clones", "1.0.weight")]


class Experts(nn.Module):
    """Stacked experts behind a router."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.fc = nn.Linear(32, count), nn.Parameter(torch.empty(count, 32, 64))
        for expert in self.fc.data:
            nn.init.xavier_normal_(expert)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("ebi,eio->ebo", x.expand(len(self.fc), -1, -1), self.fc).transpose(0, 1)
        return self.head((self.router(x).softmax(-1)[..., None] * y).sum(1).tanh())


def test_experts_that_are_equal():
    model, x = Experts(), torch.randn(4, 32)
    assert found(model, x) == []
    model.fc.data[3:5] = model.fc.data[0]
    (clones,) = idfx.audit(model, (x,), batch=False).at_least("warning")
    assert (clones.severity, clones.metric, clones.parameter, clones.value) == ("warning", "clones", "fc", 2)


@pytest.mark.parametrize("draw", [nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.kaiming_normal_])
def test_a_fan_that_counted_the_experts(draw):
    """torch takes a stack of 8 matrices (32, 64) for a kernel of 64 taps."""
    model, x = Experts(), torch.randn(4, 32)
    draw(model.fc.data)
    (scale,) = idfx.audit(model, (x,), batch=False).at_least("warning")
    assert (scale.metric, scale.parameter) == ("scale", "fc")
    fan = (32 + 8) * 64 / 2 if draw is nn.init.xavier_normal_ else 32 * 64
    gain = 1.0 if draw is nn.init.xavier_normal_ else math.sqrt(2)
    assert f"{gain:.3g} / √{fan:g}" in scale.message and scale.value == pytest.approx(
        gain * (32 / fan) ** 0.5, rel=0.03
    )


def test_a_fixed_deviation_is_no_fan():
    """0.02 for all weights is also √2 / √4,900, and the fan of a stack may be close to that."""
    model, x = Experts(), torch.randn(4, 32)
    for weight in (model.fc.data, model.head.weight.data):
        nn.init.normal_(weight, std=math.sqrt(2 / (32 * 64)))
    assert found(model, x) == []
    nn.init.xavier_normal_(model.head.weight)
    assert found(model, x) == [("warning", "scale", "fc")]


class Tied(nn.Module):
    """A head that is its own table, after a normalisation."""

    def __init__(self, size: float, factor: float = 1.0, behind: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.factor, self.behind = nn.Embedding(64, 64), nn.LayerNorm(64), factor, behind
        nn.init.normal_(self.embed.weight, std=size)
        self.head = nn.Linear(64, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(ids)) * self.factor) * self.behind


def test_a_tied_table_is_judged_as_the_head_that_it_is():
    assert found(Tied(0.02), IDS) == [] == found(Tied(1.0, factor=64**-0.5), IDS) == found(Tied(1.0, behind=0.1), IDS)
    model = Tied(1.0)
    (scale,) = idfx.audit(model, (IDS,), batch=False).at_least("warning")
    rms = float(model.embed.weight.detach().square().mean().sqrt())
    assert (scale.severity, scale.metric, scale.parameter) == ("warning", "scale", "embed.weight")
    assert scale.value == pytest.approx(rms * 8)
    assert float(model(IDS).detach().std()) > 7  # not 1, as the logits of a start should be
    assert found(Tied(3.0), IDS) == [("error", "scale", "embed.weight")]


STATISTICS = {
    "variance far below eps": ("running_var", 1e-12, "error", "running_var"),
    "mean beside a variance of 1": ("running_mean", 0.5, "warning", "running_mean"),
    "variance without a batch": ("running_var", 4.0, "warning", "running_var"),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics_that_no_start_has(case):
    name, value, severity, place = STATISTICS[case]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    assert found(model) == []
    getattr(model[1], name).fill_(value)
    assert found(model) == [(severity, "statistics", f"1.{place}")]


def test_statistics_of_training_are_as_they_should_be():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    for _ in range(3):
        model(torch.randn(32, 8))
    assert found(model.eval()) == []


class Auxiliary(nn.Module):
    """A head that runs in training mode alone, with a normalisation that takes more than one sample."""

    def __init__(self, size: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(8, 32), nn.Linear(32, 4)
        self.aux, self.norm, self.idle = nn.Linear(32, 4), nn.BatchNorm1d(4), nn.Linear(2, 2)
        nn.init.normal_(self.aux.weight, std=size)

    def forward(self, x: Tensor) -> object:
        x = torch.relu(self.stem(x))
        return (self.head(x), self.norm(self.aux(x))) if self.training else self.head(x)


@pytest.mark.parametrize("samples", [1, 4])
def test_a_head_of_training_mode_is_judged_on_its_path(samples):
    unused = [("warning", "unused", f"idle.{name}") for name in ("weight", "bias")]
    model = Auxiliary()
    model.stem.eval()  # flags are set module by module, and put back
    modes = {name: module.training for name, module in model.named_modules()}
    audit = idfx.audit(model, (X[:samples],), batch=False)
    assert [(f.severity, f.metric, f.parameter) for f in audit.at_least("warning")] == unused
    infos = [f for f in audit.findings if f.metric == "unused" and f.severity == "info"]
    names = ["aux.weight", "aux.bias", "norm.weight", "norm.bias"]
    assert [f.parameter for f in infos] == names and all("training mode uses it" in f.message for f in infos)
    assert {name: module.training for name, module in model.named_modules()} == modes
    (scale,) = idfx.audit(Auxiliary(5.0), (X[:samples],), batch=False).at_least("error")
    assert (scale.metric, scale.parameter) == ("scale", "aux.weight") and "in training mode" in scale.message
    rms = float(Auxiliary(5.0).aux.weight.detach().square().mean().sqrt())
    assert scale.value == pytest.approx(rms * 32**0.5)


class Cut(nn.Module):
    """A layer under no_grad, one whose output is detached, and one that both modes train."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head, self.cut = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4), cut

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cut != "no_grad" and not self._evaluates()):
            x = torch.relu(self.first(x))
        y = self.second(x)
        y = y.detach() if self.cut == "detach" else y.data if self.cut == "data" else y
        return self.head(torch.relu(x + y if self.cut != "values" or x.sum() < 1e9 else y))

    def _evaluates(self) -> bool:
        return self.cut == "evaluation" and not self.training


CUTS = {"none": (), "no_grad": ("first",), "detach": ("second",), "data": ("second",), "evaluation": (), "values": ()}


@pytest.mark.parametrize("cut", CUTS)
def test_what_the_forward_cuts_off_from_gradients(cut):
    model = Cut(cut)
    told = [entry for entry in found(model) if entry[1] == "cut"]
    names = [f"{module}.{kind}" for module in CUTS[cut] for kind in ("weight", "bias")]
    assert told == [("warning", "cut", name) for name in names]
    model.train()(X).sum().backward()
    assert {name for name, one in model.named_parameters() if one.grad is None} == set(names)
    model.requires_grad_(False)
    assert [entry for entry in found(model) if entry[1] == "cut"] == []


class Queries(nn.Module):
    """Learned queries that attend to the inputs; pooled, or each with an output of its own."""

    def __init__(self, start: Tensor, pooled: bool = True, places: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.attend = nn.Linear(8, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.queries, self.head, self.pooled = nn.Parameter(start), nn.Linear(16, 4), pooled
        self.places = nn.Parameter(torch.randn(start.shape[1], 16)) if places else None

    def forward(self, x: Tensor) -> Tensor:
        q = self.queries.expand(len(x), -1, -1)
        q = q if self.places is None else q + self.places
        y = self.head(self.attend(q, self.inp(x), self.inp(x), need_weights=False)[0])
        return y.mean(1) if self.pooled else y


@pytest.mark.parametrize(
    ("model", "same"),
    [
        (Queries(torch.zeros(1, 5, 16)), True),
        (Queries(torch.ones(1, 5, 16)), True),
        (Queries(torch.randn(1, 5, 16)), False),
        (Queries(torch.zeros(1, 5, 16), pooled=False), False),
        (Queries(torch.zeros(1, 5, 16), places=True), False),
        (Queries(torch.zeros(1, 1, 16)), False),
    ],
)
def test_queries_that_nothing_tells_apart(model, same):
    x = torch.randn(6, 7, 8, generator=torch.Generator().manual_seed(0))
    told = idfx.audit(model, (x,)).findings
    assert [f.parameter for f in told if f.metric == "symmetry"] == (["queries"] if same else [])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimiser.zero_grad()
        y = model(x)
        (y - torch.randn(y.shape, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimiser.step()
    rows = model.queries.detach()[0]
    assert bool(torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-5)) == (same or len(rows) == 1)


class Table(nn.Module):
    """A table, a position, a buffer and a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.place, self.head = nn.Embedding(64, 8), nn.Parameter(torch.zeros(8, 8)), nn.Linear(8, 8)
        self.register_buffer("window", torch.ones(8), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head((self.embed(ids) + self.place) * self.window)


@pytest.mark.parametrize(("name", "value"), [("embed.weight", 3e8), ("place", math.nan), ("window", 1.23456e9)])
def test_init_does_not_keep_memory_that_nobody_wrote(name, value):
    idfx.init_(Table(), (IDS,))
    model = Table()
    with torch.no_grad():
        dict([*model.named_parameters(), *model.named_buffers()])[name].flatten()[:3] = torch.tensor(
            [0.0, value, 1.7 * value]
        )
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(PlanError, match=rf"Table: {name}: the plan keeps it, but it holds NaN, Inf or numbers"):
        idfx.init_(model, (IDS,))
    assert all(torch.equal(tensor, before[key]) or key == name for key, tensor in model.state_dict().items())
    if name != "window":
        idfx.init_(model, (IDS,), set={name: "normal(std=0.02)"})
    model = Table()
    with torch.no_grad():
        model.head.weight.fill_(math.nan)  # it is written
    assert idfx.init_(model, (IDS,)).certificate.passed
