"""Mean and spread of the squared singular values from few random starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

ENOUGH = 0.01  # relative standard error of the mean square at which no further start is needed
FEWEST = 4  # starts; fewer give no standard error of the spread

Sample = tuple[float, float]


@dataclass
class Moments:
    """The first two moments of the eigenvalues of M = AᵀA, of which there are `side`.

    A sample, of a vector v of length 1, is ⟨v, M v⟩ and ‖M v − ⟨v, M v⟩ v‖². The mean of the first is that of the
    eigenvalues; the mean of the second plus the variance of the first is their variance; no large numbers cancel. On
    the subspace of a Krylov process there is a sample for each basis vector; outside it, for random vectors. The
    process finds the largest eigenvalues early. If moments are hard to estimate, these dominate them, so little depends
    on the random vectors.

    Args:
        side: the number of eigenvalues.
        spanned: samples of an orthonormal basis of the subspace, beginning with the start vector of the process; only
            these are used until there are starts.
        starts: samples of vectors that are uniform on the sphere outside.

    Source: Meyer, Musco, Musco and Woodruff, "Hutch++: Optimal stochastic trace estimation", 2021; with a Krylov space
        in place of its random one: Chen and Hallman, "Krylov-aware stochastic trace estimation", 2023.

    Example:
        >>> Moments(2, [(1.0, 0.0), (3.0, 0.0)]).mean, Moments(2, [(1.0, 0.0), (3.0, 0.0)]).spread
        (2.0, 0.5)
    """

    side: int
    spanned: Sequence[Sample]
    starts: list[Sample] = field(default_factory=list)

    @property
    def wanting(self) -> bool:
        """Whether a further start is useful."""
        if self._known:
            return False
        return len(self.starts) < FEWEST or self.mean_error > ENOUGH * self.mean

    @property
    def _known(self) -> bool:
        """Whether the moments are exact: the basis spans everything, or M multiplies a random vector by a number."""
        return len(self.spanned) == self.side or self.spanned[0][1] == 0

    @property
    def _groups(self) -> list[tuple[float, Sequence[Sample]]]:
        """Samples, and the share of the dimensions that they represent."""
        if not self.starts and len(self.spanned) < self.side:
            return [(1.0, self.spanned[:1])]
        share = len(self.spanned) / self.side
        return [(share, self.spanned), (1 - share, self.starts)] if self.starts else [(1.0, self.spanned)]

    @property
    def mean(self) -> float:
        """The mean of the eigenvalues."""
        return math.fsum(share * _mean([first for first, _ in samples]) for share, samples in self._groups)

    @property
    def spread(self) -> float:
        """Their standard deviation over their mean, 0 if all are 0."""
        mean = self.mean
        variance = math.fsum(share * _variance(samples, mean) for share, samples in self._groups)
        return math.sqrt(variance) / mean if mean else 0.0

    @property
    def mean_error(self) -> float:
        """The standard error of the mean.

        For a start that is uniform on the sphere in d dimensions, the variance of ⟨v, M v⟩ is 2 / (d + 2) times that of
        the eigenvalues there. The same products give that variance more precisely than the differences of a few starts.
        """
        if self._known:
            return 0.0
        share, samples = self._groups[-1]
        variance = _variance(samples, _mean([first for first, _ in samples]))
        return share * math.sqrt(variance * 2 / (share * self.side + 2) / len(samples))

    @property
    def spread_error(self) -> float:
        """The standard error of the spread, from the differences between starts; NaN if there are too few."""
        mean, spread = self.mean, self.spread
        if self._known or not mean:
            return 0.0
        if len(self.starts) < FEWEST:
            return math.nan
        slope = 2 * spread * spread / mean  # of the squared spread, variance / mean², by the mean
        forms = [_variance([start], mean) / mean / mean - slope * start[0] for start in self.starts]
        centre = _mean(forms)
        variance = math.fsum((form - centre) * (form - centre) for form in forms) / (len(forms) - 1)
        error = (1 - len(self.spanned) / self.side) * math.sqrt(variance / len(forms))
        return math.hypot(spread, math.sqrt(error)) - spread


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def _variance(samples: Sequence[Sample], centre: float) -> float:
    """The variance of samples about a centre."""
    return _mean([within + (first - centre) * (first - centre) for first, within in samples])
