"""--timeout and --max-memory: what is stopped, what is said, what is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest
import torch
from idfx_cli import limits
from torch import nn

import idfx
from idfx.capture.module_path import running_module
from idfx.capture.tracing import capture
from idfx.core.errors import IdfxError, ResourceError
from idfx.core.records import Example

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is bounded on Linux only")

FILE = '''
import ctypes
import time
from pathlib import Path
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))

def loops():
    while True:
        try:
            time.sleep(0.001)
        except Exception:
            pass

def builds():
    loops()

class Inner(nn.Module):
    def forward(self, x):
        loops()

class Outer(Block):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Identity(), Inner())

    def forward(self, x):
        return self.inner(x)

class Certifies(Block):
    """Comes back from the run on meta tensors only."""

    def forward(self, x):
        if not self.a.weight.is_meta:
            loops()
        return super().forward(x)

class Converts(Block):
    """Makes an error of the interruption, after which the forward is tried on real tensors."""

    def forward(self, x):
        Path("started").touch()
        try:
            loops()
        except BaseException as error:
            raise ValueError("mine") from error

class Shrugs(Block):
    """Takes the interruption for an answer and goes on."""

    def forward(self, x):
        try:
            loops()
        except BaseException:
            return super().forward(x)

class Swallows(Block):
    def forward(self, x):
        Path("started").touch()
        while True:
            try:
                loops()
            except BaseException:
                pass

class Holds(Block):
    """A call into C that keeps the lock of the interpreter."""

    def forward(self, x):
        Path("started").touch()
        while True:
            ctypes.PyDLL(None).sleep(1000)

class Wide(Block):
    """4 GiB of activations, where there are any."""

    def forward(self, x):
        return super().forward(x) + self.a(x).new_ones(2**30).sum()

class Grows(Block):
    def forward(self, x):
        kept = []
        while True:
            kept.append(torch.ones(2**20))

def huge():
    return nn.Linear(2**15, 2**15)
'''

# A fresh process in which the libraries are loaded, those that are loaded late too, before the clock starts.
PROGRAM = """
import sys
import torch
import idfx, idfx.building.build
from idfx_cli import limits
from idfx_cli.main import main
idfx.init_(torch.nn.Linear(2, 2), torch.ones(1, 2))
limits.GRACE = 0.3
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("idfx_source_")]:
        del sys.modules[name]


