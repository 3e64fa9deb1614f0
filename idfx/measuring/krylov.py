"""Lanczos processes on maps given by their products, and bounds on the ends of a spectrum.

Both keep all vectors explicitly orthogonal, and record by how much each product disagrees with the earlier ones. They
are exact up to this amount: the small matrix belongs to a map that differs by it (`rounding`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from idfx.measuring.operators import LinearMap, norm

DOUBT = 1e-3  # the probability that a bound on an end of a spectrum fails, over random starts
CONTRADICTION = 0.1  # maximum disagreement of products, relative to the norm; about 0.01 in half precision
NOT_FINITE = "a product is not finite"
NOT_LINEAR = "the products contradict each other: they are not those of one linear map and its transpose"


class _Process:
    """State of both processes: the consistency of the products, and the reason to stop."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.rounding = 8 * torch.finfo(dtype).eps  # of the norm of the map
        self.scale = 0.0  # the longest product so far
        self.exhausted = False  # the products stay in the span of the basis
        self.failure = ""

    @property
    def over(self) -> bool:
        """Whether a further step has nothing to do."""
        return self.exhausted or bool(self.failure)

    def _remainder(self, product: Tensor, basis: Tensor, known: Mapping[int, float]) -> tuple[Tensor, float]:
        """Return the part of a product outside the span of the basis, and its length; 0 if it is only rounding.

        `known` has the expected non-zero components along the basis, by number.
        """
        self.scale = max(self.scale, norm(product))
        along = basis @ product
        missed = [abs(found - known.get(number, 0.0)) for number, found in enumerate(along.tolist())]
        if missed and self.scale > 0:
            self.rounding = max(self.rounding, max(missed) / self.scale)
        rest = product - basis.T @ along
        rest = rest - basis.T @ (basis @ rest)
        length = norm(rest)
        if not math.isfinite(self.scale) or not math.isfinite(length):
            self.failure = NOT_FINITE
        elif self.rounding > CONTRADICTION:
            self.failure = NOT_LINEAR
        return rest, length if length > 8 * torch.finfo(product.dtype).eps * self.scale else 0.0


class Bidiagonalisation(_Process):
    """Golub-Kahan-Lanczos: A V = U B and AᵀU = V Bᵀ + remainder, B upper bidiagonal, V and U orthonormal.

    V begins with the start vector, and BᵀB is the Lanczos matrix of AᵀA. After k steps `diagonal` holds the k entries
    of B's diagonal, and `above` the k entries next to it, the last of which is the length of the remainder. A step
    takes two products.

    Args:
        tall: A, with at least as many rows as columns.
        start: a vector of length 1, by columns.
        steps: the maximum number of steps.

    Source: Golub and Kahan, "Calculating the singular values and pseudo-inverse of a matrix", 1965.
    """

    def __init__(self, tall: LinearMap, start: Tensor, steps: int) -> None:
        super().__init__(start.dtype)
        self._map, self._next = tall, start
        self._steps = min(steps, tall.columns)
        self._right = start.new_empty(self._steps, tall.columns)
        self._left = start.new_empty(self._steps, tall.rows)
        self.diagonal: list[float] = []
        self.above: list[float] = []

    @property
    def over(self) -> bool:
        """Whether a further step has nothing to do, or nowhere to be kept."""
        return super().over or len(self.diagonal) == self._steps

    def step(self) -> None:
        """Make one step; after a failure nothing is added."""
        k = len(self.diagonal)
        self._right[k] = self._next
        known = {k - 1: self.above[-1]} if k else {}
        left, length = self._remainder(self._map.times(self._next), self._left[:k], known)
        rest = 0.0
        if length and not self.failure:
            self._left[k] = left / length
            right, rest = self._remainder(self._map.transposed.times(self._left[k]), self._right[: k + 1], {k: length})
            if k + 1 == self._map.columns:
                rest = 0.0
            self._next = right / rest if rest else right
        if not self.failure:
            self.diagonal.append(length)
            self.above.append(rest)
            self.exhausted = rest == 0

    def samples(self) -> list[tuple[float, float]]:
        """Return, for each column v of V, ⟨v, M v⟩ and ‖M v − ⟨v, M v⟩ v‖² with M = AᵀA."""
        before = [0.0, *self.above]
        entries = [a * a + b * b for a, b in zip(self.diagonal, before, strict=False)]
        links = [0.0, *(a * a * b * b for a, b in zip(self.diagonal, self.above, strict=True))]
        return [(entry, links[k] + links[k + 1]) for k, entry in enumerate(entries)]

    def outside(self, vector: Tensor) -> Tensor:
        """Return the component of a vector outside the span of V, normalised to length 1."""
        basis = self._right[: len(self.diagonal)]
        for _ in range(2):
            vector = vector - basis.T @ (basis @ vector)
        return vector / norm(vector)

    def quadrature(self) -> tuple[list[float], list[float]]:
        """Return singular values of B, largest first, and their shares in the start: a Gauss quadrature."""
        matrix = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        matrix += torch.diag(torch.tensor(self.above[:-1], dtype=torch.float64), 1)
        _, values, right = torch.linalg.svd(matrix)
        return values.tolist(), right[:, 0].square().tolist()

    def beyond(self, largest: bool) -> float:
        """Return a bound on how far the largest eigenvalue of AᵀA is above that of BᵀB, or the smallest below it."""
        nodes = [value * value for value in self.quadrature()[0]]
        links = [a * b for a, b in zip(self.diagonal, self.above, strict=True)]
        return beyond(nodes if largest else nodes[::-1], links, self._map.columns)


