"""`idfx init` keeps no memory that nobody wrote: it writes it, or refuses with the name."""

from __future__ import annotations

from pathlib import Path

import idfx_cli.session
import pytest
import torch
from torch import nn

import idfx
from idfx.building.build import build
from idfx.building.deferral import DeferredDraws
from idfx.building.unwritten import left

SOURCE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, d=8, how=""):
        super().__init__()
        empty = lambda name, other: torch.empty_like(other) if name == how else other
        self.scale = nn.Parameter(empty("scale", torch.full((d,), 1.0)))
        self.shift = nn.Parameter(empty("shift", torch.zeros(d)))
        self.place = nn.Parameter(empty("place", torch.zeros(5, d)))
        self.table = nn.Embedding(5, d, _weight=empty("table", torch.randn(5, d))).double().float()
        part = torch.empty(5, d)
        part[:, 0::2] = 0.5
        if how != "part":
            part[:, 1::2] = 0.25
        self.register_buffer("part", part)
        self.register_buffer("window", empty("window", torch.ones(d)), persistent=False)
        self.register_buffer("cache", torch.empty(d), persistent=False)
        self.matrix = nn.Linear(d, d, device="meta").to_empty(device="cpu")
        nn.init.zeros_(self.matrix.bias)
        if how != "matrix":
            nn.init.orthogonal_(self.matrix.weight)
        self.a, self.b = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, ids):
        x = self.matrix((self.table(ids) + self.place + self.part) * self.window) * self.scale + self.shift
        return x + self.b(torch.relu(self.a(x)))

def example_inputs():
    return (torch.arange(5)[None],)

class Array(Model):
    def __init__(self):
        super().__init__()
        self.register_buffer("array", torch.empty(4))
        self.array.numpy()[:] = 1.0
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("left.py").write_text(SOURCE)
    return "left.py:Model"


NAMES = {"scale": (8, 8), "shift": (8, 8), "place": (40, 40), "table": (40, 40), "part": (20, 40), "window": (8, 8)}


@pytest.mark.parametrize(("how", "entries"), NAMES.items())
def test_init_refuses_to_keep_memory_that_nobody_wrote(run, source, how, entries):
    code, _, err = run(f"init {source} --model-arg how={how} -o out.pt")
    name, count, whole = "table.weight" if how == "table" else how, *entries
    assert code == 2 and not Path("out.pt").exists()
    assert f"{name}: the plan keeps it, but nobody wrote {count} of its {whole} entries" in err
    assert (f"--set '{name}=1'" in err) == (how not in ("part", "window"))  # a plan writes no buffers


@pytest.mark.parametrize("how", ["", "matrix"])
def test_what_was_written_or_is_overwritten_is_not_refused(run, source, how):
    """A cache that the forward does not read and a file does not hold may be empty; a plan writes a weight."""
    assert run(f"init {source} --model-arg how={how} -o out.pt")[0] == 0
    assert torch.allclose(torch.load("out.pt")["matrix.weight"], torch.eye(8), atol=1e-4)


def test_memory_that_happens_to_be_zero_is_not_on_purpose(source):
    """New memory is often zero, and so is a weight that an author sets to 0 on purpose, which is kept."""
    plans = []
    for knows in (False, True):
        found = build(source, arguments={"how": "matrix"}, device="cpu")
        found.model.matrix.weight.data.zero_()
        if knows:
            assert left(found, lambda: build(source, arguments={"how": "matrix"}, device="cpu"))["matrix.weight"] == 64
        plans.append(idfx.plan(idfx.analyze(found.drawn(), found.example.args)))
    assert "every entry is 0" in plans[0].kept["matrix.weight"]
    assert plans[1].decisions["matrix.weight"].fill == "idi"


def test_a_fill_or_a_checkpoint_gives_the_values(run, source):
    assert run(f"init {source} --model-arg how=scale --set scale=1 -o out.pt")[0] == 0
    assert torch.load("out.pt")["scale"].tolist() == [1.0] * 8
    for how in ("scale", "part"):
        assert run(f"init {source} --model-arg how={how} --from out.pt -o again.pt")[0] == 0


def test_the_model_is_built_again_only_if_something_is_suspicious(run, source, monkeypatch):
    built = []
    build_only = idfx_cli.session.build_only
    monkeypatch.setattr(idfx_cli.session, "build_only", lambda **given: built.append(1) or build_only(**given))
    assert run("init torchvision:squeezenet1_1 -o out.pt")[0] == 0 and len(built) == 1
    assert run(f"init {source} --model-arg how=place -o out.pt")[0] == 2 and len(built) > 2


def test_a_write_that_no_operator_makes_is_found_by_the_second_build(run, source):
    spec = source.replace("Model", "Array")
    found = build(spec, device="cpu")
    assert found.suspects == {"array", "cache"}
    assert left(found, lambda: build(spec, device="cpu")) == {"cache": 8}
    assert run(f"init {spec} -o out.pt")[0] == 0


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(3, 4).bfloat16(),
        lambda: nn.MultiheadAttention(8, 2),
        lambda: nn.LSTM(3, 4),
        lambda: nn.BatchNorm2d(4),
        lambda: nn.EmbeddingBag(4, 4, padding_idx=1),
        lambda: nn.TransformerDecoderLayer(8, 2),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)),
        lambda: nn.Bilinear(2, 3, 4),
    ],
)
def test_layers_of_torch_are_written_by_operators(layer):
    pending = DeferredDraws()
    with pending:
        model = layer()
    assert pending.suspects(model) == frozenset()
