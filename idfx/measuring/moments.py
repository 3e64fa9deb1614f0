"""Mean and spread of the squared singular values from few random starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

ENOUGH = 0.01  # a standard error of the mean square, relative to it, that asks for no further start
FEWEST = 4  # starts, fewer of which tell no standard error of the spread


@dataclass
class Moments:
    """The first two moments of the eigenvalues of M = AᵀA, of which there are `side`.

    On a subspace of `spanned` dimensions, that of a Krylov process, both traces are known. Outside of it they are
    estimated from random starts v there, each by ⟨v, M v⟩ and ⟨v, M² v⟩. The process finds the largest eigenvalues
    soon. Where moments are hard to estimate they are mostly made of these, and little is left to chance.

    Args:
        side: the number of eigenvalues.
        spanned: the dimension of the subspace.
        first: both moments of the vector that the process started from; they serve until there are other starts.
        traces: of M and M² on the subspace.
        starts: both moments of each start.

    Source: Meyer, Musco, Musco and Woodruff, "Hutch++: Optimal stochastic trace estimation", 2021; with a Krylov space
        in place of its random one: Chen and Hallman, "Krylov-aware stochastic trace estimation", 2023.
    """

    side: int
    spanned: int
    first: tuple[float, float]
    traces: tuple[float, float]
    starts: list[tuple[float, float]] = field(default_factory=list)

    @property
    def wanting(self) -> bool:
        """Whether a further start is worth its products."""
        if self.spanned == self.side or self._alike:
            return False
        return len(self.starts) < FEWEST or self.mean_error > ENOUGH * self.mean

    @property
    def _alike(self) -> bool:
        """Whether M multiplies a random vector by a number, hence all."""
        return self.first[1] <= self.first[0] * self.first[0]

    @property
    def _alone(self) -> bool:
        """Whether there is the first start alone to go by."""
        return not self.starts and self.spanned < self.side

    def _moment(self, which: int) -> float:
        if self._alone:
            return self.first[which]
        rest = self._average(which) * (self.side - self.spanned) if self.starts else 0.0
        return (self.traces[which] + rest) / self.side

    def _average(self, which: int) -> float:
        return math.fsum(start[which] for start in self.starts) / len(self.starts)

    @property
    def mean(self) -> float:
        """The mean of the eigenvalues."""
        return self._moment(0)

    @property
    def spread(self) -> float:
        """Their standard deviation over their mean, 0 if all are 0."""
        mean = self.mean
        return math.sqrt(max(self._moment(1) / mean / mean - 1, 0.0)) if mean else 0.0

    @property
    def mean_error(self) -> float:
        """The standard error of the mean.

        Of a start that is uniform on the sphere in d dimensions, ⟨v, M v⟩ has 2 / (d + 2) times the variance of the
        eigenvalues there. That variance is known better, from the same products, than how much the few starts differ.
        """
        if self._alone:
            mean, square, inside, number = *self.first, 0, 1
        elif self.starts:
            mean, square, inside, number = self._average(0), self._average(1), self.spanned, len(self.starts)
        else:
            return 0.0
        outside = self.side - inside
        variance = max(square - mean * mean, 0.0)
        return outside / self.side * math.sqrt(variance * 2 / (outside + 2) / number)

    @property
    def spread_error(self) -> float:
        """The standard error of the spread, from how much the starts differ; NaN if there are too few."""
        mean = self.mean
        if not mean or self._alike or self.spanned == self.side:
            return 0.0
        if len(self.starts) < FEWEST:
            return math.nan
        slope = 2 * self._moment(1) / mean  # of the squared spread: second / mean² − 1
        forms = [(second - slope * first) / mean / mean for first, second in self.starts]
        centre = math.fsum(forms) / len(forms)
        variance = math.fsum((form - centre) * (form - centre) for form in forms) / (len(forms) - 1)
        error = (self.side - self.spanned) / self.side * math.sqrt(variance / len(forms))
        return math.hypot(self.spread, math.sqrt(error)) - self.spread
