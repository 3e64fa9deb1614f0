"""Model × metrics → audit: defects of weights and structure, and the measurements of one batch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from idfx.analysis.analyze import analyze
from idfx.analysis.queries import StructureQueries
from idfx.audits import inventory
from idfx.audits.metric import METRICS
from idfx.audits.subject import AuditContext
from idfx.audits.unused import trained_only
from idfx.capture.wrappers import unwrap
from idfx.core.errors import AuditError, UsageError
from idfx.core.findings import SEVERITIES, Audit, Finding, Measure, Spectrum, WeightFingerprint
from idfx.core.records import Structure
from idfx.core.torch_private import stored
from idfx.measuring.batches import described
from idfx.measuring.trial import BUDGET, BatchRun
from idfx.sharding.bare import gathered, is_distributed
from idfx.sharding.together import together

_STOOD = "idfx did not build this model, so it cannot know which memory was written; use `idfx audit SPEC`"
_NO_BATCH = "no batch was run"


def audit(
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    *,
    also: Sequence[str] = (),
    batch: bool = True,
    budget: float = BUDGET,
    seed: int = 0,
) -> Audit:
    """Audit the initialisation of a model, using the example inputs as a batch.

    The model does not change; every process gathers a sharded one as a whole. Batch normalisations use the statistics
    of the batch; dropout is off. Uninitialised memory can only be detected in a model that idfx builds, so the metric
    `uninitialised` is left out.

    Args:
        model, example_inputs, example_kwargs: as in `analyze`, with the same errors. The inputs are the batch; use at
            least eight samples or so.
        only: metrics from `idfx list audits`; by default all except those on request.
        also: metrics that are applied only on request ("curvature").
        batch: whether to run the inputs; otherwise only weights and structure are audited.
        budget: seconds for running the batch; if they do not suffice, the audit says what is missing.
        seed: of every random number.

    Returns:
        Findings, each with its location, value, threshold and remedy, and measures.

    Raises:
        UsageError: an unknown metric, a budget that is not above 0, a seed outside torch's range, or a model on the
            meta device.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> nn.init.constant_(model[0].weight, 0.5)[0, 0].item()
        0.5
        >>> found = audit(model, (torch.ones(1, 8),), batch=False)
        >>> found.verdict, [(f.metric, f.parameter) for f in found.at_least("error")]
        ('error', [('rank', '0.weight'), ('replicas', '0.weight')])
    """
    asked(only, also)
    if not isinstance(budget, (int, float)) or not budget > 0:
        raise UsageError(f"audit: budget={budget!r}; expected seconds above 0. Leave it out for {BUDGET:g}.")
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"audit: seed={seed}; expected a number from -2**63 to 2**64 - 1. Leave it out for 0.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UsageError(f"audit: {name} is on the meta device; expected values. Materialise the model first.")
    if isinstance(model, nn.Module) and is_distributed(model):
        model = unwrap(model)
        with together(model.parameters()):
            model = gathered(model)
    structure = analyze(model, example_inputs, example_kwargs)
    trial = BatchRun(described(structure.capture.example), structure, structure, seed, budget) if batch else None
    return examine(model, structure, only, trial=trial, also=also)


def check(only: Sequence[str]) -> None:
    """Check that all metrics are known; raise UsageError otherwise."""
    for name in only:
        METRICS.find(name)


def attributes(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are plain attributes of modules, neither parameters nor buffers, by path.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.shift = torch.ones(2)
        >>> attributes(nn.Sequential(layer))
        {'0.shift': tensor([1., 1.])}
    """
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_meta and type(value) in (Tensor, nn.Parameter):
                found[f"{path}.{name}" if path else name] = value.detach()
    return found


def examine(
    model: nn.Module,
    structure: Structure,
    only: Sequence[str] = (),
    unwritten: Mapping[str, int] | None = None,
    trial: BatchRun | None = None,
    also: Sequence[str] = (),
) -> Audit:
    """Return the audit of a model whose structure is known.

    Args:
        model: with its values, none of them pending.
        structure: of this model.
        only: the requested metrics; by default all except those on request.
        unwritten: the number of uninitialised entries of each tensor; None if unknown.
        trial: the batch to run, or None.
        also: metrics on request.

    Raises:
        UsageError: an unknown metric.
    """
    model = gathered(unwrap(model))
    tensors = {name: stored(value.detach()) for name, value in (*model.named_parameters(), *model.named_buffers())}
    tensors.update(attributes(model))
    subject = AuditContext(model, structure, StructureQueries(structure), tensors, unwritten, trial)
    found, names = _Found(subject), asked(only, also)
    for name in names:
        found.apply(name)
    found.judge_training(names)
    return found.audit()


