"""What a model is tried on: a batch, the structure captured on it, and how much time there is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from idfx.findings import Batch, Observation
from idfx.flow import Flow
from idfx.measuring.jacobian import Linearisation
from idfx.measuring.observation import observe
from idfx.network import Network
from idfx.records import Structure

BUDGET = 60.0


@dataclass(frozen=True)
class Trial:
    """A batch to run, and for how long.

    `whole` is the structure on a capture of the batch, `point` that on the example at which derivatives are taken (one
    sample of it, or the batch itself). `seconds` bound everything that is run.
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

    def observe(self, model: nn.Module) -> tuple[Observation, Mapping[str, Tensor]]:
        """Run the batch; return what it showed, and the statistics that batch normalisations took.

        Raises:
            AuditError: the graph cannot be run, or the budget ran out.
        """
        return observe(model, self.whole, self.batch, self.seed, self.out_of_time)

    def linearise(self, model: nn.Module, flow: Flow | None, statistics: Mapping[str, Tensor]) -> Linearisation:
        """Run the point, and keep it for derivatives.

        Args:
            model: with its values.
            flow: of `point`, if it is at hand.
            statistics: that batch normalisations take.

        Raises:
            AuditError: the graph cannot be run, or the budget ran out.
        """
        flow = flow or Network(self.point).flow
        return Linearisation(model, self.point, flow, statistics, self.seed, self.out_of_time)
