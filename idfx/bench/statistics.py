"""Statistics of a study: the choice of the rate, spreads over seeds, paired tests and their correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
Point = tuple[float, float]  # learning rate, weight decay


def final(record: Record, name: str) -> float:
    """Return the last value of a curve; for a diverged run, accuracy is 0 and loss infinite.

    Example:
        >>> final({"diverged": True, "test_accuracy": [0.5]}, "test_accuracy")
        0.0
    """
    if record["diverged"]:
        return 0.0 if name.endswith("accuracy") else math.inf
    return float(record[name][-1])


def point_of(record: Record) -> Point:
    """Return the learning rate and the weight decay of a run."""
    return record["lr"], record["weight_decay"]


def choose(records: Iterable[Record]) -> Point:
    """Return the learning rate and weight decay with the best mean final validation accuracy.

    Ties go to the lower mean validation loss, then to the lower rate. Test figures are not used.

    Args:
        records: the selection runs of one model and scheme.

    Example:
        >>> run = {"weight_decay": 0.0, "diverged": False, "validation_loss": [1.0]}
        >>> choose([{**run, "lr": 0.1, "validation_accuracy": [0.5]}, {**run, "lr": 0.3, "validation_accuracy": [0.6]}])
        (0.3, 0.0)
    """
    by_point: dict[Point, list[Record]] = {}
    for record in records:
        by_point.setdefault(point_of(record), []).append(record)

    def merit(point: Point) -> tuple[float, float, float, float]:
        runs = by_point[point]
        accuracy = statistics.fmean(final(run, "validation_accuracy") for run in runs)
        return -accuracy, statistics.fmean(final(run, "validation_loss") for run in runs), *point

    return min(by_point, key=merit)


def epochs_to(curve: Sequence[float], level: float) -> int | None:
    """Return the first epoch, from 1, at whose end a curve reaches a level; None if it never does.

    Example:
        >>> epochs_to([0.2, 0.91, 0.89], 0.9), epochs_to([0.2], 0.9)
        (2, None)
    """
    return next((epoch for epoch, value in enumerate(curve, 1) if value >= level), None)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n − 1); the latter is nan for a single value.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        (2.0, 1.0)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Comparison:
    """A paired comparison over the same seeds.

    `difference`: mean of value − reference, with its 95% interval of Student's t. `effect`: the mean over the standard
    deviation of the differences. `t` and `wilcoxon`: two-sided p-values; nan if they are not defined.
    """

    seeds: int
    difference: float
    low: float
    high: float
    effect: float
    t: float
    wilcoxon: float


def compare(values: Mapping[int, float], reference: Mapping[int, float]) -> Comparison | None:
    """Return the paired comparison of two mappings from seed to value, over the seeds in both; None if fewer than two.

    Source: scipy.stats.ttest_rel and scipy.stats.wilcoxon (exact with ties too, since scipy 1.15). If all differences
    are 0, both p-values are 1.

    Example:
        >>> found = compare({0: 2.0, 1: 4.0, 2: 3.0}, {0: 1.0, 1: 1.0, 2: 1.0, 3: 9.0})
        >>> found.seeds, found.difference, found.effect
        (3, 2.0, 2.0)
    """
    from scipy import stats

    seeds = sorted(values.keys() & reference.keys())
    if len(seeds) < 2:
        return None
    differences = [values[seed] - reference[seed] for seed in seeds]
    mean, deviation = spread(differences)
    if not any(differences):
        return Comparison(len(seeds), 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * deviation / math.sqrt(len(seeds))
    student = math.nan
    if deviation > 0:
        student = float(stats.ttest_rel([values[s] for s in seeds], [reference[s] for s in seeds]).pvalue)
    ranks = float(stats.wilcoxon(differences).pvalue)
    effect = mean / deviation if deviation > 0 else math.nan
    return Comparison(len(seeds), mean, mean - half, mean + half, effect, student, ranks)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction; nan stays nan and does not count.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = sorted((value, at) for at, value in enumerate(values) if not math.isnan(value))
    found, worst = [math.nan] * len(values), 0.0
    for rank, (value, at) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * value))
        found[at] = worst
    return found
