"""What a metric is, and the registry of metrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from idfx.audits.subject import Subject
from idfx.findings import Finding, Measure
from idfx.registry import Registry

Look = Callable[[Subject], Iterator[Finding | Measure]]


@dataclass(frozen=True)
class Metric:
    """A metric: a function from what is audited to findings and measures. It changes nothing."""

    name: str
    look: Look

    @property
    def summary(self) -> str:
        """The first line of the metric's docstring."""
        return (inspect.getdoc(self.look) or "").split("\n", 1)[0]


METRICS: Registry[Metric] = Registry("metric", "idfx.audits", "idfx.audits")


def metric(name: str) -> Callable[[Look], Look]:
    """Register the decorated function as a metric.

    Args:
        name: of the metric, one word.
    """

    def add(look: Look) -> Look:
        METRICS.register(name, by=look.__module__)(Metric(name, look))
        return look

    return add
