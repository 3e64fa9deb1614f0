"""Sources: what builds, with which example input, and every refusal."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from idfx.building.build import build, load
from idfx.building.parsing import parse_arguments, parse_device, parse_dtype, parse_shapes
from idfx.core.errors import IdfxError, SourceError, UsageError
from idfx.sources import SOURCES, resolve

FILE = """
import torch
from torch import nn
from neighbour import WIDTH

example_inputs = (torch.ones(2, WIDTH),)
finished = nn.Linear(WIDTH, 1)
number = 3

class Net(nn.Linear):
    def __init__(self, out=5):
        super().__init__(WIDTH, out)

def make(out=5):
    return Net(out)

def broken():
    raise ValueError("no such\\nwidth")

def text():
    return "model"

def exhausted():
    raise MemoryError("a lot")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "wrong.py").write_text("import nowhere_at_all\n")
    (tmp_path / "quits.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name in ("neighbour", "net") or name.startswith("idfx_source_")]:
        del sys.modules[name]


def test_every_source_says_what_it_is():
    assert {"python", "timm", "torchvision"} <= set(SOURCES)
    assert all(item.description and item.prefix == prefix for prefix, item in SOURCES.items())


@pytest.mark.parametrize(
    ("spec", "arguments", "shape"),
    [
        ("timm:resnet18", {}, (1, 3, 224, 224)),
        ("timm:resnet18", {"in_chans": 1, "num_classes": 7}, (1, 1, 224, 224)),
        ("timm:resnet18.a1_in1k", {}, (1, 3, 224, 224)),
        ("timm:vit_tiny_patch16_224", {"img_size": (64, 96)}, (1, 3, 64, 96)),
        ("torchvision:vit_b_32", {"image_size": 64}, (1, 3, 64, 64)),
        ("torchvision:lraspp_mobilenet_v3_large", {}, (1, 3, 224, 224)),
    ],
)
def test_a_library_model_takes_its_example_input(spec, arguments, shape):
    model, inputs = load(spec, arguments=arguments, device="cpu")
    assert [tuple(item.shape) for item in inputs] == [shape]
    with torch.no_grad():
        model.eval()(*inputs)


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize(("name", "shape"), [("inception_v3", (1, 3, 299, 299)), ("googlenet", (1, 3, 224, 224))])
def test_no_warning_about_defaults_of_the_library(name, shape):
    assert build(f"torchvision:{name}", device="cpu").example.args[0].shape == shape


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "raft_small", "quantized_mobilenet_v2"])
def test_families_with_other_inputs(name):
    model, inputs = load(f"torchvision:{name}", device="cpu")
    with torch.no_grad():
        model.eval()(*inputs)


@pytest.mark.slow
def test_every_torchvision_model_runs():
    from torchvision import models

    failed = {}
    for name in models.list_models():
        try:
            model, inputs = load(f"torchvision:{name}", device="cpu")
            if sum(value.numel() for value in model.parameters()) < 400e6:
                with torch.no_grad():
                    model.eval()(*inputs)
        except Exception as error:
            failed[name] = repr(error)
    assert not failed


@pytest.mark.parametrize("place", ["net.py", "./net.py", "python:net.py", "net", "python:net"])
def test_a_factory_in_a_file_or_module(folder, place):
    built = build(f"{place}:make", arguments={"out": 3}, device="cpu")
    assert built.model.weight.shape == (3, 4) and built.pending.names(built.model) == {"weight", "bias"}
    assert torch.equal(built.example.args[0], torch.ones(2, 4))
    assert str(folder) not in sys.path


def test_a_class_and_a_finished_module(folder):
    assert load("net.py:Net", device="cpu")[0].out_features == 5
    assert load("net.py:finished", device="cpu")[0].out_features == 1


@pytest.mark.parametrize(
    ("text", "args", "kwargs"),
    [
        ("example_inputs = torch.ones(2)", (2,), {}),
        ("def example_inputs(): return {'x': torch.ones(3)}", (), {"x": 3}),
        ("class Net(Net): example_input_array = torch.ones(5)", (5,), {}),
        ("class Net(Net): dummy_inputs = {'x': torch.ones(6)}", (), {"x": 6}),
        ("", None, {}),
    ],
)
def test_where_example_inputs_come_from(tmp_path, text, args, kwargs):
    file = tmp_path / "some.py"
    file.write_text(f"import torch\nclass Net(torch.nn.Module):\n    pass\n{text}\n")
    example = build(f"{file}:Net", device="cpu").example
    if args is None:
        assert example is None and load(f"{file}:Net", device="cpu")[1] == ()
    else:
        assert tuple(len(item) for item in example.args) == args
        assert {key: len(item) for key, item in example.kwargs.items()} == kwargs


def test_dtype_moves_weights_and_inputs(folder):
    built = build("net:make", device="cpu", dtype="bfloat16", input_shapes=("1,4", "2:int64"))
    assert built.model.weight.dtype == torch.bfloat16 and built.pending.names(built.model)
    assert [item.dtype for item in built.example.args] == [torch.bfloat16, torch.int64]


