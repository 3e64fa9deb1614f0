"""Example inputs: what a forward needs, how the errors say so, and how the command line gives it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pickle
import re
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import idfx
from idfx.building.build import build
from idfx.building.parsing import parse_inputs, parse_shapes
from idfx.capture.inputs import check, misfit
from idfx.capture.nested import map_tensors
from idfx.core.errors import CaptureError, ForwardError, SourceError, UsageError
from idfx.core.records import Example

FILE = '''
from __future__ import annotations
import functools
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))

class Masked(Block):
    """One argument of each sort, all needed but `mode`."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, *, scale: float, use: bool, mode: str = "slow"):
        assert isinstance(scale, float) and use is False and mode in ("slow", "fast")
        assert mask.dtype == torch.bool
        return x + self.b(torch.relu(self.a(x))) * mask * scale

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(2, 4), Block()

    def forward(self, input_ids, boxes: list[torch.Tensor] | None = None):
        return self.block(self.embed(input_ids))

class Boxes(Block):
    def forward(self, x, boxes: list[torch.Tensor]):
        return super().forward(x)

class Offers(Block):
    example_inputs = (torch.ones(2, 4), torch.ones(2, 4))

    def forward(self, x, gate=None):
        return x + self.b(torch.relu(self.a(x))) * gate

class Open(Block):
    def forward(self, *args, **kwargs):
        return super().forward(kwargs["x"])

def supplies(function):
    """A decorator that gives an argument itself."""
    @functools.wraps(function)
    def call(self, *args, **kwargs):
        return function(self, *args, 2.0, **kwargs)
    return call

class Supplied(Block):
    @supplies
    def forward(self, x, factor):
        return x + self.b(torch.relu(self.a(x))) * factor

class Alone(Block):
    def forward(self):
        return self.b.weight @ self.a.weight
