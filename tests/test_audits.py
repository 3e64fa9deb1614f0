"""The audit finds each planted defect at its place, and no error in the same models without it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

import idfx
from idfx.audits.metric import METRICS
from idfx.audits.ties import declared
from idfx.core.errors import UsageError
from idfx.core.records import Layout
from idfx.fills.folding import matrices_of


class Block(nn.Module):
    def __init__(self, width: int, act: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), act
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.fc2(self.act(self.fc1(self.norm(x))))


class Net(nn.Module):
    """A stem, two blocks, a layer and a normalisation in the main stem, a head."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 32)
        self.blocks = nn.Sequential(Block(32, act), Block(32, act))
        self.between, self.norm, self.head = nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 5)
        self.register_buffer("table", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.between(self.blocks(self.stem(x)))) * self.table.sum())


audited = functools.partial(idfx.audit, batch=False)  # what is found without data
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def net(**words: object) -> Net:
    torch.manual_seed(0)
    return Net(**words)  # type: ignore[arg-type]


@torch.no_grad()
def put(model: nn.Module, name: str, value: object) -> None:
    """Write a value, or what a function makes of the old one, into a parameter or buffer."""
    tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
    tensor.copy_(value(tensor.clone()) if callable(value) else torch.as_tensor(value))


def poked(index: int, value: float) -> Callable[[Tensor], Tensor]:
    return lambda old: old.flatten().index_fill(0, torch.tensor(index), value).view_as(old)


def doubled(old: Tensor) -> Tensor:
    old[3] = old[1]
    return old


def low(share: float) -> Callable[[Tensor], Tensor]:
    """Fewer directions: the last rows are mixtures of the first."""

    def make(old: Tensor) -> Tensor:
        flat = old.flatten(1).double()
        kept = max(1, int(flat.shape[0] * (1 - share)))
        mixed = torch.randn(flat.shape[0] - kept, kept, dtype=torch.float64) / kept**0.5
        return torch.cat([flat[:kept], mixed @ flat[:kept]]).float().view_as(old)

    return make


DEFECTS = [
    ("error", "finite", "blocks.1.fc1.weight", "blocks.1", poked(5, float("nan"))),
    ("error", "finite", "head.bias", "head", poked(0, float("inf"))),
    ("error", "finite", "table", "Net", poked(0, float("inf"))),
    ("warning", "finite", "between.weight", "between", lambda old: old * 1e-38),
    ("error", "scale", "blocks.0.fc1.weight", "blocks.0", lambda old: old * 30),
    ("warning", "scale", "blocks.0.fc1.weight", "blocks.0", lambda old: old * 15),
    ("warning", "scale", "between.weight", "between", lambda old: old * 1e-3),
    ("error", "scale", "norm.weight", "norm", 0.0),
    ("info", "scale", "norm.weight", "norm", 0.5),
    ("info", "scale", "stem.bias", "stem", 0.25),
    ("error", "replicas", "blocks.0.fc1.weight", "blocks.0", 0.1),
    ("warning", "replicas", "between.weight", "between", doubled),
    ("warning", "rank", "between.weight", "between", low(0.25)),
    ("error", "rank", "between.weight", "between", low(0.75)),
]


@pytest.mark.parametrize(("severity", "metric", "name", "site", "value"), DEFECTS)
def test_a_planted_defect_is_found_at_its_place(severity, metric, name, site, value):
    model = net()
    assert audited(model, (X,)).at_least("warning") == ()
    put(model, name, value)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = [f for f in audited(model, (X,)).findings if f.metric == metric and f.parameter == name]
    assert [(f.severity, f.site) for f in found] == [(severity, site)], found
    assert found[0].message and found[0].remedy
    assert all(torch.equal(t, before[n]) or not t.isfinite().all() for n, t in model.state_dict().items())


