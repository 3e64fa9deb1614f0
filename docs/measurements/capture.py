"""Capture against one forward pass on the meta device, and analysis against capture; then the growth with size.

    python docs/measurements/capture.py
    python docs/measurements/capture.py --chain 100 1000 10000 12500

For each model: medians over `--runs` rounds, each of which measures all three in turn, and the range of the ratios.
For comparison, make_fx on the PreDispatch key, as torch has it. A chain of N residual blocks has 8 N nodes.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from idfx.capture import record
from idfx.records import Example
from idfx.structure import analyse

MODELS = ("resnet50", "vit_base_patch16_224", "swin_tiny_patch4_window7_224")


def seconds(act: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long something takes, and its result."""
    gc.collect()
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result


def told(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def model(name: str, runs: int) -> None:
    """Print the line of one model."""
    net = timm.create_model(name).eval()
    size = net.pretrained_cfg["input_size"]
    example, meta = Example((torch.randn(1, *size),)), torch.empty(1, *size, device="meta")
    named = (*net.named_parameters(), *net.named_buffers())
    tensors = {key: torch.empty_like(tensor, device="meta") for key, tensor in named}

    def forward() -> Any:
        with torch.no_grad():
            return torch.func.functional_call(net, tensors, (meta,))

    def torch_capture() -> Any:
        call = make_fx(lambda *args: torch.func.functional_call(net, *args), pre_dispatch=True, tracing_mode="real")
        with torch.no_grad():
            return call(tensors, (meta,))

    rounds = []
    for _ in range(runs + 1):
        bare, _ = seconds(forward)
        ours, captured = seconds(lambda: record(net, example, "meta"))
        read, structure = seconds(lambda captured=captured: analyse(captured))
        theirs, _ = seconds(torch_capture)
        rounds.append((bare, ours, read, theirs))
    rounds = rounds[1:]
    print(
        f"{name:32} {len(captured.graph.nodes):5} nodes, {len(structure.joins):3} joins   "
        f"capture / forward {told([ours / bare for bare, ours, _, _ in rounds])}   "
        f"make_fx / forward {told([theirs / bare for bare, _, _, theirs in rounds])}   "
        f"analysis / capture {told([read / ours for _, ours, read, _ in rounds])}",
        flush=True,
    )


def chain(blocks: int) -> None:
    """Print the line of a chain of residual blocks."""
    path = Path(__file__).parents[1] / "examples" / "linear_cost.py"
    spec = importlib.util.spec_from_file_location("linear_cost", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Chain(blocks)
    ours, captured = seconds(lambda: record(net, Example((torch.ones(1, 2),)), "meta"))
    read, _ = seconds(lambda: analyse(captured))
    nodes = len(captured.graph.nodes)
    print(
        f"{nodes:7} nodes   capture {ours:6.2f} s, {ours / nodes * 1e6:4.0f} µs per node   "
        f"analysis {read:6.2f} s, {read / nodes * 1e6:4.0f} µs per node",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--chain", nargs="*", type=int, default=[], metavar="BLOCKS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.chain:
        for blocks in options.chain:
            chain(blocks)
        return
    for name in options.models:
        model(name, options.runs)


if __name__ == "__main__":
    main()
