"""Time of reading the structure of a chain of residual blocks, ten times as many each time; the capture apart."""

import time

import torch
from torch import nn

from idfx.analysis.structure import build_structure
from idfx.capture.tracing import capture
from idfx.core.records import Example


class Chain(nn.Module):
    """x ← x + b(relu(a(x))), each block with two layers of its own."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
        self.b = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for a, b in zip(self.a, self.b, strict=True):
            x = x + b(torch.relu(a(x)))
        return x


if __name__ == "__main__":
    build_structure(capture(Chain(1), Example((torch.ones(1, 2),))))  # what is imported on first use
    for depth in (100, 1000, 10000):
        start = time.perf_counter()
        captured = capture(Chain(depth), Example((torch.ones(1, 2),)))
        middle = time.perf_counter()
        found = build_structure(captured)
        end = time.perf_counter()
        taken = f"capture {middle - start:6.2f} s, analysis {end - middle:6.2f} s"
        print(f"{depth:6} blocks: {taken}, {len(found.joins)} joins")
