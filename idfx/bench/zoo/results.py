"""What a sweep of the zoo says: each scheme at its best rate, against the author's start and against chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idfx.bench.starts import DEFAULT
from idfx.bench.statistics import Record, compare

LEARNT = 0.95  # of the loss by chance: a model that learns ends below
MARGIN = 0.1  # of the author's loss, and a tenth of that of chance: what one seed counts as noise
VERDICTS = ("better", "same", "worse", "at chance", "failed", "unfinished")


@dataclass(frozen=True)
class Result:
    """A scheme on a model at its best rate: the mean loss of the last steps by seed; infinite where it diverged.

    `rates`: those tried. `failed`: why there is nothing.
    """

    rate: float = math.nan
    last: Mapping[int, float] | None = None
    rates: frozenset[float] = frozenset()
    certificate: str | None = None
    failed: str = ""

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.last.values()) if self.last else math.inf

    @property
    def edge(self) -> bool:
        """Whether the best rate is the lowest or the highest of several."""
        return len(self.rates) > 1 and self.rate in (min(self.rates), max(self.rates))


@dataclass(frozen=True)
class Row:
    """A model: the loss of chance, where it is known, and its results by scheme."""

    model: str
    chance: float | None
    parameters: int
    results: Mapping[str, Result]

    @property
    def author(self) -> Result:
        """The result of the author's start."""
        return self.results.get(DEFAULT, Result(failed="not run"))

    def learns(self, scheme: str) -> bool | None:
        """Whether the loss from a scheme ends clearly below that of chance; None where chance is not known."""
        return None if self.chance is None else self.results[scheme].mean < LEARNT * self.chance

    def verdict(self, scheme: str) -> str:
        """Return one of `VERDICTS`.

        At chance is said where the author's start learns; unfinished, where one of the two lacks rates that the other
        has.
        """
        own, author = self.results[scheme], self.author
        if own.failed:
            return "failed"
        if not author.failed and own.rates != author.rates:
            return "unfinished"
        if self.learns(scheme) is False and (author.failed or self.learns(DEFAULT)):
            return "at chance"
        if author.failed:
            return "better"
        if (shift := _beyond_noise(own, author, self.chance)) == 0:
            return "same"
        return "worse" if shift > 0 else "better"


def _beyond_noise(own: Result, author: Result, chance: float | None) -> int:
    """The sign of the difference of two results, 0 within the margin, or within a 95% interval that includes 0."""
    if math.isinf(own.mean) or math.isinf(author.mean):
        return (own.mean > author.mean) - (own.mean < author.mean)
    difference = own.mean - author.mean
    margin = MARGIN * author.mean + MARGIN**2 * (author.mean if chance is None else chance)
    found = compare(own.last or {}, author.last or {})
    if abs(difference) <= margin or (found is not None and found.low <= 0 <= found.high):
        return 0
    return 1 if difference > 0 else -1


def rows(records: Sequence[Record]) -> list[Row]:
    """Return a row for each model in the records of runs.jsonl, by name."""
    by_model: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        by_model.setdefault(record["model"], {}).setdefault(record["scheme"], []).append(record)
    found = []
    for model, schemes in sorted(by_model.items()):
        ran = [record for its in schemes.values() for record in its if "lr" in record]
        chance = next((record["chance"] for record in ran), None)
        size = next((record["parameters"] for record in ran if record["scheme"] == DEFAULT), 0)
        found.append(Row(model, chance, size, {scheme: best(its) for scheme, its in schemes.items()}))
    return found


def best(records: Sequence[Record]) -> Result:
    """Return the result of a scheme on a model, from its records in order: at the rate with the lowest mean.

    Example:
        >>> run = {"seed": 0, "certificate": None}
        >>> best([{**run, "lr": 0.1, "last": None}, {**run, "lr": 0.2, "last": 1.0}]).rate
        0.2
    """
    by_rate: dict[float, dict[int, float]] = {}
    failed: dict[int, str] = {}
    for record in records:  # a seed that fails after some rates has failed, one that a later attempt mends has not
        failed.pop(record["seed"], None)
        if "failed" in record:
            failed[record["seed"]] = record["failed"]
        else:
            last = math.inf if record["last"] is None else record["last"]
            by_rate.setdefault(record["lr"], {})[record["seed"]] = last
    if failed:
        return Result(failed=next(iter(failed.values())))
    rate = min(by_rate, key=lambda one: (-len(by_rate[one]), statistics.fmean(by_rate[one].values()), one))
    certificate = next((r["certificate"] for r in records if r.get("lr") == rate), None)
    return Result(rate, dict(sorted(by_rate[rate].items())), frozenset(by_rate), certificate)


def totals(found: Sequence[Row], scheme: str) -> dict[str, int]:
    """Return how many models have each verdict for a scheme."""
    said = [row.verdict(scheme) for row in found if scheme in row.results]
    return {verdict: said.count(verdict) for verdict in VERDICTS}


def summary_of(found: Sequence[Row], schemes: Sequence[str]) -> dict[str, Any]:
    """Return the totals of every scheme but the author's start, and the models that it leaves at chance or worse."""
    return {
        scheme: {
            **totals(found, scheme),
            "models": {
                row.model: row.verdict(scheme)
                for row in found
                if scheme in row.results and row.verdict(scheme) in ("worse", "at chance", "failed")
            },
        }
        for scheme in schemes
        if scheme != DEFAULT
    }