def test_nothing_else_is_an_error_beside_the_planted_defect():
    for severity, metric, name, _, value in DEFECTS:
        model = net()
        put(model, name, value)
        worst = {(f.metric, f.parameter) for f in audited(model, (X,)).at_least("error")}
        if name == "between.weight" and metric == "finite":
            metric, severity = "scale", "error"  # so small that nothing passes
        expected = {(metric, name)} if severity == "error" else set()
        if metric == "replicas":  # one constant has one direction left
            expected |= {("rank", name)} if severity == "error" else set()
        assert worst == expected, (name, worst)


def fed(model: nn.Module, steps: int = 4) -> set[str]:
    """The parameters that a gradient reaches within some steps, by running them."""
    found: set[str] = set()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(steps):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        y = model(x)
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(step + 9))).sum().backward()
        found |= {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        optimiser.step()
    return found


ZEROS = {
    "scale behind weight": (("blocks.0.gamma", "blocks.0.fc2.weight", "blocks.0.fc2.bias"), torch.relu, True),
    "bias between them": (("blocks.0.gamma", "blocks.0.fc2.weight"), torch.relu, False),
    "scale alone": (("blocks.0.gamma",), torch.relu, False),
    "weight alone": (("blocks.0.fc2.weight", "blocks.0.fc2.bias"), torch.relu, False),
    "before a relu": (("blocks.1.fc1.weight", "blocks.1.fc1.bias"), torch.relu, True),
    "before a gelu": (("blocks.1.fc1.weight", "blocks.1.fc1.bias"), nn.functional.gelu, False),
    "before a gelu and behind": (
        ("blocks.1.fc1.weight", "blocks.1.fc1.bias", "blocks.1.fc2.weight"), nn.functional.gelu, True),
    "before a square": (("blocks.1.fc1.weight", "blocks.1.fc1.bias"), lambda x: x * x, True),
    "before relu6": (("blocks.1.fc1.weight", "blocks.1.fc1.bias"), nn.functional.relu6, True),
    "before a silu": (("blocks.1.fc1.weight", "blocks.1.fc1.bias"), nn.functional.silu, False),
    "norm before the end": (("blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.0.fc1.bias"), torch.relu, True),
    "head": (("head.weight", "head.bias"), torch.relu, False),
    "head and norm": (("head.weight", "norm.weight", "norm.bias"), torch.relu, True),
    "everything": (tuple(n for n, _ in Net().named_parameters()), torch.relu, True),
}  # fmt: skip


@pytest.mark.parametrize("case", ZEROS)
def test_dead_is_what_no_gradient_reaches(case):
    names, act, is_dead = ZEROS[case]
    model = net(act=act)
    for name in names:
        put(model, name, 0.0)
    found = [f for f in audited(model, (X,)).findings if f.metric == "dead"]
    hungry = {name for name, _ in model.named_parameters()} - fed(model)
    assert bool(found) == is_dead and bool(hungry) == is_dead, (found, hungry)
    if found:
        assert all(f.severity == "error" and f.value == len(hungry) for f in found), (found, hungry)
        assert {f.parameter for f in found} <= hungry & set(names)


def test_a_frozen_zero_starves_what_stands_before_it():
    model = net()
    put(model, "blocks.0.gamma", 0.0)
    model.blocks[0].gamma.requires_grad_(False)
    (found,) = [f for f in audited(model, (X,)).findings if f.metric == "dead"]
    hungry = {n for n, p in model.named_parameters() if p.requires_grad} - fed(model)
    assert (found.parameter, found.value) == ("blocks.0.gamma", len(hungry)) and "frozen" in found.message


def test_unused_parameters_and_those_whose_value_is_dropped():
    class Extra(Net):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.dropped = nn.Linear(2, 2), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.dropped(self.stem(x))
            return super().forward(x)

    found = audited(Extra(), (X,)).at_least("warning")
    assert {(f.severity, f.metric, f.parameter) for f in found} == {
        ("warning", "unused", f"{module}.{kind}") for module in ("idle", "dropped") for kind in ("weight", "bias")
    }


def test_branches_are_counted_and_growth_predicted():
    model = net()
    measured = audited(model, (X,)).measures["branches"]
    assert (measured["open"], measured["closed"], measured["predicted growth of variance"]) == (2, 0, 3.0)
    put(model, "blocks.0.gamma", 1e-5)
    put(model, "blocks.1.fc2.weight", 0.0)
    audit = audited(model, (X,))
    assert audit.measures["branches"]["open"] == 0 and not [f for f in audit.findings if f.metric == "branches"]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x).relu()
            return x

    (found,) = audited(Plain(), (X,)).at_least("warning")
    assert (found.metric, found.value, found.threshold) == ("branches", 12, 10)


