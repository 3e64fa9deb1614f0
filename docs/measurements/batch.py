"""What the one-batch audit costs against one forward and backward pass of the model, in one run; and a Jacobian.

python docs/measurements/batch.py timm:resnet50 timm:vit_tiny_patch16_224 --runs 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from idfx.analysis.structure import build_structure
from idfx.audits.metric import METRICS
from idfx.audits.run import examine
from idfx.building.build import build
from idfx.capture import capture, tensors_in
from idfx.core.records import Example
from idfx.measuring.batches import enlarged, sizes
from idfx.measuring.trial import BatchRun, on_first


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(spec: str, runs: int, jacobian: bool) -> None:
    """Print the ratio of the audit of a batch to a training step without the update."""
    built = build(spec, device="cpu")
    built.pending.materialize(built.model)
    model, example = built.model, built.example or Example()
    structure = build_structure(capture(model, example))
    trial = on_first(model, structure, enlarged(example, sizes(example)))
    batch = trial.whole.capture.example
    model.train()

    def step() -> None:
        outputs = [t for t in tensors_in(model(*batch.args, **batch.kwargs)) if t.is_floating_point()]
        torch.autograd.grad([output.sum() for output in outputs], list(model.parameters()), allow_unused=True)

    def audit(*only: str) -> None:
        fresh = BatchRun(trial.batch, trial.whole, trial.point, seconds=3600)
        examine(model, structure, only, {}, fresh)

    weights = [name for name in METRICS if not METRICS[name].batch]
    step()
    audit("forward", "backward")
    steps, ratios, wholes = [], [], []
    for _ in range(runs):
        steps.append(seconds(step))
        ratios.append(seconds(lambda: audit("forward", "backward")) / steps[-1])
        wholes.append(seconds(lambda: audit(*weights, "forward", "backward")) / steps[-1])
    print(f"{spec}: {trial.batch.source}, {trial.batch.shapes}; forward and backward {statistics.median(steps):.2f} s")
    for name, found in (("forward, backward", ratios), ("all without jacobian", wholes)):
        print(f"  {name} / that: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
    if jacobian:
        fresh = BatchRun(trial.batch, trial.whole, trial.point, seconds=3600)
        found = examine(model, structure, ("jacobian",), {}, fresh)
        one = found.spectra[0]
        told = f"largest {one.largest:.4g} (at most {one.largest_error:.2g} above), chi {one.mean_square:.3g}"
        print(f"  jacobian: {one.products} products, {told}; {found.seconds['jacobian']:.1f} s with the blocks")


def main() -> None:
    """Measure each model that is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("specs", nargs="+")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jacobian", action="store_true")
    given = parser.parse_args()
    for spec in given.specs:
        measure(spec, given.runs, given.jacobian)


if __name__ == "__main__":
    main()
