"""Where the time of `idfx init` goes: a separate process runs the stages of the command, then the floor of each.

    python -m idfx.bench.stages timm:resnet50 weights.pt

Prints one JSON object: seconds by stage and by floor. The floor of a stage is the minimum work for it: importing only
torch and the model's library, a build without drawing values, a forward pass on meta tensors for the capture, `zero_()`
of fresh memory of the same size for the fills, the same two forward passes for the certificate, and writing the same
bytes with plain system calls.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGES = ("imports", "build", "capture", "analysis", "fill", "certificate", "write")


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def of(self, name: str, act: Callable[[], Any]) -> Any:
        """Return the result of an action, and record its time."""
        start = time.perf_counter()
        result = act()
        self.seconds[name] = time.perf_counter() - start
        return result


def _imports(spec: str) -> None:
    importlib.import_module("torch")
    library = spec.partition(":")[0]
    if library in ("timm", "torchvision", "transformers"):
        importlib.import_module(library)


def _own_imports() -> None:
    for name in ("api", "building", "export", "planning", "structure"):
        importlib.import_module(f"idfx.{name}")


def measure(spec: str, file: str) -> dict[str, dict[str, float]]:
    """Return seconds by stage and by floor; call this once, in a fresh process."""
    stage, floor = Clock(), Clock()
    floor.of("imports", lambda: _imports(spec))
    stage.of("imports", _own_imports)
    stage.seconds["imports"] += floor.seconds["imports"]

    from idfx.analysis.structure import build_structure
    from idfx.api import prove
    from idfx.building.build import build
    from idfx.capture.tracing import capture
    from idfx.planning.apply import apply_built_
    from idfx.planning.export import save
    from idfx.planning.make import make_plan

    built = stage.of("build", lambda: build(spec, device="cpu"))
    assert built.example is not None
    captured = stage.of("capture", lambda: capture(built.model, built.example))
    structure, plan = stage.of("analysis", lambda: (made := build_structure(captured), make_plan(made)))
    stage.of("fill", lambda: apply_built_(built, plan))
    stage.of("certificate", lambda: prove(built.model, structure, plan))
    stage.of("write", lambda: save(built.model, file, plan=plan))
    _floors(floor, spec, file, built)
    return {"stages": stage.seconds, "floors": floor.seconds}


def _floors(floor: Clock, spec: str, file: str, built: Any) -> None:
    import torch

    from idfx.building.build import build

    floor.of("build", lambda: build(spec, device="cpu"))
    model, x = built.model.eval(), built.example.args
    named = (*model.named_parameters(), *model.named_buffers())
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in named}
    on_meta = tuple(value.to("meta") for value in x)
    with torch.no_grad():
        floor.of("capture", lambda: torch.func.functional_call(model, meta, on_meta))
        floor.of("certificate", lambda: (model(*x), model(*x)))
    sizes = [parameter.numel() for parameter in model.parameters()]
    floor.of("fill", lambda: [torch.empty(size).zero_() for size in sizes])
    floor.of("write", lambda: write_raw(model, f"{file}.raw"))
    Path(f"{file}.raw").unlink()


def write_raw(model: Any, file: str) -> int:
    """Write only the bytes of a state dict, tensor by tensor, and return their number."""
    written = 0
    with open(file, "wb", buffering=0) as raw:  # noqa: PTH123
        for tensor in model.state_dict().values():
            written += raw.write(memoryview(tensor.numpy()).cast("B")) if tensor.numel() else 0
    return written


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