def program(line: str) -> tuple[int, str, str]:
    """Run the program in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout, done.stderr


def files() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"net.py", "__pycache__", "started"}


# Time


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("init net.py:builds -o weights.pt", "in the stage 'build'"),
        ("init net.py:Outer -o weights.pt", "in the stage 'capture', in the forward of module 'inner.1'"),
        ("plan net.py:Outer -o plan.json", "in the stage 'capture', in the forward of module 'inner.1'"),
        ("analyze net.py:Outer --dot graph.dot", "in the stage 'capture', in the forward of module 'inner.1'"),
        ("explain net.py:Outer a.weight", "in the stage 'capture', in the forward of module 'inner.1'"),
        ("init net.py:Certifies -o weights.pt", "in the stage 'certify 1 joins', in the model's forward"),
        ("plan net.py:Shrugs -o plan.json", "in the stage 'capture', in the model's forward"),
    ],
)
def test_a_loop_in_python_is_stopped(run, monkeypatch, line, where):
    monkeypatch.setattr(limits, "GRACE", 60.0)  # what follows would end this process
    handler, state, threads = signal.getsignal(signal.SIGALRM), torch.get_rng_state(), threading.active_count()
    started = time.monotonic()
    code, out, err = run(f"{line} --input-shape 2,4 --timeout 1.5")
    took = time.monotonic() - started
    assert (code, out, files(), err.count("\n")) == (2, "", set(), 1)
    found = re.fullmatch(
        r"idfx: net.py:\w+: stopped after ([\d.]+) s (.*); expected .*--timeout 1.5\. Raise it.*\n", err
    )
    assert found is not None and found[2] == where, err
    assert 1.5 <= float(found[1]) <= took < 30
    # The process goes on as it was.
    assert signal.getsignal(signal.SIGALRM) == handler and threading.active_count() == threads
    assert torch.equal(torch.get_rng_state(), state) and running_module() is None
    assert idfx.analyze(nn.Linear(2, 2), (torch.ones(1, 2),)).joins == ()


def test_in_time_nothing_changes(run):
    line = "init net.py:Block --input-shape 2,4 -o {} --json"
    plain, bounded = run(line.format("a.pt")), run(line.format("b.pt") + " --timeout 600")
    assert (bounded[0], bounded[2]) == (0, "") and plain[1].replace("a.pt", "b.pt") == bounded[1]
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()


def test_the_clock_does_not_run_while_a_file_is_written(run, monkeypatch):
    import idfx.planning.export

    save = idfx.planning.export.save

    def slow(*args, **kwargs):
        time.sleep(4)
        return save(*args, **kwargs)

    monkeypatch.setattr(idfx.planning.export, "save", slow)
    assert run("init net.py:Block --input-shape 2,4 -o weights.pt --timeout 3.5")[0] == 0
    assert files() == {"weights.pt"}


def test_debug_shows_where_the_time_went(run):
    code, _, err = run("analyze net.py:Outer --input-shape 2,4 --timeout 1.5 --debug")
    assert code == 2 and "in loops" in err and err.splitlines()[-1].startswith("idfx: net.py:Outer: stopped after")


@pytest.mark.parametrize(("model", "debug"), [("Swallows", ""), ("Converts", " --debug")])
def test_what_no_exception_ends_is_ended_all_the_same(model, debug):
    Path("weights.pt").write_bytes(b"precious")
    code, out, err = program(f"init net.py:{model} --input-shape 2,4 -o weights.pt --timeout 3{debug}")
    assert (code, out, files()) == (2, "", {"weights.pt"}) and Path("started").exists()
    assert re.fullmatch(rf"idfx: net.py:{model}: stopped after .* 'capture', in the model's .*", err.splitlines()[-1])
    assert (err.count("\n") == 1) != bool(debug) and (", in loops" in err) == bool(debug)
    assert Path("weights.pt").read_bytes() == b"precious"


def test_what_holds_the_lock_of_the_interpreter_is_ended_by_the_last_resort():
    """sleep() comes back from the first signal; none is sent while the lock is held, so it does not."""
    code, out, err = program("init net.py:Holds --input-shape 2,4 -o weights.pt --timeout 3")
    assert (code, out, files()) == (1, "", set()) and Path("started").exists()
    assert err.startswith("Timeout (0:00:03.6") and "in forward" in err


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "soon", ""])
def test_times_that_are_none(run, text):
    code, out, err = run(f"analyze net.py:Block --timeout={text}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"'--timeout': {text!r} is not a time; expected a number of seconds above 0" in err


# Memory


@linux
def test_a_program_that_needs_more_than_it_may_have():
    Path("weights.pt").write_bytes(b"precious")
    code, out, err = program("init net.py:Grows --input-shape 2,4 -o weights.pt --max-memory 1.3GiB")
    assert (code, out, files(), err.count("\n")) == (2, "", {"weights.pt"}, 1), err
    assert re.match(
        r"idfx: net.py:Grows: out of memory in the stage 'capture' with --max-memory 1.3GiB, 0\.\d\d GiB", err
    )
    assert "Raise it" in err and "Give inputs" not in err
    assert Path("weights.pt").read_bytes() == b"precious"


@linux
@pytest.mark.parametrize(
    ("model", "where"),
    [
        ("huge", r"'build' .*: out of memory on cpu.*you tried to allocate 4294967296 bytes"),
        ("Wide", r"'certify 1 joins' .*: Wide: out of memory in its own forward on inputs \(float32 \[2, 4\]\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(run, model, where):
    code, out, err = run(f"init net.py:{model} --input-shape 2,4 -o weights.pt --max-memory {limits._data() + 2**30}B")
    assert (code, out, files(), err.count("\n")) == (2, "", set(), 1)
    assert re.match(rf"idfx: net.py:{model}: out of memory in the stage {where}", err), err


@linux
def test_a_model_that_fits_is_as_without_the_bound(run):
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    bound = limits._data() + 2**30
    assert run("init net.py:Block --input-shape 2,4 -o a.pt")[0] == 0
    assert run(f"init net.py:Block --input-shape 2,4 -o b.pt --max-memory {bound}B")[0] == 0
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@linux
def test_the_bound_is_kept_and_taken_back(run):
    """In this process: an allocation of 2 GiB is refused under a bound of 1 GiB more than now, and works after it."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    bound = limits._data() + 2**30
    code, out, err = run(f"analyze net.py:huge --input-shape 2,4 --max-memory {bound}B")
    assert (code, out, err.count("\n")) == (2, "", 1) and "out of memory in the stage 'build'" in err
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert torch.empty(2**31, dtype=torch.uint8).numel() == 2**31


