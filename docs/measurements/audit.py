"""What the data-free audit of a model costs, against its capture, in one run.

python docs/measurements/audit.py timm:resnet50 --runs 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from idfx.analysis.structure import build_structure
from idfx.audits.metric import METRICS
from idfx.audits.run import examine
from idfx.building.build import build
from idfx.capture.tracing import capture
from idfx.core.records import Example


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(spec: str, runs: int) -> None:
    """Print the ratio of audit to capture of one model, and each metric alone."""
    built = build(spec, device="cpu")
    built.pending.materialize(built.model)
    model, example = built.model, built.example or Example()
    structure = build_structure(capture(model, example))

    def audit(only: tuple[str, ...] = ()) -> float:
        return seconds(lambda: examine(model, structure, only, {}))

    audit()  # imports
    captures, ratios = [], []
    for _ in range(runs):
        captures.append(seconds(lambda: capture(model, example)))
        ratios.append(audit() / captures[-1])
    print(f"{spec}: capture {statistics.median(captures):.2f} s, audit / capture", end=" ")
    print(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    for name in (name for name in METRICS if not METRICS[name].batch):
        print(f"  {name} {audit((name,)):.3f} s")


def main() -> None:
    """Measure each model that is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("specs", nargs="+")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    for spec in given.specs:
        measure(spec, given.runs)


if __name__ == "__main__":
    main()
