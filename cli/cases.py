"""The cases that `idfx audit` compares: a model as built, with weights from a file, or under a scheme."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from .limits import limited
from .session import Progress, build_and_read, build_only

if TYPE_CHECKING:
    from torch import nn

    from idfx.building.build import Built
    from idfx.core.findings import Audit
    from idfx.core.records import Structure
    from idfx.measuring.trial import BatchRun
    from idfx.planning.checkpoints import Checkpoint


@dataclass(frozen=True)
class Question:
    """The settings of each case: metrics, batch, time budget, and weights."""

    only: tuple[str, ...]
    also: tuple[str, ...]
    batch: str
    samples: int | None
    seconds: float
    weights: str | None

    @functools.cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The weights, read only once."""
        from idfx.planning.checkpoints import read_checkpoint

        return read_checkpoint(self.weights) if self.weights is not None else None


@dataclass(frozen=True)
class Case:
    """One model in one state; if `judged`, its findings affect the exit code."""

    spec: str
    scheme: str
    label: str
    judged: bool = True

    def audit(self, progress: Progress, question: Question, options: dict[str, Any]) -> Audit:
        """Build the model, put it into its state, and audit it."""
        from idfx.audits.run import examine
        from idfx.building.unwritten import filled, unwritten

        options = {**options, "spec": self.spec}
        with limited(progress, options):
            built, structure = build_and_read(progress, filled(), **options)
            progress.step(f"draw weights of {self.spec}")
            built.pending.materialize(built.model)
            found = unwritten(built.model, lambda: _drawn(options))
            if question.checkpoint is not None:
                loaded = _load(progress, built.model, structure, question.checkpoint)
                found = {name: count for name, count in found.items() if name not in loaded}
            if self.scheme:
                structure, written = _initialise(built.model, structure, self.scheme, options["seed"])
                found = {name: count for name, count in found.items() if name not in written}
            progress.step(f"audit {self.label}")
            trial = _trial(progress, built, structure, question, options)
            return examine(built.model, structure, question.only, found, trial, question.also)


def cases_of(specs: tuple[str, ...], schemes: tuple[str, ...], against: str | None, question: Question) -> list[Case]:
    """Return the requested cases: the models in order, each in all its states.

    Raises:
        UsageError: both --scheme and --against, weights for several models, or weights that a scheme would overwrite.
    """
    from idfx.core.literals import parse_call
    from idfx.schemes.scheme import SCHEMES

    if schemes and against is not None:
        raise click.UsageError("--scheme and --against: both are given; expected one of them. Leave one out.")
    if question.weights is not None and len(specs) > 1:
        raise click.UsageError(f"--weights: {len(specs)} models are given; expected one. Audit them one by one.")
    if question.weights is not None and schemes:
        raise click.UsageError("--weights and --scheme: a scheme overwrites the weights. Use --against.")
    for option, scheme in [*(("--scheme", one) for one in schemes), *([("--against", against)] if against else [])]:
        name, given = parse_call(scheme or "", option)
        SCHEMES.find(name).read_options(given)
    if against is not None:
        own = "as built" if question.weights is None else question.weights
        return [
            case
            for spec in specs
            for case in (Case(spec, "", f"{spec} {own}"), Case(spec, against, f"{spec} {against}", judged=False))
        ]
    if len(schemes) > 1 or (schemes and len(specs) > 1):
        return [Case(spec, scheme, f"{spec} {scheme}") for spec in specs for scheme in schemes]
    return [Case(spec, schemes[0] if schemes else "", spec) for spec in specs]


def _initialise(model: nn.Module, structure: Structure, scheme: str, seed: int) -> tuple[Structure, set[str]]:
    """Apply the plan of a scheme; return the resulting structure of the model, and what was written."""
    from idfx.analysis.structure import build_structure
    from idfx.capture.tracing import capture
    from idfx.core.literals import parse_call
    from idfx.planning.apply import apply_
    from idfx.planning.make import make_plan

    name, given = parse_call(scheme, "--scheme")
    plan = make_plan(structure, name, seed, **given)
    apply_(model, plan)
    if plan.scalars:  # the model has other parameters now
        structure = build_structure(capture(model, structure.capture.example, tracer=structure.capture.tracer))
    return structure, set(plan.decisions)


def _trial(
    progress: Progress, built: Built, structure: Structure, question: Question, options: dict[str, Any]
) -> BatchRun | None:
    """Return the batch to run, or None."""
    from idfx.measuring.batches import described, enlarged, sizes
    from idfx.measuring.trial import BatchRun, on_first

    if question.batch == "none":
        return None
    example, seed = structure.capture.example, options["seed"]
    samples = question.samples or sizes(example)
    if question.batch != "normal":
        return _images(built.model, structure, question, samples, seed)
    if options["input_shapes"] or options["inputs"]:
        return BatchRun(described(example), structure, structure, seed, question.seconds)
    trial = on_first(built.model, structure, enlarged(example, samples, seed), seed, question.seconds)
    if question.samples is not None and trial.batch.samples != samples:
        progress.remark(f"the model does not accept {samples} samples of the example, so the example is run instead")
    return trial


def _images(model: nn.Module, structure: Structure, question: Question, samples: int, seed: int) -> BatchRun:
    """Return a batch of the user's images, with derivatives at the first one."""
    from pathlib import Path

    from idfx.measuring.images import images
    from idfx.measuring.trial import at, on_first

    path, example = Path(question.batch), structure.capture.example
    if not path.exists():
        raise click.UsageError(f"--batch {question.batch}: no such file; expected normal, none, an image or a folder.")
    batch, source = images(path, example, samples)
    first, _ = images(path, example, 1)
    return on_first(model, at(structure, first), [(batch, source)], seed, question.seconds)


def _drawn(options: dict[str, Any]) -> nn.Module:
    """Return a second build of the model, with its random values."""
    again = build_only(**options)
    again.pending.materialize(again.model)
    return again.model


def _load(progress: Progress, model: nn.Module, structure: Structure, checkpoint: Checkpoint) -> set[str]:
    """Load matching tensors into the model; return the names of the parameters and buffers that have values."""
    from idfx.capture.wrappers import unwrap
    from idfx.planning.checkpoints import load_, matched, state_of

    checkpoint, loaded, notes = matched(structure, checkpoint, state_of(model))
    load_(model, checkpoint, loaded)
    for note in notes:
        progress.remark(note)
    if missing := [name for name in structure.parameters if name not in loaded]:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        progress.remark(f"{checkpoint.name} has no values for {len(missing)} parameters; audited as built: {shown}")
    buffers = unwrap(model).named_buffers()
    return {*loaded, *(name for name, own in buffers if checkpoint.lookup((name,), own) is not None)}
