"""The speed of idfx, as ratios within one run: whole processes, their stages, fills, analysis, growth."""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from idfx.bench import devices, growth
from idfx.bench.growth import timed
from idfx.bench.ratios import Ratio
from idfx.bench.stages import STAGES
from idfx.core.errors import ResourceError

# models of timm by size
MODELS = {
    "vit_tiny_patch16_224": 5_717_416,
    "resnet50": 25_557_032,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "vit_giant_patch14_224": 1_012_646_888,
}
# and models that are built whole on a device, with a language model of transformers in addition
WHOLE = {f"timm:{name}": size for name, size in MODELS.items()} | {"transformers:llama": 6_607_343_616}
READ = ("resnet50", "vit_base_patch16_224", "swin_tiny_patch4_window7_224")
BASELINE = "import timm, torch; torch.save(timm.create_model('{name}').state_dict(), '{file}')"
IMPORTS = "import timm, torch, idfx.api"
SECTIONS = ("process", "stages", "fill", "whole", "read", "depth", "parameters")


def measured(command: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak memory in MiB of a command.

    Raises:
        ResourceError: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = status
    if status:
        raise ResourceError(
            f"{' '.join(command)}: ended with status {status}; expected 0. It may have run out of memory."
        )
    return seconds, usage.ru_maxrss / 1024


def _idfx(*words: str) -> list[str]:
    return [sys.executable, "-m", "idfx", *words]


def process(names: list[str], runs: int) -> Iterator[Ratio]:
    """Yield `idfx init` against timm.create_model and torch.save, and peak memory against weights."""
    empty = [sys.executable, "-c", "pass"]
    pairs = [(measured(_idfx("--help")), measured(empty)) for _ in range(runs + 1)][1:]
    yield Ratio("process", "idfx --help / python -c pass", tuple(a[0] / b[0] for a, b in pairs))
    bare = statistics.median(measured([sys.executable, "-c", IMPORTS])[1] for _ in range(3)) if names else 0.0
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/weights.pt"

        def fresh(command: list[str]) -> tuple[float, float]:
            Path(file).unlink(missing_ok=True)
            return measured(command)

        for name in names:
            ours = _idfx("init", f"timm:{name}", "-o", file, "--device", "cpu", "-q")
            theirs = [sys.executable, "-c", BASELINE.format(name=name, file=file)]
            pairs = [(fresh(ours), fresh(theirs)) for _ in range(runs + 1)][1:]
            seconds = [statistics.median(pair[side][0] for pair in pairs) for side in (0, 1)]
            times = f"{seconds[0]:.2f} s and {seconds[1]:.2f} s"
            ratios = tuple(a[0] / b[0] for a, b in pairs)
            yield Ratio("process", f"{name}: idfx init / timm and torch.save", ratios, times)
            weights = MODELS[name] * 4 / 2**20
            peak = tuple((a[1] - bare) / weights for a, _ in pairs)
            label = f"{name}: peak memory above that of the imports / weights"
            yield Ratio("process", label, peak, f"{weights:.0f} MiB of weights, imports {bare:.0f} MiB")


def stages(names: list[str], runs: int) -> Iterator[Ratio]:
    """Yield each stage of `idfx init` against its floor (see `idfx.bench.stages`)."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            rounds: list[dict[str, dict[str, float]]] = []
            for _ in range(runs + 1):
                Path(f"{folder}/weights.pt").unlink(missing_ok=True)  # replacing a file would sync the new one first
                command = [sys.executable, "-m", "idfx.bench.stages", f"timm:{name}", f"{folder}/weights.pt"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise ResourceError(
                        f"{name}: its process ended with {done.returncode}; expected 0. {done.stderr[-200:]}"
                    )
                rounds.append(json.loads(done.stdout))
            rounds = rounds[1:]
            whole = statistics.median(sum(taken["stages"].values()) for taken in rounds)
            for stage in STAGES:
                own = statistics.median(taken["stages"][stage] for taken in rounds)
                detail = f"{own:.3f} s, {own / whole:.0%} of all"
                if stage not in rounds[0]["floors"]:
                    share = tuple(taken["stages"][stage] / sum(taken["stages"].values()) for taken in rounds)
                    yield Ratio("stages", f"{name}: {stage} / all stages", share, detail)
                    continue
                ratios = tuple(taken["stages"][stage] / taken["floors"][stage] for taken in rounds)
                yield Ratio("stages", f"{name}: {stage} / its floor", ratios, detail)


def read(name: str, runs: int) -> list[Ratio]:
    """Return capture against a forward pass on meta tensors, make_fx against the same, and analysis against capture."""
    import timm
    from torch.fx.experimental.proxy_tensor import make_fx

    from idfx.analysis.structure import build_structure
    from idfx.capture.tracing import record
    from idfx.core.records import Example

    net: Any = timm.create_model(name).eval()
    size = net.pretrained_cfg["input_size"]
    example, meta = Example((torch.randn(1, *size),)), torch.empty(1, *size, device="meta")
    named = (*net.named_parameters(), *net.named_buffers())
    tensors = {key: torch.empty_like(tensor, device="meta") for key, tensor in named}

    @torch.no_grad()
    def forward() -> Any:
        return torch.func.functional_call(net, tensors, (meta,))

    @torch.no_grad()
    def theirs() -> Any:
        call = make_fx(lambda *args: torch.func.functional_call(net, *args), pre_dispatch=True, tracing_mode="real")
        return call(tensors, (meta,))

    rounds = []
    for _ in range(runs + 1):
        bare, _ = timed(forward)
        ours, captured = timed(lambda: record(net, example, "meta"))
        own, _ = timed(functools.partial(build_structure, captured))
        rounds.append((bare, ours, own, timed(theirs)[0]))
    nodes = f"{len(captured.graph.nodes)} nodes"
    pairs = (("capture / forward", 1, 0), ("make_fx / forward", 3, 0), ("analysis / capture", 2, 1))
    return [
        Ratio("read", f"{name}: {label}", tuple(taken[above] / taken[below] for taken in rounds[1:]), nodes)
        for label, above, below in pairs
    ]


def measure(
    most: int,
    runs: int,
    blocks: int,
    device: str,
    only: tuple[str, ...] = SECTIONS,
    step: Callable[[str], None] = print,
) -> Iterator[Ratio]:
    """Yield all ratios as they are measured; what runs in this process has one thread.

    Args:
        most: the largest model, in parameters.
        runs: rounds, after one that does not count.
        blocks: the deepest chain.
        device: of the fills and of whole initialisations.
        only: these sections.
        step: is told the section that begins.
    """
    names = [name for name, size in MODELS.items() if size <= most]
    small = [name for name in READ if MODELS.get(name, 30_000_000) <= most]
    acts: dict[str, Callable[[], Iterable[Ratio]]] = {
        "process": lambda: process(names, runs),
        "stages": lambda: stages(names, runs),
        "fill": lambda: (devices.fill(f"timm:{name}", runs, device) for name in names),
        "whole": lambda: (devices.whole(spec, runs, device) for spec, size in WHOLE.items() if size <= most),
        "read": lambda: (ratio for name in small for ratio in read(name, runs)),
        "depth": lambda: growth.depth(blocks, runs),
        "parameters": lambda: growth.parameters(runs),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for section in only:
            step(section)
            for ratio in acts[section]():
                step(f"{section}: {ratio.name}: {ratio.median:.2f}")
                yield ratio
    finally:
        torch.set_num_threads(threads)