REFUSED = {
    "resnet50": "no source.*Did you mean timm:resnet50 or torchvision:resnet50\\?",
    "resnet5O": "no source.*Did you mean timm:resnet\\w+ or torchvision:resnet\\w+.*\\?",
    "qqqqqqqqqqq": "no source.*See `idfx list sources`",
    "tim:resnet50": "'tim' is neither a source nor a module.*Did you mean timm\\?",
    "timm:": "no model name",
    "timm:resnet5O": "unknown model.*Did you mean resnet",
    "torchvision:resnet5O": "unknown model.*Did you mean resnet",
    "timm:resnet18.no_such_tag": "Invalid pretrained tag",
    "timm:hf-hub:timm/none_such": "not in the local Hugging Face cache",
    "timm:hf-hub:a/b/c": "is not a repository name",
    "gone.py:make": "there is no file gone.py",
    "nett.py:make": "there is no file nett.py.*Did you mean net.py\\?",
    "net.py": "no factory;",
    "net.py:mak": "there is no 'mak'.*Did you mean make\\?",
    "net:mak": "there is no 'mak'.*Did you mean make\\?",
    "wrong.py:make": "importing wrong.py raised ModuleNotFoundError: No module named 'nowhere_at_all'",
    "wrong:make": "importing wrong raised ModuleNotFoundError",
    "quits.py:make": "importing quits.py raised SystemExit: 3",
    "net.py:broken": "the factory raised ValueError: no such; expected a model from broken\\(\\)",
    "net.py:text": "the factory returned an object of type str",
    "net.py:number": "this is a int",
    "net.py:exhausted": "out of memory on cpu",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_refusals_are_one_line(folder, spec):
    with pytest.raises(IdfxError, match=f"^{spec}: .*{REFUSED[spec]}") as caught:
        build(spec, device="cpu")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "arguments", "text"),
    [
        ("timm:resnet18", {"wings": 2}, "raised TypeError: .*wings.*--model-arg"),
        ("timm:resnet18", {"pretrained": True}, "downloads no weights"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "downloads no weights"),
        ("net.py:make", {"wings": 2}, "TypeError.*expected a model from make\\(out=5\\)"),
    ],
)
def test_wrong_arguments(folder, spec, arguments, text):
    with pytest.raises(SourceError, match=text):
        build(spec, arguments=arguments, device="cpu")


def test_arguments_are_literals_or_text():
    assert parse_arguments(("a=1", "b=true", "c=[1,2]", "d=text", "e=None", "f=x=y", "g=", "h='1'")) == {
        "a": 1,
        "b": True,
        "c": [1, 2],
        "d": "text",
        "e": None,
        "f": "x=y",
        "g": "",
        "h": "1",
    }
    with pytest.raises(UsageError, match="not of the form key=value"):
        parse_arguments(("a",))
    with pytest.raises(UsageError, match="a is given twice"):
        parse_arguments(("a=1", "a=2"))


def test_shapes():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    image, tokens, mask, half = parse_shapes(("1,3,64,64", "2,500:int64", "2,500:bool", "4:bfloat16"))
    assert torch.equal(state, torch.get_rng_state())
    assert (image.dtype, half.dtype, mask.dtype) == (torch.float32, torch.bfloat16, torch.bool)
    assert image.std().item() == pytest.approx(1, abs=0.05) and set(tokens.flatten().tolist()) == {0, 1}
    assert torch.equal(image, parse_shapes(("1,3,64,64",))[0])
    assert not torch.equal(image, parse_shapes(("1,3,64,64",), seed=1)[0])


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0,3", "-1", "1,3:int", "1.5", "1,3:"])
def test_malformed_shapes(text):
    with pytest.raises(UsageError, match=r"expected positive sizes, batch first.*int64"):
        parse_shapes((text,))


def test_devices_and_dtypes(monkeypatch):
    assert parse_device("cpu") == torch.device("cpu")
    assert parse_dtype("float16") == parse_dtype(torch.float16) == torch.float16 and parse_dtype(None) is None
    for name in ("tpu", "cuda:x", "cuda:-1", "cpu:1", ""):
        with pytest.raises(UsageError, match="unknown device"):
            parse_device(name)
    with pytest.raises(UsageError, match=r"not a dtype for weights.*Did you mean bfloat16"):
        parse_dtype("bfloat1")
    with pytest.raises(UsageError, match="not a dtype for weights"):
        parse_dtype(torch.int64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="there is no CUDA device"):
        parse_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="expected cuda:0 to cuda:1"):
        parse_device("cuda:2")


def test_a_source_is_named_by_its_prefix():
    found, rest = resolve("timm:hf-hub:timm/resnet18.a1_in1k")
    assert (found.prefix, rest) == ("timm", "hf-hub:timm/resnet18.a1_in1k")


def test_a_module_that_is_no_tensor_model_is_still_a_module(folder):
    assert isinstance(load("torch.nn:Identity", device="cpu")[0], nn.Identity)