'''

LINE = "init net.py:{} -o weights.pt -q"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("idfx_source_")]:
        del sys.modules[name]


class Net(nn.Module):
    """Needs three things."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, mask, *, scale: float) -> torch.Tensor:
        return x + self.fc(x) * mask * scale


# What is missing

MISSING = {
    "Masked": r"net.py:Masked: no example input, and the model defines none; expected x \(torch.Tensor\), mask"
    r" \(torch.Tensor \| None\), scale \(float\) and use \(bool\), which its forward needs\. Give"
    r" --input-shape x=1,3,224,224 --input-shape mask=1,16:bool with .*--input FILE.safetensors, and"
    r" --input scale=0.5 --input use=true\.$",
    "Text": r"expected input_ids, which .*--input-shape input_ids=1,16:int64",
    "Boxes": r"x and boxes \(list\[torch.Tensor\]\), .*boxes through `example_inputs` in the model's file\.$",
    "Open": r"no example input.*expected the tensors that its forward takes.*--input-shape 1,3,224,224",
    "Masked --input-shape 2,4": r"net.py:Masked: mask \(torch.Tensor \| None\), scale \(float\) and use \(bool\) are",
    "Masked --input-shape 2,4 --input-shape mask=2,4:bool --input use=false": r"scale \(float\) is missing; expected a"
    r" value, the forward needs it\. Give --input scale=0.5\.$",
    "Masked --input-shape 2,4 --input-shape 2,4:bool --input-shape 2,4": r"3 positional inputs; expected 2"
    r" \(x, mask\)\. Leave out",
    "Masked --input-shape x=2,4 --input-shape maks=2,4": r"forward has no argument 'maks'; .*Did you mean mask\?",
    "Masked --input-shape x=2,4 --input mod=fast": r"forward has no argument 'mod'; .*Did you mean mode\?",
    "Block --input-shape 2,4 --input-shape x=2,4": r"x is given twice, by position and by name",
    "Block --input-shape x=2,4 --input-shape x=2,4": r"--input-shape x=2,4: x is given twice",
    "Block --input-shape x=2x4": r"--input-shape x=2x4: not a shape; .*1,3,224,224",
    "Block --input-shape x=2,4:flaot32": r"--input-shape x=2,4:flaot32: not a shape; .*float32",
    "Block --input-shape 1=2,4": r"--input-shape 1=2,4: '1' is not a name",
    "Block --input-shape x=2,5": r"module 'a' on inputs \(x=float32 \[2, 5\]\)",
    "Block --input x": r"--input x: neither NAME=VALUE nor a .safetensors file",
    "Block --input x.safetensors": r"--input x.safetensors: there is no such file; .*safetensors.torch.save_file",
    "Block --input net.py": r"--input net.py: neither NAME=VALUE nor a .safetensors file",
    "Block --input x=x.safetensors": r"a file for one argument; .*Write --input x.safetensors\.$",
}


@pytest.mark.parametrize("line", [*MISSING])
def test_what_a_forward_cannot_take_is_one_line_with_the_way_out(run, line):
    code, out, err = run(LINE.format(line))
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("idfx: ") and len(err) < 700
    assert re.search(MISSING[line], err.rstrip("\n")), err
    assert not Path("weights.pt").exists()


def test_in_python_the_words_are_those_of_python():
    x = torch.ones(2, 4)
    cases: list[tuple[tuple, str]] = [
        (
            (),
            r"Net: no example input.*expected x \(torch.Tensor\), mask and scale \(float\), which its forward needs\."
            r" Pass example_inputs=\(x, mask\), example_kwargs=\{'scale': \.\.\.\}\.$",
        ),
        (((x,),), r"Net: mask and scale \(float\) are missing; .*example_inputs=\(x, mask\)"),
        (
            ((x, x), {"scael": 1.0}),
            r"Net: forward has no argument 'scael'; expected one of x, mask, scale\. Did you mean",
        ),
        (((x, x, x), {"scale": 1.0}), r"Net: 3 positional inputs; expected 2 \(x, mask\)"),
        (((x, x), {"scale": 1.0, "x": x}), r"Net: x is given twice"),
    ]
    for arguments, expected in cases:
        with pytest.raises(SourceError, match=expected) as caught:
            idfx.analyze(Net(), *arguments)
        assert "--input" not in str(caught.value)
    assert len(idfx.analyze(Net(), (x, x), {"scale": 1.0}).joins) == 1


def test_nothing_is_run_before_the_signature_has_been_looked_at():
    class Counts(Net):
        calls = 0

        def forward(self, x, mask):
            type(self).calls += 1
            return x

    with pytest.raises(SourceError, match="mask is missing"):
        idfx.analyze(Counts(), (torch.ones(1, 4),))
    assert Counts.calls == 0


# What the signature does not tell


def test_forwards_that_do_not_say_what_they_take_are_run(run):
    assert run(LINE.format("Open --input-shape x=2,4 --input anything=1"))[0] == 0
    assert run(LINE.format("Supplied --input-shape 2,4"))[0] == 0  # `factor` comes from the decorator


def test_a_wrapped_forward_that_refuses_a_call_says_what_is_missing():
    def plain(function):
        @functools.wraps(function)
        def call(self, *args, **kwargs):
            return function(self, *args, **kwargs)

        return call

    class Wrapped(Net):
        forward = plain(Net.forward)

    with pytest.raises(ForwardError, match=r"TypeError.*mask and scale \(float\) are missing;.*--input scale=0.5"):
        idfx.analyze(Wrapped(), (torch.ones(2, 4),))
    with pytest.raises(ForwardError, match=r"TypeError.*no argument 'maks'.*Did you mean mask"):
        idfx.analyze(Wrapped(), (torch.ones(2, 4),), {"maks": torch.ones(2, 4), "scale": 1.0})


def test_hooks_and_calls_that_change_the_inputs_are_let_be():
    x = torch.ones(2, 4)
    hooked = Net()
    hooked.register_forward_pre_hook(lambda m, args, kwargs: ((*args, x), {"scale": 1.0}), with_kwargs=True)
    assert len(idfx.analyze(hooked, (x,)).joins) == 1

    class Unpacks(Net):
        def __call__(self, batch):
            return super().__call__(batch["x"], batch["mask"], scale=1.0)

    assert len(idfx.analyze(Unpacks(), ({"x": x, "mask": x},)).joins) == 1


def test_compiled_code_without_a_signature_is_not_judged():
    scripted = torch.jit.script(nn.Linear(4, 4))
    check(scripted, Example((1, 2, 3)), "scripted", "python")
    with pytest.raises(SourceError, match=r"no example input.*example_inputs="):
        idfx.analyze(scripted)


def test_a_wrapper_is_looked_through():
    with pytest.raises(SourceError, match=r"Net: mask and scale \(float\) are missing"):
        idfx.analyze(nn.DataParallel(Net()), (torch.ones(1, 4),))


def test_a_model_without_inputs_needs_none(run):
    assert run(LINE.format("Alone"))[0] == 0
    assert misfit(build("net.py:Alone", device="cpu").model, (), {}) == ""


# What is given


def test_named_inputs_reach_the_forward(run):
    line = "Masked --input-shape 2,4 --input-shape mask=2,4:bool --input scale=0.5 --input use=false --input mode=fast"
    assert run(LINE.format(line))[0] == 0
    example = build(
        "net.py:Masked", device="cpu", dtype="bfloat16", input_shapes=("2,4", "mask=2,4:bool", "half=3:float16"),
        inputs=("scale=0.5", "use=FALSE", "mode=fast", "sizes=[1, 2]", "none=None"),
    ).example  # fmt: skip
    assert [value.shape for value in example.args] == [(2, 4)] and example.args[0].dtype == torch.bfloat16
    mask, half = example.kwargs["mask"], example.kwargs["half"]
    assert (mask.dtype, half.dtype, tuple(half.shape)) == (torch.bool, torch.bfloat16, (3,))
    plain = {name: value for name, value in example.kwargs.items() if not isinstance(value, torch.Tensor)}
    assert plain == {"scale": 0.5, "use": False, "mode": "fast", "sizes": [1, 2], "none": None}


def test_integers_are_indices_of_the_smallest_table(run):
    assert run(LINE.format("Text --input-shape input_ids=3,50:int64"))[0] == 0


def test_a_named_input_takes_the_place_of_one_that_the_file_offers():
    before = build("net.py:Offers", device="cpu").example
    found = build("net.py:Offers", device="cpu", input_shapes=("gate=2,4",), inputs=("other=3",)).example
    assert torch.equal(found.args[0], before.args[0]) and not torch.equal(found.args[1], before.args[1])
    assert found.kwargs == {"other": 3}
    # Without a name the shapes are the whole example, as ever.
    found = build("net.py:Offers", device="cpu", input_shapes=("5,4",)).example
    assert [tuple(value.shape) for value in found.args] == [(5, 4)]


def test_tensors_come_from_a_file(run):
    x, mask = torch.arange(8.0).view(2, 4), torch.tensor([[True, False, True, True]] * 2)
    save_file({"x": x, "mask": mask}, "inputs.safetensors")
    assert run(LINE.format("Masked --input inputs.safetensors --input scale=1.0 --input use=false"))[0] == 0
    found = build("net.py:Masked", device="cpu", inputs=("inputs.safetensors",)).example
    assert found.args == () and torch.equal(found.kwargs["x"], x) and torch.equal(found.kwargs["mask"], mask)
    save_file({"x": x, "mask": mask, "masc": ~mask}, "inputs.safetensors")
    code, _, err = run(LINE.format("Masked --input inputs.safetensors --input scale=1.0 --input use=false"))
    assert code == 2 and "forward has no argument 'masc'; " in err and "Did you mean mask" in err
    code, _, err = run(LINE.format("Masked --input inputs.safetensors --input-shape x=2,4"))
    assert code == 2 and "x is given twice" in err


class Touches:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("name", ["inputs.pt", "inputs.safetensors"])
def test_nothing_is_unpickled(run, name):
    Path(name).write_bytes(pickle.dumps({"x": Touches()}))
    code, out, err = run(LINE.format(f"Block --input {name}"))
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"idfx: --input {name}: ")
    assert not Path("unpickled").exists()
    pickle.loads(pickle.dumps(Touches()))
    assert Path("unpickled").exists()  # it would have


def test_draws_follow_the_seed_and_the_place_whether_named_or_not():
    by_order = parse_shapes(("2,3", "4:int64"), seed=3)
    named = parse_inputs(("a=2,3", "b=4:int64"), (), seed=3)
    assert named.args == () and list(named.kwargs) == ["a", "b"]
    assert all(torch.equal(a, b) for a, b in zip(by_order, named.kwargs.values(), strict=True))


@pytest.mark.parametrize("dtype", ["bool", "int64", "int32"])
def test_no_row_of_a_mask_is_hidden_or_shown_as_a_whole(dtype):
    """Two entries are the hardest case: half of all draws would be constant."""
    for seed in range(20):
        (mask,) = parse_shapes((f"3,2:{dtype}",), seed=seed)
        assert {tuple(row) for row in mask.int().tolist()} <= {(0, 1), (1, 0)}
    assert set(parse_shapes((f"500:{dtype}",))[0].int().tolist()) == {0, 1}
    assert parse_shapes((f"5,1:{dtype}",))[0].shape == (5, 1)


def test_malformed_values():
    for text, expected in {
        "a=1": None,
        "=1": "neither NAME=VALUE",
        "a.b=1": "neither NAME=VALUE",
        "": "neither NAME=VALUE",
    }.items():
        if expected is None:
            assert parse_inputs((), (text,)).kwargs == {"a": 1}
        else:
            with pytest.raises(UsageError, match=expected):
                parse_inputs((), (text,))
    with pytest.raises(UsageError, match="a is given twice"):
        parse_inputs(("a=1",), ("a=1",))


# What is given stays as it is


@dataclasses.dataclass
class State:
    hidden: torch.Tensor
    log: list[str] = dataclasses.field(default_factory=list)


class Slotted:
    __slots__ = ("hidden", "log")

    def __init__(self, hidden, log):
        self.hidden, self.log = hidden, log


class Writes(nn.Module):
    """Changes its inputs, in place and by appending, as a model with a cache does; `looks` asks for real tensors."""

    def __init__(self, looks=False):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.looks = looks

    def forward(self, x, states, seen):
        for state in states:
            state.hidden += x
            state.log.append("called")
            x = state.hidden
        seen["x"] = x
        return x + self.fc(x) if not self.looks or float(x.sum()) > -99 else x


@pytest.mark.parametrize("looks", [False, True])
def test_a_forward_that_writes_to_its_inputs_leaves_the_ones_given_alone(looks):
    states = collections.deque([State(torch.ones(2, 4)), Slotted(torch.ones(2, 4), [])])
    x, seen = torch.ones(2, 4), {}
    idfx.analyze(Writes(looks), (x, states), {"seen": seen})
    report = idfx.init_(Writes(looks), (x, states), {"seen": seen})
    assert report.certificate.certified == 1
    assert all(torch.equal(state.hidden, torch.ones(2, 4)) and state.log == [] for state in states)
    assert torch.equal(x, torch.ones(2, 4)) and seen == {}


def test_a_tensor_that_is_shared_between_inputs_is_shared_in_the_copy():
    one = torch.ones(2)
    state = State(one)
    first, (second, third) = map_tensors((one, [state, state]), torch.clone)
    assert first is second.hidden and second is third and first is not one


def test_packed_sequences_refuse_the_meta_device_and_are_copied_for_a_real_run():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 4), torch.ones(2, 4)])
    assert idfx.analyze(nn.LSTM(4, 4), (packed,)).capture.how == "real"


def test_an_input_that_cannot_be_copied_is_refused():
    state = State(torch.ones(2, 4))
    state.lock = threading.Lock()
    with pytest.raises(CaptureError, match=r"^example inputs: they cannot be copied \(.*lock.*copy.deepcopy"):
        idfx.analyze(Writes(), (torch.ones(2, 4), [state], {}))