def asked(only: Sequence[str], also: Sequence[str]) -> list[str]:
    """Return the requested metrics, in order.

    Raises:
        UsageError: an unknown metric.

    Example:
        >>> asked(["scale"], ["finite"])
        ['finite', 'scale']
    """
    for names in (only, also):
        if isinstance(names, str):
            raise UsageError(f"metrics {names!r}: a string; expected several of them. Write [{names!r}].")
    check((*only, *also))
    named = {*only, *also}
    return [name for name in METRICS if name in named or (not only and not METRICS[name].on_request)]


class _Found:
    """Collects the results of the metrics."""

    def __init__(self, subject: AuditContext) -> None:
        self._subject = subject
        self._findings: list[Finding] = []
        self._measures: dict[str, dict[str, float | int | str]] = {}
        self._spectra: list[Spectrum] = []
        self._likenesses: dict[str, WeightFingerprint] = {}
        self._seconds: dict[str, float] = {}
        self._left_out: dict[str, str] = {}
        self._ran: list[str] = []
        self._broken = ""

    def apply(self, name: str) -> None:
        """Apply one metric, or record why it is left out."""
        if reason := self._reason(name):
            self._left_out[name] = reason
            return
        try:
            if METRICS[name].batch and "batch" not in self._seconds:
                self._timed("batch", lambda: [self._subject.observation])
            self._timed(name, lambda: METRICS[name].look(self._subject))
        except AuditError as error:
            self._left_out[name] = str(error)
            self._broken = "" if "batch" in self._seconds else str(error)
        else:
            self._ran.append(name)

    def judge_training(self, names: Sequence[str]) -> None:
        """Apply the metrics of weights and structure to the path of training mode, for the weights it alone uses."""
        trained = trained_only(self._subject)
        training = self._subject.training if trained else None
        if training is None:
            return
        known = {(found.metric, found.parameter) for found in self._findings}
        with torch.no_grad():
            for name in names:
                if not METRICS[name].batch and name in self._ran:
                    for one in METRICS[name].look(training):
                        if isinstance(one, Finding) and one.parameter in trained and (name, one.parameter) not in known:
                            told = f"in training mode, {one.message}"
                            self._findings.append(dataclasses.replace(one, message=told))

    def _timed(self, name: str, look: Callable[[], Iterable[object]]) -> None:
        start = time.perf_counter()
        with torch.no_grad():
            for found in look():
                self._add(name, found)
        self._seconds[name] = time.perf_counter() - start

    def _reason(self, name: str) -> str:
        """The reason why a metric cannot be applied, or ""."""
        if name == "uninitialised" and self._subject.unwritten is None:
            return _STOOD
        if not METRICS[name].batch:
            return ""
        return self._broken or (_NO_BATCH if self._subject.trial is None else "")

    def _add(self, name: str, found: object) -> None:
        if isinstance(found, Finding):
            self._findings.append(found)
        elif isinstance(found, Spectrum):
            self._spectra.append(found)
        elif isinstance(found, WeightFingerprint):
            self._likenesses[found.parameter] = found
        elif isinstance(found, Measure):
            self._measures.setdefault(name, {})[found.name] = found.value

    def audit(self) -> Audit:
        """Return the complete audit."""
        subject = self._subject
        seen = subject.observation if "batch" in self._seconds else None
        return Audit(
            model=subject.structure.model,
            findings=tuple(sorted(self._findings, key=lambda found: -SEVERITIES.index(found.severity))),
            measures=self._measures,
            metrics=tuple(self._ran),
            left_out=self._left_out,
            parameters=inventory.parameters(subject, seen.gradients if seen is not None else {}, self._likenesses),
            blocks=inventory.blocks(subject),
            batch=seen.batch if seen is not None else None,
            profile=seen.points if seen is not None else (),
            spectra=tuple(self._spectra),
            seconds=self._seconds,
        )
