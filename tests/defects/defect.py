"""What a planted defect is, and the one audit that all of them are looked for with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import idfx
from idfx.audits.run import examine
from idfx.building.unwritten import filled, unwritten
from idfx.core.findings import SEVERITIES, Audit, Finding
from idfx.measuring.batches import enlarged, sizes
from idfx.measuring.trial import on_first

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong with a model that is healthy otherwise.

    `model` builds the healthy model, and with `options` one whose own code has the defect; `spoil` puts it into a built
    one. `place` is the parameter or buffer that a finding must name ("" for any). `severity` is the least that the
    finding must have; below "error", `why` says why an honest tool can say no more. `metrics` are those that may find
    it; none: any may.
    """

    name: str
    model: Callable[..., Made]
    place: str
    what: str
    spoil: Callable[[nn.Module], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    severity: str = "error"
    why: str = ""
    metrics: tuple[str, ...] = ()

    def made(self) -> Made:
        """The model with the defect; the same one each time, but for memory that nobody wrote."""
        torch.manual_seed(0)
        model, args, kwargs = self.model(**self.options)
        if self.spoil is not None:
            with torch.no_grad():
                self.spoil(model)
        return model, args, kwargs

    def healthy(self) -> Made:
        """The model without it."""
        torch.manual_seed(0)
        return self.model()

    def findings(self, audit: Audit) -> list[Finding]:
        """Those of an audit that tell of this defect."""
        least = SEVERITIES.index(self.severity)
        return [
            found
            for found in audit.findings
            if found.parameter.startswith(self.place)
            and SEVERITIES.index(found.severity) >= least
            and (not self.metrics or found.metric in self.metrics)
        ]


def audited(make: Callable[[], Made], batch: bool = True) -> Audit:
    """Return the audit of a model with every metric there is, as `idfx audit` runs it.

    Args:
        make: builds the model; called a second time to tell which memory nobody wrote.
        batch: run one; else weights and structure alone.
    """
    with filled():
        model, args, kwargs = make()
    structure = idfx.analyze(model, args, kwargs)
    own = structure.capture.example
    trial = on_first(model, structure, enlarged(own, sizes(own))) if batch else None
    return examine(model, structure, (), unwritten(model, lambda: make()[0]), trial)


Change = Callable[[Tensor], Any]


def into(name: str, change: Change | float) -> Callable[[nn.Module], None]:
    """Return a function that writes a value, or what a function makes of the old one, into a parameter or buffer."""

    def spoil(model: nn.Module) -> None:
        tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
        new = change(tensor.clone()) if callable(change) else change
        tensor.copy_(torch.as_tensor(new))

    return spoil


def poked(index: int, value: float) -> Change:
    """One entry."""
    return lambda old: old.flatten().index_fill(0, torch.tensor(index), value).view_as(old)


def times(factor: float) -> Change:
    """All entries."""
    return lambda old: old * factor


def part(rows: slice, value: float) -> Change:
    """Some rows."""

    def change(old: Tensor) -> Tensor:
        old[rows] = value
        return old

    return change


def of_rank(rank: int) -> Change:
    """The same size, fewer directions."""

    def change(old: Tensor) -> Tensor:
        flat = old.flatten(1)
        thin = torch.randn(flat.shape[0], rank) @ torch.randn(rank, flat.shape[1])
        return (thin * flat.norm() / thin.norm()).view_as(old)

    return change


def drawn(mode: str, nonlinearity: str = "relu") -> Change:
    """Drawn by kaiming_normal_ from the shape alone."""
    return lambda old: nn.init.kaiming_normal_(old, mode=mode, nonlinearity=nonlinearity)


def each(*changes: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    """One after the other."""

    def spoil(model: nn.Module) -> None:
        for change in changes:
            change(model)

    return spoil
