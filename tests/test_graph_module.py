"""The capture as torch.fx people know it: a GraphModule that runs and is transformed; graphs that users have."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.fx
import torchvision
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.infra.pass_manager import PassManager

import idfx
from idfx.capture import TRACERS, capture
from idfx.core.errors import CaptureError, SourceError
from idfx.core.records import Example
from idfx.sources import SOURCES

ROOT = Path(__file__).resolve().parent.parent


def leaves(value: Any) -> list[torch.Tensor]:
    """The tensors of an output, by a walk of this test's own."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in leaves(item)]
    return [tensor for item in value for tensor in leaves(item)] if isinstance(value, (list, tuple)) else []


class Language(nn.Module):
    """Token ids in, a dict out; makes positions on the device of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position, self.head = nn.Embedding(20, 8), nn.Embedding(6, 8), nn.Linear(8, 20)

    def forward(self, ids: torch.Tensor, scale: float = 1.0) -> dict[str, Any]:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        return {"logits": self.head(x * scale), "hidden": (x, None)}


class Named(nn.Module):
    """Parameters and modules with the names of a GraphModule's own attributes, and a write in place."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.code = nn.Linear(4, 4), nn.Parameter(torch.ones(4))
        self.register_buffer("meta", torch.full((4,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.graph(x) * self.code
        y[:, 0] += self.meta[0]
        return y + x


def detector() -> tuple[nn.Module, tuple[Any, ...]]:
    model = torchvision.models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None)
    return model, ([torch.rand(3, 320, 320)],)


MODELS = {
    "resnet18": lambda: (timm.create_model("resnet18"), (torch.randn(1, 3, 64, 64),)),
    "vit": lambda: (timm.create_model("vit_tiny_patch16_224"), (torch.randn(1, 3, 224, 224),)),
    "swin": lambda: (timm.create_model("swin_tiny_patch4_window7_224"), (torch.randn(1, 3, 224, 224),)),
    "language": lambda: (Language(), (torch.randint(0, 20, (2, 6)),)),
    "names": lambda: (Named(), (torch.randn(3, 4),)),
    "lstm": lambda: (nn.LSTM(4, 4), (torch.randn(5, 2, 4),)),
    "detector": detector,
}


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Any, ...], idfx.Structure, list[torch.Tensor]]:
    torch.manual_seed(0)
    model, inputs = MODELS[request.param]()
    model.eval()
    structure = idfx.analyze(model, inputs)
    with torch.no_grad():
        wanted = leaves(model(*copy.deepcopy(inputs)))
    return model, inputs, structure, wanted


def same(found: Any, wanted: list[torch.Tensor]) -> bool:
    found = leaves(found)
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


def test_the_graph_module_gives_the_model_s_own_output_bit_for_bit(case) -> None:
    _, inputs, structure, wanted = case
    graph_module = structure.capture.graph_module
    assert isinstance(graph_module, torch.fx.GraphModule)
    tensors = leaves(inputs)
    with torch.no_grad():
        assert same(graph_module(*tensors), wanted)
        assert same(torch.fx.Interpreter(graph_module).run(*tensors), wanted)
        assert same(torch.fx.Transformer(graph_module).transform()(*tensors), wanted)
        assert same(copy.deepcopy(graph_module)(*tensors), wanted)
        file = io.BytesIO()
        torch.save(graph_module, file)
        file.seek(0)
        assert same(torch.load(file, weights_only=False)(*tensors), wanted)


