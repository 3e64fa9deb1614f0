"""What writing a state dict costs, against the same bytes written one tensor after the other.

python docs/measurements/write.py timm:resnet50 --runs 9
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from idfx.bench.stages import write_raw
from idfx.building.build import build
from idfx.planning.export import save


def torch_save(model: torch.nn.Module, file: str, checksums: bool = True) -> None:
    """torch.save to an open file, with or without the checksums of its zip archive."""
    torch.serialization.set_crc32_options(checksums)
    try:
        with open(file, "wb", buffering=1 << 20) as target:  # noqa: PTH123
            torch.save(model.state_dict(), target)
    finally:
        torch.serialization.set_crc32_options(True)


WAYS: dict[str, tuple[bool, Callable[[torch.nn.Module, str], object]]] = {
    "torch.save": (True, lambda model, file: torch_save(model, file)),
    "torch.save without checksums": (True, lambda model, file: torch_save(model, file, checksums=False)),
    "idfx, a new .pt": (True, lambda model, file: save(model, f"{file}.pt")),
    "idfx, a .pt replaced": (False, lambda model, file: save(model, f"{file}.pt")),
    "idfx, a new .safetensors": (True, lambda model, file: save(model, f"{file}.safetensors")),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec")
    parser.add_argument("--runs", type=int, default=9)
    given = parser.parse_args()
    built = build(given.spec, device="cpu")
    built.pending.materialize(built.model)
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:

        def timed(act: Callable[[torch.nn.Module, str], object], fresh: bool = True) -> float:
            for path in Path(folder).iterdir() if fresh else ():
                path.unlink()
            gc.collect()
            start = time.perf_counter()
            act(built.model, f"{folder}/weights")
            return time.perf_counter() - start

        for number in range(given.runs + 1):
            for name, (fresh, act) in WAYS.items():
                floor = timed(write_raw)
                if not fresh:
                    timed(act)
                if number:
                    taken[name].append(timed(act, fresh) / floor)
    for name, ratios in taken.items():
        print(f"{name:<30} {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
