"""The batch of an audit: the structure captured on it, and its time limit."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.queries import StructureQueries
from idfx.analysis.structure import build_structure
from idfx.capture.tracing import capture
from idfx.core.errors import CaptureError, ForwardError
from idfx.core.findings import Batch, Observation
from idfx.core.records import Example, Structure
from idfx.measuring.batches import described, is_uniform
from idfx.measuring.jacobian import Linearisation
from idfx.measuring.observation import observe

BUDGET = 60.0


@dataclass(frozen=True)
class BatchRun:
    """A batch to run, with a time limit.

    `whole` is the structure on a capture of the batch; `point` is the structure on the example at which derivatives are
    taken (one sample, or the batch itself). `seconds` limits everything that is run.
    """

    batch: Batch
    whole: Structure
    point: Structure
    seed: int = 0
    seconds: float = BUDGET
    started: float = field(default_factory=time.monotonic, compare=False)

    def out_of_time(self) -> bool:
        """Return whether the time is up."""
        return time.monotonic() - self.started > self.seconds

    @property
    def uniform(self) -> bool:
        """Whether the batch is constant."""
        return is_uniform(self.whole.capture.example)

    def observe(self, model: nn.Module) -> tuple[Observation, Mapping[str, Tensor]]:
        """Run the batch; return the observation, and the statistics that batch normalisations used.

        Raises:
            AuditError: the graph cannot be run, or the budget ran out.
        """
        return observe(model, self.whole, self.batch, self.seed, self.out_of_time)

    def linearise(self, model: nn.Module, flow: Dataflow | None, statistics: Mapping[str, Tensor]) -> Linearisation:
        """Run the point, and store it for derivatives.

        Args:
            model: with its values.
            flow: of `point`, if available.
            statistics: of the batch normalisations.

        Raises:
            AuditError: the graph cannot be run, or the budget ran out.
        """
        flow = flow or StructureQueries(self.point).flow
        return Linearisation(model, self.point, flow, statistics, self.seed, self.out_of_time)


def on_first(
    model: nn.Module,
    structure: Structure,
    batches: Iterable[tuple[Example, str]],
    seed: int = 0,
    seconds: float = BUDGET,
) -> BatchRun:
    """Return a run of the first batch that the model accepts, or of the structure's own example.

    Derivatives are taken at the structure's own example.

    Args:
        model: of this structure.
        structure: on a capture of one sample, or of a batch that was given.
        batches: in order of preference, each with its source.
        seed, seconds: of the run.
    """
    for example, source in batches:
        try:
            whole = build_structure(capture(model, example, tracer=structure.capture.tracer))
        except (ForwardError, CaptureError):  # this model rejects the drawn values, or their number
            continue
        return BatchRun(described(example, source), whole, structure, seed, seconds)
    own = structure.capture.example
    return BatchRun(described(own, "the example"), structure, structure, seed, seconds)


def at(structure: Structure, example: Example) -> Structure:
    """Return a structure with another example of the same form, at which derivatives are taken."""
    return replace(structure, capture=replace(structure.capture, example=example))