def test_nodes_have_what_torch_fx_people_look_for(case) -> None:
    model, inputs, structure, _ = case
    graph_module = structure.capture.graph_module
    modules = {name: f"{type(m).__module__}.{type(m).__qualname__}" for name, m in model.named_modules()}
    shapes: dict[str, tuple[int, ...]] = {}

    class Shapes(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and n.op != "output":
                shapes[n.name] = (tuple(value.shape), value.dtype)
            return value

    with torch.no_grad():
        Shapes(graph_module).run(*leaves(inputs))
    for node in graph_module.graph.nodes:
        if node.name in shapes:
            value = node.meta["val"]
            assert value.is_meta and (tuple(value.shape), value.dtype) == shapes[node.name]
        if node.op == "call_function":
            stack = [*node.meta["nn_module_stack"].values()]
            assert stack and stack[0] == ("", modules[""])
            assert all(modules[path] == kind for path, kind in stack)
    graph_module.graph.lint()
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        graph_module.graph.print_tabular()
    assert len(table.getvalue().splitlines()) > len(graph_module.graph.nodes)


def test_parameters_and_buffers_are_the_model_s_own(case) -> None:
    model, _, structure, _ = case
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    shared = [id(tensor) for tensor in structure.capture.graph_module.parameters()]
    assert shared and own.issuperset(shared)


def test_the_output_has_the_form_that_the_forward_gives_it() -> None:
    found = idfx.analyze(Language(), (torch.zeros(1, 6, dtype=torch.int64),)).capture.graph_module(
        torch.zeros(1, 6).long()
    )
    assert list(found) == ["logits", "hidden"] and found["hidden"][1] is None


def test_placeholders_are_called_as_the_arguments_are() -> None:
    class Pair(nn.Module):
        def forward(self, first: torch.Tensor, rest: list[torch.Tensor], *, mask: torch.Tensor) -> torch.Tensor:
            return first + rest[0] * mask + rest[1]

    x = torch.ones(2)
    found = capture(Pair(), Example((x, [x, x]), {"mask": x}))
    assert [node.target for node in found.graph.find_nodes(op="placeholder")] == ["first", "rest_0", "rest_1", "mask"]
    assert torch.equal(found.graph_module(first=x, rest_0=x, rest_1=x, mask=x), 3 * x)


def test_values_are_freed_after_their_last_use() -> None:
    """A chain of a hundred values of a megabyte each never holds more than a few of them."""
    held: list[int] = []

    class Counting(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            held.append(sum(isinstance(v, torch.Tensor) and v.numel() >= 1 << 18 for v in self.env.values()))
            return super().run_node(n)

    chain = nn.Sequential(*(nn.Tanh() for _ in range(100)))
    found = capture(chain, Example((torch.ones(1 << 18),)))
    Counting(found.graph_module).run(torch.ones(1 << 18))
    assert max(held) <= 2


def graphs_of(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    return {
        "symbolic_trace": torch.fx.symbolic_trace(model),
        "make_fx": make_fx(lambda x: model(x))(x),
        "export": torch.export.export(model, (x,), strict=False),
    }


@pytest.mark.parametrize("kind", ["symbolic_trace", "make_fx", "export"])
def test_graphs_that_a_user_already_has_are_initialised_as_their_model_is(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    model, plain = timm.create_model("resnet18").eval(), timm.create_model("resnet18").eval()
    graph = graphs_of(model, x)[kind]
    expected, report = idfx.init_(plain, (x,)), idfx.init_(graph, (x,))
    assert report.certificate is not None and report.certificate.certified == 8
    assert [join.ends for join in report.structure.joins] == [join.ends for join in expected.structure.joins] or (
        kind == "make_fx"  # whose parameters have names of their own
    )
    if kind != "make_fx":
        assert [join.name for join in report.structure.joins] == [join.name for join in expected.structure.joins]
    wanted = [parameter for _, parameter in plain.named_parameters()]
    assert all(map(torch.equal, (parameter for _, parameter in model.named_parameters()), wanted)) or kind == "make_fx"


def test_an_exported_program_brings_its_example_and_is_audited() -> None:
    program = torch.export.export(timm.create_model("resnet18").eval(), (torch.randn(2, 3, 64, 64),), strict=False)
    assert len(idfx.analyze(program).joins) == 8
    assert not [finding for finding in idfx.audit(program, batch=False).findings if finding.severity == "error"]


def joins_of(structure: idfx.Structure) -> list[Any]:
    return [(join.name, join.kind, join.ends) for join in structure.joins]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_the_tracers_agree(name: str) -> None:
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
    export, record = (idfx.analyze(model, (x,), tracer=tracer) for tracer in TRACERS)
    assert (export.capture.how, record.capture.how) == ("export", "meta")
    assert export.capture.how == "export" or record.capture.how == "export"
    assert export.joins and [(j.name, j.kind, j.ends) for j in record.joins] == [
        (j.name, j.kind, j.ends) for j in export.joins
    ]
    assert {n: r.name for n, r in record.roles.items()} == {n: r.name for n, r in export.roles.items()}
    report = idfx.init_(model, (x,), tracer="export")
    assert report.certificate is not None and report.certificate.certified == len(export.joins)


def test_torch_export_s_rejection_is_reported() -> None:
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"Asks: torch\.export rejects it"):
        idfx.analyze(Asks(), (torch.ones(2),), tracer="export")


def test_a_torch_without_the_private_interface_falls_back_to_export_and_says_so() -> None:
    """In a process of its own, in which what recording needs is not there."""
    program = (
        "import warnings, torch, torch.fx.experimental.proxy_tensor, torch.utils._python_dispatch as private\n"
        "taken = private._disable_current_modes\n"
        "del private._disable_current_modes\n"
        "import idfx, idfx.core.torch_private\n"
        "private._disable_current_modes = taken  # torch.export is to work\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))\n"
        "    report = idfx.init_(model, (torch.ones(1, 2),))\n"
        "assert report.structure.capture.how == 'export' and report.certificate.passed\n"
        "print([str(one.message) for one in said if 'torch.export' in str(one.message)][0])\n"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "does not let operators be recorded" in found.stdout and "captured by torch.export" in found.stdout


def test_the_rewrite_is_a_pass_beside_a_user_s_own() -> None:
    model, plain, x = (timm.create_model("resnet18").eval() for _ in range(2)), None, torch.randn(1, 3, 64, 64)
    model, plain = model
    plain.load_state_dict(model.state_dict())
    structure = idfx.analyze(model, (x,))
    plan = idfx.plan(structure)
    idfx.apply_(plain, idfx.plan(idfx.analyze(plain, (x,))))

    def halve_the_head(graph_module: torch.fx.GraphModule) -> Any:
        with torch.no_grad():
            graph_module.get_parameter("fc.weight").mul_(0.5)
        return torch.fx.passes.infra.pass_base.PassResult(graph_module, True)

    PassManager([lambda module: idfx.rewrite(module, plan), halve_the_head])(structure.capture.graph_module)
    wanted = OrderedDict(plain.state_dict())
    wanted["fc.weight"] = wanted["fc.weight"] * 0.5
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), act=nn.ReLU(), b=nn.Linear(4, 4)))
    torch.export.save(torch.export.export(model, (torch.ones(1, 4),)), tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def test_a_saved_program_is_a_model_with_an_example(exported: Path) -> None:
    model, inputs = idfx.load(str(exported))
    assert {name for name, _ in model.named_parameters()} == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert torch.equal(inputs[0], torch.ones(1, 4))
    command = [sys.executable, "-m", "idfx", "init", "model.pt2", "-o", "weights.pt"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])}
    done = subprocess.run(command, cwd=exported.parent, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    state = torch.load(exported.parent / "weights.pt", weights_only=True)
    fresh = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), act=nn.ReLU(), b=nn.Linear(4, 4)))
    fresh.load_state_dict(state, strict=True)