def beyond(nodes: list[float], links: list[float], size: int) -> float:
    """Return how far the end of a spectrum may be beyond the Ritz values, except with probability `DOUBT`.

    After k Lanczos steps from v, the next vector has length 1 and is p(M) v, p of degree k with the Ritz values as
    roots and the product of the links, inverted, as leading coefficient. Hence |p(λ)| |⟨x, v⟩| <= 1 for each eigenvalue
    λ with vector x. For a random v, |⟨x, v⟩| >= DOUBT √(π / 2 size) except with this probability. Since p grows beyond
    the outermost root, λ is at most the point where p reaches the inverse of this bound. The residual of a Ritz pair
    does not give such a bound: it bounds the distance to some eigenvalue, not to the last.

    Args:
        nodes: Ritz values, the one at the end in question first.
        links: the entries beside the diagonal of the Lanczos matrix, the last one leading out of it.
        size: the number of rows and columns of the symmetric map.

    Source: van Dorsselaer, Hochstenbach and van der Vorst, "Computing probabilistic bounds for extreme eigenvalues of
        symmetric matrices with the Lanczos method", SIAM J. Matrix Anal. Appl. 2000; for singular values Hochstenbach,
        "Probabilistic upper bounds for the matrix two-norm", J. Sci. Comput. 2013.

    Example:
        >>> beyond([2.0, 1.0], [0.5, 0.0], 100)
        0.0
        >>> round(beyond([2.0], [1e-4], 100), 2)
        0.8
    """
    if not all(links):
        return 0.0
    gaps = [abs(node - nodes[0]) for node in nodes]
    goal = sum(map(math.log, links)) - math.log(DOUBT * math.sqrt(math.pi / (2 * size)))
    high = goal / len(nodes)
    low = high - 100.0
    for _ in range(60):
        middle = (low + high) / 2
        distance = math.exp(middle)
        if sum(math.log(gap + distance) for gap in gaps) < goal:
            low = middle
        else:
            high = middle
    return math.exp(high)


class Tridiagonalisation(_Process):
    """Lanczos on a symmetric map: H V = V T + remainder, T tridiagonal, V orthonormal.

    `diagonal` holds the diagonal of T, and `beside` the entries next to it, the last of which is the length of the
    remainder. A step takes one product. If the vectors would take more than `room` bytes, only the last ones are kept
    and V is only locally orthogonal: eigenvalues are then repeated, but those at the ends are as exact as before
    (Paige, "Accuracy and effectiveness of the Lanczos algorithm for the symmetric eigenproblem", 1980).
    """

    def __init__(self, symmetric: LinearMap, start: Tensor, steps: int, room: int = 2**30) -> None:
        super().__init__(start.dtype)
        self._map, self._next = symmetric, start
        self._steps = min(steps, symmetric.columns)
        kept = min(self._steps, max(2, room // (start.numel() * start.element_size())))
        self._basis = start.new_empty(kept, start.numel())
        self.diagonal: list[float] = []
        self.beside: list[float] = []

    @property
    def over(self) -> bool:
        """Whether a further step has nothing to do, or nowhere to be kept."""
        return super().over or len(self.diagonal) == self._steps

    def step(self) -> None:
        """Make one step; after a failure nothing is added."""
        k = len(self.diagonal)
        kept = len(self._basis)
        self._basis[k % kept] = self._next
        product = self._map.times(self._next)
        entry = float(self._next @ product)
        known = {k % kept: entry} | ({(k - 1) % kept: self.beside[-1]} if k else {})
        vector, rest = self._remainder(product, self._basis[: k + 1], known)
        if k + 1 == self._map.columns:
            rest = 0.0
        if not self.failure:
            self.diagonal.append(entry)
            self.beside.append(rest)
            self.exhausted = rest == 0
            self._next = vector / rest if rest else vector

    def values(self) -> list[float]:
        """Return the eigenvalues of T, largest first."""
        matrix = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        beside = torch.diag(torch.tensor(self.beside[:-1], dtype=torch.float64), 1)
        values: list[float] = torch.linalg.eigvalsh(matrix + beside + beside.T).flip(0).tolist()
        return values

    def beyond(self, largest: bool) -> float:
        """Return a bound on how far the largest eigenvalue is above that of T, or the smallest below it."""
        nodes = self.values()
        return beyond(nodes if largest else nodes[::-1], self.beside, self._map.columns)
