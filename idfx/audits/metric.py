"""The interface of metrics, and their registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding, Measure, Spectrum, WeightFingerprint
from idfx.core.registry import Registry

MetricFn = Callable[[AuditContext], Iterator[Finding | WeightFingerprint | Measure | Spectrum]]


@dataclass(frozen=True)
class Metric:
    """A metric: a function from the subject of an audit to findings and measures. It modifies nothing.

    `batch`: it needs a batch. `on_request`: it is applied only if it is named.
    """

    name: str
    look: MetricFn
    batch: bool = False
    on_request: bool = False

    @property
    def summary(self) -> str:
        """The first line of the metric's docstring."""
        return (inspect.getdoc(self.look) or "").split("\n", 1)[0]


METRICS: Registry[Metric] = Registry("metric", "idfx.audits", "idfx.audits")


def metric(name: str, *, batch: bool = False, on_request: bool = False) -> Callable[[MetricFn], MetricFn]:
    """Register the decorated function as a metric.

    Args:
        name: of the metric, one word.
        batch: whether it needs a batch: `subject.observation`, `subject.linearisation` or `subject.trial`.
        on_request: whether it is expensive, and applied only if it is named.
    """

    def add(look: MetricFn) -> MetricFn:
        METRICS.register(name, by=look.__module__)(Metric(name, look, batch, on_request))
        return look

    return add
