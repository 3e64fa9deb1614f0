"""How fast models are filled, and initialised as a whole, where their memory is: on the CPU or on a CUDA device."""

from __future__ import annotations

import statistics

import torch

from idfx.analysis.structure import build_structure
from idfx.api import prove
from idfx.bench.growth import timed
from idfx.bench.ratios import Ratio
from idfx.building.build import build
from idfx.capture.tracing import capture
from idfx.planning.apply import apply_, apply_built_
from idfx.planning.make import make_plan


def _wait(device: str) -> None:
    """Return when the device has done what it was asked for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _copying(device: str) -> float:
    """The bandwidth of a copy of 256 MiB on a device, what is read and what is written counted, in GiB/s."""
    source, target = (torch.zeros(2**26, device=device) for _ in range(2))

    def act() -> None:
        target.copy_(source)
        _wait(device)

    return statistics.median(0.5 / timed(act)[0] for _ in range(5))


def fill(spec: str, runs: int, device: str) -> Ratio:
    """Return the fills of a plan against `zero_()` of the same tensors, in memory that has been written to before."""
    built = build(spec, device=device)
    built.pending.materialize(built.model)
    assert built.example is not None
    plan = make_plan(build_structure(capture(built.model, built.example)))
    tensors = [parameter.data for parameter in built.model.parameters()]

    def ours() -> None:
        apply_(built.model, plan)
        _wait(device)

    def bare() -> None:
        for tensor in tensors:
            tensor.zero_()
        _wait(device)

    _wait(device)
    rounds = [(timed(ours)[0], timed(bare)[0]) for _ in range(runs + 1)][1:]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    bandwidth = statistics.median(size / seconds for _, seconds in rounds) / 2**30
    ratios = tuple(above / below for above, below in rounds)
    detail = f"zero_(): {bandwidth:.1f} GiB/s, copy_(): {_copying(device):.1f} GiB/s read and written"
    return Ratio("fill", f"{spec}: fills / zero_() on {device}", ratios, detail)


def whole(spec: str, runs: int, device: str) -> Ratio:
    """Return the cost of building and initialising a model on a device, relative to building it with its own values.

    Capture, analysis, fills and certificate are in it; imports and files are not.
    """

    def ours() -> None:
        built = build(spec, device=device)
        assert built.example is not None
        structure = build_structure(capture(built.model, built.example))
        plan = make_plan(structure)
        apply_built_(built, plan)
        prove(built.model, structure, plan)
        _wait(device)

    def theirs() -> None:
        built = build(spec, device=device)
        built.pending.materialize(built.model)
        _wait(device)

    rounds = [(timed(ours)[0], timed(theirs)[0]) for _ in range(runs + 1)][1:]
    first, second = (statistics.median(taken[side] for taken in rounds) for side in (0, 1))
    ratios = tuple(above / below for above, below in rounds)
    what = f"{spec}: build, init and certificate / build with its own values, on {device}"
    return Ratio("whole", what, ratios, f"{first:.2f} s and {second:.2f} s")
