"""How the cost of reading a model grows with its depth and with its parameters."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from idfx.analysis.structure import build_structure
from idfx.bench.ratios import Ratio
from idfx.capture.tracing import capture
from idfx.core.records import Example
from idfx.planning.make import make_plan


class Chain(nn.Module):
    """x ← x + b(relu(a(x))), so many blocks of two layers of their own."""

    def __init__(self, blocks: int, width: int = 2) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.b = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for a, b in zip(self.a, self.b, strict=True):
            x = x + b(torch.relu(a(x)))
        return x


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many seconds an action takes, and its result."""
    gc.collect()
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result


def _read(net: nn.Module, x: Tensor) -> tuple[float, float, float, int]:
    """Seconds of capture, analysis and plan, and the number of nodes."""
    first, captured = timed(lambda: capture(net, Example((x,))))
    second, structure = timed(lambda: build_structure(captured))
    third, _ = timed(lambda: make_plan(structure))
    return first, second, third, len(captured.graph.nodes)


def depth(most: int, runs: int) -> list[Ratio]:
    """Return the seconds per node of capture, analysis and plan at each depth over those at the first; 1 is linear.

    Args:
        most: blocks; 10, 100, 1000, ... up to it.
        runs: rounds, each of which measures every depth; from 10,000 blocks on only the first three do.
    """
    depths = [10**power for power in range(1, round(math.log10(most)) + 1) if 10**power <= most]
    rounds: list[dict[int, tuple[float, ...]]] = []
    nodes: dict[int, int] = {}
    for number in range(runs + 1):
        taken: dict[int, tuple[float, ...]] = {}
        for blocks in depths:
            if blocks >= 10_000 and number > 3:
                continue
            *seconds, nodes[blocks] = _read(Chain(blocks), torch.ones(1, 2))
            taken[blocks] = tuple(value / nodes[blocks] for value in seconds)
        rounds.append(taken)
    found = []
    base = depths[1] if len(depths) > 1 else depths[0]  # below, what is done once for a model counts
    for blocks in depths:
        for at, stage in enumerate(("capture", "analysis", "plan")):
            kept = [taken for taken in rounds[1:] if blocks in taken]
            ratios = [taken[blocks][at] / taken[base][at] for taken in kept]
            micro = statistics.median(taken[blocks][at] for taken in kept) * 1e6
            label = f"{stage} per node, {blocks} blocks, {nodes[blocks]} nodes / {base} blocks"
            found.append(Ratio("depth", label, tuple(ratios), f"{micro:.0f} µs per node"))
    return found


def parameters(runs: int) -> list[Ratio]:
    """Return the seconds of reading and planning ten blocks on the meta device, at 10^6 to 10^10 parameters / 10^6."""
    powers = range(6, 11)
    rounds = []
    for _ in range(runs + 1):
        taken = []
        for power in powers:
            width = round(math.sqrt(10**power / 20))
            with torch.device("meta"):
                net, x = Chain(10, width), torch.ones(1, width)
            taken.append(sum(_read(net, x)[:3]))
        rounds.append(taken)
    found = []
    for at, power in enumerate(powers):
        ratios = tuple(taken[at] / taken[0] for taken in rounds[1:])
        seconds = statistics.median(taken[at] for taken in rounds[1:])
        found.append(
            Ratio("parameters", f"read and plan 10^{power} parameters on meta / 10^6", ratios, f"{seconds:.3f} s")
        )
    return found
