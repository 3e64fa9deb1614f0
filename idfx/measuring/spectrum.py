"""The singular values of a Jacobian, from products with vectors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from idfx.core.findings import Spectrum
from idfx.measuring.krylov import CONTRADICTION, NOT_FINITE, NOT_LINEAR, Bidiagonalisation
from idfx.measuring.moments import Moments
from idfx.measuring.operators import Budget, LinearMap, norm

FIRST = 0.75  # of the products go to the first start, for the ends of the spectrum
_CHUNK = 2**14  # rows of a matrix that are factorised at once


def spectrum(
    jacobian: LinearMap,
    place: str,
    *,
    seed: int,
    products: int = 56,
    exact_below: int = 64,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Spectrum:
    """Return the singular values of a Jacobian, exactly if one of its sides is small, otherwise estimated.

    Exact: products on the smaller side give the matrix, which is decomposed in float64; one more product, on the other
    side, has to agree. Estimated: Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation from random
    starts on the smaller side. Three quarters of the products go to the first start, which gives both ends and the
    density. Further starts of two products each, outside the span of the first, give mean square and spread
    (`idfx.measuring.moments`) until the mean square is known to 1 %. The remaining products extend the first start.

    Args:
        jacobian: the map.
        place: its name in the record; each place has its own random starts.
        seed: of the starts.
        products: the maximum number, if the values are estimated.
        exact_below: the largest smaller side for exact values.
        out_of_time: called before each step; returns whether to stop.

    Returns:
        The record. Values that were not measured are NaN, and `note` gives the reason unless time ran out.

    Source: Golub and Meurant, "Matrices, Moments and Quadrature with Applications", 2010, for the quadrature; Ubaru,
        Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017, for its random starts.
        The bounds on the ends: `idfx.measuring.krylov.beyond`. The split: ours.

    Example:
        >>> diagonal = torch.linspace(1, 2, 100)
        >>> found = spectrum(LinearMap(100, 100, diagonal.mul, diagonal.mul), "", seed=0)
        >>> found.largest <= 2.000001 <= found.largest + found.largest_error + 1e-6, found.products
        (True, 56)
    """
    side = min(jacobian.rows, jacobian.columns)
    exact = side <= exact_below
    budget = Budget(lambda: jacobian.products, side + 1 if exact else products, out_of_time)
    empty = _empty(place, jacobian.rows, jacobian.columns)
    if side == 0:
        return dataclasses.replace(empty, note="it has no singular values")
    found = _exact(empty, jacobian.tall, seed, budget) if exact else _estimate(empty, jacobian.tall, seed, budget)
    return dataclasses.replace(found, products=budget.used)


def _empty(place: str, rows: int, columns: int) -> Spectrum:
    nan = math.nan
    return Spectrum(place, rows, columns, False, nan, nan, nan, nan, nan, nan, nan, nan, (), 0)


def _failed(empty: Spectrum, budget: Budget, why: str) -> Spectrum:
    return dataclasses.replace(empty, complete=bool(why) and not budget.spent, note=why)


def _exact(empty: Spectrum, tall: LinearMap, seed: int, budget: Budget) -> Spectrum:
    columns: list[Tensor] = []
    for number in range(tall.columns):
        if not budget.allows(1):
            return _failed(empty, budget, "")
        unit = torch.zeros(tall.columns, dtype=tall.dtype, device=tall.device)
        unit[number] = 1
        columns.append(tall.times(unit).cpu())
        if not columns[-1].isfinite().all():
            return _failed(empty, budget, NOT_FINITE)
    matrix = torch.stack(columns, 1)
    values = torch.linalg.svdvals(_triangle(matrix)).tolist()
    if not _agrees(matrix, tall, seed):
        return _failed(empty, budget, NOT_LINEAR)
    squares = [value * value for value in values]
    mean = math.fsum(squares) / len(squares)
    variance = math.fsum((square - mean) * (square - mean) for square in squares) / len(squares)
    return dataclasses.replace(
        empty,
        exact=True,
        largest=values[0],
        largest_error=0.0,
        smallest=values[-1],
        smallest_error=0.0,
        mean_square=mean,
        mean_square_error=0.0,
        spread=math.sqrt(variance) / mean if mean else 0.0,
        spread_error=0.0,
        density=tuple((value, 1 / len(values)) for value in values),
    )


def _triangle(matrix: Tensor) -> Tensor:
    """A square matrix with the singular values of a tall matrix, in float64."""
    triangle = matrix.new_zeros(0, matrix.shape[1], dtype=torch.float64)
    for start in range(0, len(matrix), _CHUNK):
        part = matrix[start : start + _CHUNK].double()
        triangle = torch.linalg.qr(torch.cat([triangle, part]), "r").R
    return triangle


def _agrees(matrix: Tensor, tall: LinearMap, seed: int) -> bool:
    """Whether a product with the transpose agrees with the matrix, up to rounding."""
    image = matrix @ tall.start(seed, "check").cpu()
    length = norm(image)
    start = (image / length).to(tall.device) if length else tall.transposed.start(seed, "check")
    product = tall.transposed.times(start).cpu()
    return norm(product - matrix.T @ start.cpu()) <= CONTRADICTION * norm(product)


def _estimate(empty: Spectrum, tall: LinearMap, seed: int, budget: Budget) -> Spectrum:
    stream = f"spectrum:{empty.place}"
    first = Bidiagonalisation(tall, tall.start(seed, f"{stream}:0"), budget.products // 2)

    def extend(limit: int) -> None:
        while not first.over and budget.allows(2, limit):
            first.step()

    extend(max(int(FIRST * budget.products), 2))
    if first.failure or not first.diagonal:
        return _failed(empty, budget, first.failure)
    moments = Moments(tall.columns, first.samples())
    while moments.wanting and budget.allows(2):
        start = tall.start(seed, f"{stream}:{len(moments.starts) + 1}")
        moments.starts.append(_sample(tall, first.outside(start)))
        if not all(map(math.isfinite, moments.starts[-1])):
            return _failed(empty, budget, NOT_FINITE)
    extend(budget.products)
    return _failed(empty, budget, first.failure) if first.failure else _record(empty, first, moments, budget)


def _sample(tall: LinearMap, vector: Tensor) -> tuple[float, float]:
    """⟨v, M v⟩ and ‖M v − ⟨v, M v⟩ v‖² for a vector v of length 1, with M = AᵀA."""
    image = tall.times(vector)
    length = norm(image)
    back = tall.transposed.times(image / length if length else image)
    rest = length * norm(back - length * vector)
    return length * length, rest * rest


def _record(empty: Spectrum, first: Bidiagonalisation, moments: Moments, budget: Budget) -> Spectrum:
    values, shares = first.quadrature()
    largest, smallest = values[0], values[-1]
    rounding = first.rounding * largest
    above = first.beyond(largest=True)
    below = max(smallest * smallest - first.beyond(largest=False), 0.0)
    return dataclasses.replace(
        empty,
        largest=largest,
        largest_error=(above / (math.hypot(largest, math.sqrt(above)) + largest) if above else 0.0) + rounding,
        smallest=smallest,
        smallest_error=smallest - math.sqrt(below) + rounding,
        mean_square=moments.mean,
        mean_square_error=moments.mean_error,
        spread=moments.spread,
        spread_error=moments.spread_error,
        density=tuple(zip(values, shares, strict=True)),
        complete=not budget.spent,
    )