class Exploit:
    """What a malicious pickle holds: a call that leaves a trace."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_nothing_but_tensors_is_unpickled(exported: Path, tmp_path: Path) -> None:
    file, trace = tmp_path / "bad.pt2", tmp_path / "trace"
    payload = io.BytesIO()
    torch.save({"x": Exploit(trace)}, payload)
    with zipfile.ZipFile(exported) as good, zipfile.ZipFile(file, "w") as bad:
        replaced = [name for name in good.namelist() if "sample_inputs/" in name or "example_inputs" in name]
        assert replaced
        for name in good.namelist():
            bad.writestr(name, payload.getvalue() if name in replaced else good.read(name))
    with pytest.raises(SourceError, match="expected tensors alone"):
        SOURCES["pt2"].build(str(file), {})
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [(None, "No such file"), (b"no archive", "it is no exported program")],
)
def test_what_is_no_program_is_refused(tmp_path: Path, content: bytes | None, found: str) -> None:
    file = tmp_path / "x.pt2"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SourceError, match=found):
        idfx.load(str(file))


def test_sizes_that_are_expressions_are_refused(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(nn.Linear(4, 4), (torch.ones(3, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "dynamic.pt2")
    with pytest.raises(SourceError, match="sizes in it are expressions"):
        idfx.load(str(tmp_path / "dynamic.pt2"))