def test_a_fan_taken_for_the_other_is_told():
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    for layer in (model[0], model[2]):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    found = [f for f in audited(model, (torch.ones(1, 64),)).findings if "fan-out" in f.message]
    assert [(f.severity, f.parameter) for f in found] == [("info", "0.weight"), ("info", "2.weight")]
    nn.init.kaiming_normal_(model[0].weight)
    nn.init.xavier_normal_(model[2].weight)
    assert not [f for f in audited(model, (torch.ones(1, 64),)).findings if "fan-out" in f.message]


def test_groups_experts_and_transposed_kernels_are_judged_matrix_by_matrix():
    model = nn.Sequential(
        nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.ConvTranspose2d(16, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
    )
    x = torch.ones(1, 16, 8, 8)
    assert audited(model, (x,)).at_least("error") == ()
    put(model, "0.weight", 0.2)  # one kernel for each channel is no copy of another channel's
    assert audited(model, (x,)).at_least("warning") == ()
    put(model, "3.weight", lambda old: old[:4].repeat(2, 1, 1, 1))  # nor is the kernel of another group
    assert audited(model, (x,)).at_least("warning") == ()
    put(model, "2.weight", lambda old: old[:, :1].repeat(1, 8, 1, 1))
    assert {(f.metric, f.parameter) for f in audited(model, (x,)).at_least("error")} == {
        ("replicas", "2.weight"), ("rank", "2.weight")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(), (6, 4)),
        (Layout(1, 0), (4, 6)),
        (Layout(tap_axes=(2, 3), groups=3), (6, 4, 3, 3)),
        (Layout(1, 0, tap_axes=(2,), groups=2, grouped="in"), (4, 3, 5)),
        (Layout(parts=3), (6, 4)),
        (Layout(2, 1, batch_axes=(0,)), (5, 4, 6)),
        (Layout(1, 0, out_rest=(2,)), (4, 2, 3)),
        (Layout(in_axis=None, tap_axes=(1,)), (6, 5)),
    ],
)
def test_matrices_hold_every_entry_once_in_its_row(layout, shape):
    weight = torch.arange(float(torch.Size(shape).numel())).view(shape)
    matrices = matrices_of(weight, layout)
    assert matrices.shape[1:] == layout.matrix(shape)
    assert torch.equal(matrices.flatten().sort().values, weight.flatten())
    if layout == Layout(1, 0):
        assert torch.equal(matrices[0], weight.T)
    if layout.groups == 3:
        assert torch.equal(matrices[1], weight[2:4].flatten(1))
    if layout.grouped == "in":
        assert torch.equal(matrices[1], weight[2:].transpose(0, 1).flatten(1))


HEALTHY = [
    "idinit",
    "idinit(eps=0)",
    "idinit(published=true)",
    "fixup",
    "rezero",
    "zero-gamma",
    "kaiming",
    "xavier",
    "orthogonal",
    "skipinit",
]