@linux
def test_less_than_the_libraries_take_is_refused(run):
    code, out, err = run("analyze net.py:Block --input-shape 2,4 --max-memory 20MB")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.match(r"idfx: --max-memory 20MB: the libraries alone take \d\.\d\d GiB; expected more than that\.", err)


@linux
def test_a_kernel_that_does_not_keep_the_bound_is_told(run, monkeypatch):
    import resource

    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    code, out, err = run("analyze net.py:Block --input-shape 2,4 --max-memory 8GiB")
    assert (code, out, err.count("\n")) == (2, "", 1) and "this kernel allows more" in err


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_where_memory_cannot_be_bounded_the_option_is_refused(run, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    code, out, err = run("analyze net.py:Block --input-shape 2,4 --max-memory 8GiB")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(
        f"idfx: --max-memory 8GiB: {platform} does not let a program limit its memory; expected Linux."
    )


def test_sizes():
    known = {"1B": 1, "2kB": 2000, "3 MiB": 3 * 2**20, "1.5GiB": 3 * 2**29, "500MB": 5 * 10**8, "1tib": 2**40}
    assert {text: limits.parse_size(text).bytes for text in known} == known
    for text in ("", "5", "GiB", "0GiB", "4G", "-1GiB", "4 GiB GiB", "1e9B", "nanGB"):
        with pytest.raises(click.BadParameter, match="is not a size; expected a number above 0 with"):
            limits.parse_size(text)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        OSError(12, os.strerror(12)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_not_blamed_on_the_inputs_and_not_tried_again(error):
    class Hungry(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.inner.register_forward_pre_hook(self.fail)

        def fail(self, module, args):
            type(self).calls += 1
            raise error

        def forward(self, x):
            return self.inner(x)

    def materialize():
        raise AssertionError("real tensors are asked for")

    with pytest.raises(ResourceError, match=r"Hungry: out of memory in module 'inner' on inputs") as caught:
        capture(Hungry(), Example((torch.ones(1, 2),)), before_real=materialize)
    assert Hungry.calls == 1 and isinstance(caught.value, IdfxError)
    assert "Give inputs" not in str(caught.value) and caught.value.__cause__ is error


def test_memory_that_runs_out_elsewhere_is_one_line(run, monkeypatch):
    import idfx.planning.apply

    def fails(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(idfx.planning.apply, "apply_", fails)
    code, out, err = run("init net.py:Block --input-shape 2,4 -o weights.pt")
    assert (code, out, files(), err.count("\n")) == (2, "", set(), 1)
    assert "out of memory (RuntimeError: DefaultCPUAllocator" in err and "defect" not in err
