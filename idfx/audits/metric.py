"""What a metric is, and the registry of metrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from idfx.audits.subject import Subject
from idfx.findings import Finding, Likeness, Measure, Spectrum
from idfx.registry import Registry

Look = Callable[[Subject], Iterator[Finding | Likeness | Measure | Spectrum]]


@dataclass(frozen=True)
class Metric:
    """A metric: a function from what is audited to findings and measures. It changes nothing.

    `batch`: it looks at what one batch shows. `on_request`: it is applied only if it is named.
    """

    name: str
    look: Look
    batch: bool = False
    on_request: bool = False

    @property
    def summary(self) -> str:
        """The first line of the metric's docstring."""
        return (inspect.getdoc(self.look) or "").split("\n", 1)[0]


METRICS: Registry[Metric] = Registry("metric", "idfx.audits", "idfx.audits")


def metric(name: str, *, batch: bool = False, on_request: bool = False) -> Callable[[Look], Look]:
    """Register the decorated function as a metric.

    Args:
        name: of the metric, one word.
        batch: it needs a batch: `subject.observation`, `subject.linearisation` or `subject.trial`.
        on_request: it is costly, and applied only if it is named.
    """

    def add(look: Look) -> Look:
        METRICS.register(name, by=look.__module__)(Metric(name, look, batch, on_request))
        return look

    return add
