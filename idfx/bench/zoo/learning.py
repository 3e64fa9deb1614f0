"""The runs of one model of the zoo: every scheme, seed and rate, from the same values, on the same batches."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from idfx.bench.data import generator_of
from idfx.bench.isolated import Tell
from idfx.bench.models import entries
from idfx.bench.starts import initialise
from idfx.bench.training import Run, optimiser_of, update
from idfx.bench.workers import alone
from idfx.bench.zoo import Batch, Learner, Problem, learner
from idfx.core.errors import shortened
from idfx.core.torch_private import pytree
from idfx.planning.without_norms import without_norms

LAST = 10  # steps whose mean loss is the result


@dataclass(frozen=True)
class Job:
    """Runs of one model, and how they are trained."""

    member: str
    runs: tuple[Run, ...]
    steps: int
    optimiser: str
    device: str
    without_norms: bool = False


def batch_of(problem: Problem, seed: int, step: int) -> Batch:
    """Return the batch of a step: the same for every scheme and rate, another one for every step and seed."""
    return problem.draw(generator_of("zoo", seed, step))


def work(job: Job, tell: Tell) -> None:
    """Train the runs of a job, and tell the record of each; a start that fails is told with its reason."""
    for (scheme, seed), runs in itertools.groupby(job.runs, lambda run: (run.scheme, run.seed)):
        tell({"stage": f"build for {scheme}"})
        with alone():
            made = learner(job.member, seed)
            try:
                if job.without_norms:
                    plain = without_norms(made.model, made.example.args, made.example.kwargs)
                    made = dataclasses.replace(made, model=plain)
                for record in _from_start(job, made, scheme, seed, [*runs], tell):
                    tell(record)
            except Exception as error:
                tell({"model": job.member, "scheme": scheme, "seed": seed, "failed": shortened(error, 400)})


def _from_start(
    job: Job, made: Learner, scheme: str, seed: int, runs: Sequence[Run], tell: Tell
) -> Iterator[dict[str, Any]]:
    """Yield the records of runs from one start, at several rates."""
    device = torch.device(job.device)
    began = time.perf_counter()
    tell({"stage": f"init {scheme}"})
    record = initialise(made.model, made.example, scheme, seed)
    took = round(time.perf_counter() - began, 2)
    made.model.to(device)
    about = {**record, **made.facts, "parameters": entries(made.model), "chance": made.problem.chance}
    with _restoring(made.model) as restore:
        for run in runs:
            tell({"stage": f"train from {scheme} at {run.lr:g}"})
            restore()
            torch.manual_seed(seed + 1_000_000)  # dropout: the same numbers, whatever the scheme has drawn
            yield {
                "model": job.member,
                "scheme": scheme,
                "seed": seed,
                "lr": run.lr,
                **about,
                **teach(made.model, made.problem, run, job.steps, job.optimiser, device),
                "init_seconds": took,
            }


@contextmanager
def _restoring(model: nn.Module) -> Iterator[Any]:
    """Give a function that sets every parameter and buffer to its value at the beginning of the block."""
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]

    def restore() -> None:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)

    yield restore


def teach(
    model: nn.Module, problem: Problem, run: Run, steps: int, optimiser: str, device: torch.device
) -> dict[str, Any]:
    """Train a model for some steps; return the losses, their mean at the end, and whether they are finite.

    A run whose loss is not finite ends, is marked as diverged, and has no last loss.

    Args:
        model: on the device; it is changed.
        problem: what it learns.
        run: rate and seed.
        steps: their number.
        optimiser: as in `optimiser_of`.
        device: to train on.
    """
    began = time.perf_counter()
    follow = optimiser_of(model, optimiser, run.lr, run.weight_decay)
    model.train()
    losses: list[float] = []
    for step in range(steps):
        batch = pytree.tree_map_only(Tensor, lambda one: one.to(device), batch_of(problem, run.seed, step))
        found = problem.loss(model, batch)
        loss, shown = found if isinstance(found, tuple) else (found, found)
        value = float(shown.detach())
        if not math.isfinite(value) or not math.isfinite(float(loss.detach())):
            break
        losses.append(float(f"{value:.6g}"))
        update(model, loss, follow)
    diverged = len(losses) < steps
    last = None if diverged else sum(losses[-LAST:]) / len(losses[-LAST:])
    seconds = round(time.perf_counter() - began, 2)
    return {"last": last, "diverged": diverged, "losses": losses, "seconds": seconds}