@pytest.mark.parametrize("scheme", HEALTHY)
def test_a_scheme_leaves_no_error(scheme):
    model = net()
    name, _, rest = scheme.partition("(")
    options = {"eps=0)": {"eps": 0.0}, "published=true)": {"published": True}}.get(rest, {})
    idfx.init_(model, (X,), scheme=name, certify=False, **options)
    audit = audited(model, (X,))
    assert audit.at_least("error") == () and audit.measures["identity"]
    if name == "idinit":
        identities = 5 if rest.startswith("published") else 3  # by default neither queries nor a head that narrows
        assert audit.measures["identity"]["identity"] == identities and audit.measures["branches"]["open"] == 0


def real(name: str) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
    torch.manual_seed(0)
    if name.startswith(("timm:", "torchvision:")):
        return (*idfx.load(name), {})  # type: ignore[return-value]
    transformers = pytest.importorskip("transformers")
    ids = {"input_ids": torch.arange(1, 9)[None]}
    if name == "bert":
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return transformers.BertModel(transformers.BertConfig(vocab_size=99, **size)), (), ids
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config), (), ids


REAL = {
    "timm:resnet18": [
        ("finite", "layer1.0.conv1.weight", poked(7, float("nan"))),
        ("scale", "layer2.0.conv1.weight", lambda old: torch.randn_like(old)),
        ("scale", "bn1.weight", 0.0),
        ("replicas", "layer3.1.conv1.weight", 0.01),
        ("dead", "layer1.0.conv2.weight", 0.0),
        ("rank", "layer2.0.downsample.0.weight", low(0.8)),
    ],
    "timm:vit_tiny_patch16_224": [
        ("finite", "blocks.3.mlp.fc1.bias", poked(7, float("inf"))),
        ("scale", "blocks.2.attn.qkv.weight", lambda old: torch.randn_like(old)),
        ("scale", "norm.weight", 0.0),
        ("replicas", "blocks.5.mlp.fc1.weight", lambda old: old[:1].expand_as(old)),
        ("rank", "patch_embed.proj.weight", low(0.6)),
    ],
    "torchvision:mobilenet_v3_small": [
        ("finite", "features.3.block.0.1.running_var", poked(0, float("inf"))),
        ("scale", "features.0.0.weight", lambda old: old * 40),
        ("replicas", "features.4.block.0.0.weight", 0.1),
    ],
    "bert": [
        ("finite", "embeddings.word_embeddings.weight", poked(40, float("nan"))),
        ("scale", "encoder.layer.1.intermediate.dense.weight", lambda old: torch.randn_like(old) * 3),
        ("replicas", "encoder.layer.0.output.dense.weight", 0.05),
    ],
    "gpt2": [
        ("scale", "transformer.h.0.mlp.c_fc.weight", lambda old: torch.randn_like(old) * 3),
        ("scale", "transformer.ln_f.weight", 0.0),
        ("replicas", "transformer.h.1.mlp.c_fc.weight", lambda old: old[:, :1].expand_as(old)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_models_with_and_without_a_defect(name):
    model, args, kwargs = real(name)
    assert audited(model, args, kwargs).at_least("error") == ()
    healthy = {key: value.clone() for key, value in model.state_dict().items()}
    for metric, parameter, value in REAL[name]:
        put(model, parameter, value)
        found = {(f.metric, f.parameter) for f in audited(model, args, kwargs).at_least("error")}
        assert (metric, parameter) in found, (metric, parameter, found)
        if (name, parameter) == ("timm:resnet18", "bn1.weight"):  # its blocks are closed, so their scales starve
            found = {pair for pair in found if pair[0] != "dead"}
        assert {where for _, where in found} <= {parameter, "layer1.0.bn2.weight"}, found
        model.load_state_dict(healthy)
    for scheme in ("idinit", "fixup", "rezero"):
        model, args, kwargs = real(name)
        idfx.init_(model, args, kwargs, scheme=scheme, certify=False)
        errors = audited(model, args, kwargs).at_least("error")
        assert errors == (), scheme


def test_embeddings_that_are_said_to_be_tied():
    model, args, kwargs = real("gpt2")
    assert [pair[:2] for pair in declared(model)] == [("lm_head.weight", "transformer.wte.weight")]
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    (found,) = audited(model, args, kwargs).at_least("error")
    assert (found.metric, found.parameter) == ("ties", "lm_head.weight")
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    assert audited(model, args, kwargs).at_least("error") == ()


def test_what_is_left_out_is_said_and_only_narrows():
    audit = audited(net(), (X,))
    assert "did not build" in audit.left_out["uninitialised"] and "uninitialised" not in audit.metrics
    on_request = {name for name in METRICS if METRICS[name].on_request}
    assert set(audit.metrics) | set(audit.left_out) == set(METRICS) - on_request
    assert audited(net(), (X,), only=["rank"]).metrics == ("rank",)
    with pytest.raises(UsageError, match="Did you mean replicas"):
        audited(net(), (X,), only=["replica"])


SOURCE = """
import torch
from torch import nn

class Left(nn.Module):
    def __init__(self, defect=True, author=False):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.full = nn.Parameter(torch.empty(4) if defect else torch.zeros(4))
        self.part = nn.Parameter(torch.empty(3, 4))
        nn.init.normal_(self.part[:2] if defect else self.part)
        self.register_buffer("whole", torch.Tensor(5) if defect else torch.ones(5))
        self.register_buffer("index", torch.empty(6, dtype=torch.long) if defect else torch.full((6,), 2**63 - 1))
        if author:
            self.register_buffer("missing", torch.full((2,), float("nan")))

    def forward(self, x):
        return self.fc(x) + self.full + self.part.sum() + self.whole.sum()

def example_inputs():
    return torch.ones(1, 4)
"""


def test_memory_that_nobody_wrote(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("left.py").write_text(SOURCE)
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    code, out, _ = run("audit --batch none left.py:Left --json")
    document = json.loads(out)
    errors = {f["parameter"]: f for f in document["findings"] if f["severity"] == "error"}
    assert code == 1 and document["verdict"] == "error"
    assert {name: (f["metric"], f["value"], f["threshold"]) for name, f in errors.items()} == {
        name: ("uninitialised", count, 0) for name, count in (("full", 4), ("part", 4), ("whole", 5), ("index", 6))
    }
    assert set(errors["full"]) == {
        "severity", "metric", "parameter", "site", "value", "threshold", "message", "remedy"
    }  # fmt: skip
    assert run("audit --batch none left.py:Left --model-arg defect=false --json")[0] == 0
    code, out, _ = run("audit --batch none left.py:Left --model-arg defect=false --model-arg author=true --json")
    errors = [(f["metric"], f["parameter"]) for f in json.loads(out)["findings"] if f["severity"] == "error"]
    assert (code, errors) == (1, [("finite", "missing")])
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)


def test_weights_of_a_file_are_audited(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("left.py").write_text(SOURCE)
    whole = {
        "fc.weight": torch.eye(4) * 50,
        "fc.bias": torch.zeros(4),
        "full": torch.zeros(4),
        "part": torch.ones(3, 4),
    }
    whole |= {"whole": torch.ones(5), "index": torch.zeros(6, dtype=torch.long)}
    torch.save(whole, "all.pt")
    code, out, err = run("audit --batch none left.py:Left --weights all.pt")
    assert code == 1 and err == "" and "error  scale  fc.weight in fc: " in out and "uninitialised" not in out
    torch.save({"state_dict": {"full": torch.zeros(4), "other": torch.ones(1)}}, "some.pt")
    code, out, err = run("audit --batch none left.py:Left --weights some.pt --json")
    named = {f["parameter"] for f in json.loads(out)["findings"] if f["severity"] == "error"}
    assert code == 1 and named == {"part", "whole", "index"} and "no values for 3 parameters" in err


def test_the_command_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plain.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def plain():\n    model = nn.Linear(4, 4)\n    model.idle = nn.Linear(1, 1)\n    return model\n"
        "def example_inputs():\n    return torch.ones(1, 4)\n"
    )
    code, out, err = run("audit plain.py:plain")
    assert (code, err) == (0, "") and out.startswith(
        f"plain.py:plain: 2 warnings, 1 info, from {len(METRICS) - 1} metrics"
    )
    assert run("audit plain.py:plain --fail-on warning")[0] == 1
    assert run("audit plain.py:plain --fail-on warning --only rank,scale")[0] == 0
    for words, message in (
        ("--only rnak", "Did you mean rank?"),
        ("--weights no.pt", "no.pt: no such file"),
        ("--fail-on info", "is not one of"),
    ):
        code, out, err = run(f"audit plain.py:plain {words}")
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err, err
    assert set(METRICS) <= set(run("list audits")[1].split())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model, x = net().to(dtype), X.to(dtype)
    assert audited(model, (x,)).at_least("warning") == ()
    put(model, "between.weight", lambda old: old * 1e3)
    put(model, "blocks.0.fc1.weight", 0.1)
    errors = {(f.metric, f.parameter) for f in audited(model, (x,)).at_least("error")}
    constant = {("replicas", "blocks.0.fc1.weight"), ("rank", "blocks.0.fc1.weight")}
    assert errors == {("scale", "between.weight")} | constant


def test_a_frozen_whole_number_and_a_shared_parameter():
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.count = nn.Parameter(torch.arange(3), requires_grad=False)
            self.blocks[1].fc1 = self.blocks[0].fc1
            nn.init.zeros_(self.blocks[0].fc2.weight)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.count.sum()

    assert audited(Odd(), (X,)).at_least("warning") == ()


DRAWS = {
    "kaiming": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "kaiming, fan_out": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "lecun": lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"),
    "torch.nn's own": lambda w: nn.Linear(w.shape[1], w.shape[0]).weight,
    "orthogonal": nn.init.orthogonal_,
    "idinit": nn.init.eye_,
    "": lambda w: nn.init.normal_(w, std=0.02),
}


@pytest.mark.parametrize("scheme", list(DRAWS))
def test_each_weight_is_told_by_what_writes_such_values(scheme):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 512, bias=False), nn.ReLU(), nn.Linear(512, 4))
    with torch.no_grad():
        model[0].weight.copy_(DRAWS[scheme](torch.empty(512, 128)))
    weight = model[0].weight.detach().double().numpy()
    found = {one.name: one.likeness for one in audited(model, (torch.ones(1, 128),), only=["identity"]).parameters}
    likeness = found["0.weight"]
    assert likeness.scheme == scheme and found["2.bias"] is None
    rows = weight[::32]
    nearest = np.zeros_like(rows)
    there = np.arange(16), np.abs(rows).argmax(1)
    nearest[there] = rows[there]
    assert likeness.from_identity == pytest.approx(np.linalg.norm(rows - nearest) / np.linalg.norm(rows), abs=1e-6)
    assert likeness.from_zero == pytest.approx(np.sqrt((weight**2).mean() * 128))
    columns = weight[:, :16].T
    gram = columns @ columns.T / (columns**2).sum(1).mean()
    assert likeness.from_orthogonal == pytest.approx(np.linalg.norm(gram - np.eye(16)) / 4, abs=1e-6)
    entries = weight.flatten()[::5][::7]
    if scheme != "idinit":
        assert likeness.from_normal == pytest.approx(
            stats.kstest((entries - entries.mean()) / entries.std(), "norm").statistic, abs=1e-3
        )


def test_the_bottleneck_of_the_main_stem_is_told_with_its_place():
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    with torch.no_grad():
        model[2].weight[1] = model[2].weight[0]
    measures = audited(model, (torch.ones(1, 32),), only=["rank"]).measures["rank"]
    rank = int(np.linalg.matrix_rank(model[2].weight.detach().numpy()))
    assert measures["bottleneck of the main stem"] == f"{rank} at 2.weight" and rank == 5
    assert measures["not square"] == measures["weights examined"]


def test_where_values_come_out_of_sight_no_parameter_is_called_unused():
    class Mapped(nn.Module):
        def __init__(self, mapped):
            super().__init__()
            self.mapped, self.fc, self.idle, self.out = mapped, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.fc(x)
            with _disable_current_modes() if self.mapped else contextlib.nullcontext():
                y = torch.sin(y)
            return self.out(y)

    named = {f.parameter for f in audited(Mapped(False), (X[:, :4],), only=["unused"]).findings}
    assert named == {"idle.weight", "idle.bias"}
    audit = audited(Mapped(True), (X[:, :4],), only=["unused"])
    assert audit.findings == () and "outside torch's operators" in audit.measures["unused"]["not judged"]
    roles = idfx.analyze(Mapped(True), (X[:, :4],)).roles
    assert roles["idle.weight"].name == "unresolved" and "outside torch's operators" in roles["idle.weight"].evidence


class Adapter(nn.Module):
    """A frozen layer, and two small ones whose product is added to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 32), nn.Linear(8, 4, bias=False), nn.Linear(4, 32, bias=False)
        self.head = nn.Linear(32, 5)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.base(x) + self.up(self.down(x))))


def test_zeros_that_the_inputs_get_around_are_no_finding():
    assert audited(Adapter(), (X,)).at_least("warning") == ()


def test_zeros_that_cut_the_inputs_off_are():
    """Without a way around, one zero weight before the head leaves constant outputs."""
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 5))
    put(model, "1.weight", 0.0)
    found = audited(model, (X,)).at_least("error")
    assert ("rank", "1.weight") in {(f.metric, f.parameter) for f in found}
    assert fed(Adapter()) >= {"up.weight", "down.weight"}  # after one step, both learn


class Upsampling(nn.Module):
    """A convolution whose outputs are put side by side as pixels."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8 * factor**2, 3, padding=1)
        self.shuffle, self.out = nn.PixelShuffle(factor), nn.Conv2d(8, 3, 3, padding=1)
        with torch.no_grad():
            one = nn.init.kaiming_normal_(torch.empty(8, 8, 3, 3))
            self.conv.weight.copy_(one.repeat_interleave(factor**2, 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.shuffle(torch.relu(self.conv(torch.relu(self.stem(x))))))


def test_a_kernel_repeated_for_neighbouring_pixels_is_no_copy():
    torch.manual_seed(0)
    model, x = Upsampling(), torch.randn(2, 3, 6, 6)
    assert audited(model, (x,)).at_least("warning") == ()
    model.shuffle = nn.Conv2d(32, 8, 1)  # the same rows as channels
    found = audited(model, (x,)).at_least("error")
    assert {(f.metric, f.parameter) for f in found} == {("rank", "conv.weight"), ("replicas", "conv.weight")}


class Bounded(nn.Module):
    """Two fixed numbers, and how the forward uses them."""

    def __init__(self, bound: float, sentinel: float, garbled: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("bound", torch.tensor(bound))
        self.register_buffer("sentinel", torch.full((8,), sentinel))
        if garbled:
            self.sentinel += torch.arange(8) * 1.2345e8

    def forward(self, x: Tensor) -> Tensor:
        y = torch.clamp(self.fc(x), -self.bound, self.bound)
        return torch.where(y > 2, self.sentinel, y)


def test_bounds_and_sentinels_are_no_broken_tables():
    for bound, sentinel in ((1e10, 1e10), (float("inf"), -1e9), (3.21e7, torch.finfo(torch.float32).max)):
        assert audited(Bounded(bound, sentinel), (X,)).at_least("warning") == ()
    (found,) = audited(Bounded(1e10, 1e10, garbled=True), (X,)).at_least("warning")
    assert (found.severity, found.metric, found.parameter, found.value) == ("error", "tables", "sentinel", 8)
