"""The ends of the spectrum of a Hessian from its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

from idfx.core.findings import Eigenvalue
from idfx.measuring.krylov import Tridiagonalisation
from idfx.measuring.operators import Budget, LinearMap


def largest_eigenvalue(
    hessian: LinearMap,
    *,
    seed: int,
    products: int = 40,
    accuracy: float = 0.01,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Eigenvalue:
    """Return the largest and the smallest eigenvalue of a symmetric map, with bounds on what they miss.

    Lanczos from a random start. It ends when the bounds on both ends are within `accuracy` of the one that is larger
    in absolute value, or with the budget. Gradient descent on a quadratic function is stable below a step of
    2 / `largest`.

    scipy's eigsh (ARPACK) has no bound on products that it keeps to while it returns what it has, restarts, and works
    on the CPU; a Lanczos without restarts is all that some 40 products need.

    Args:
        hessian: the map; it is symmetric, so products with its transpose are not used.
        seed: of the start.
        products: how many may be made.
        accuracy: at which to stop, relative.
        out_of_time: called before each product; true stops the iteration.

    Source: the bounds: `idfx.measuring.krylov.beyond`.

    Example:
        >>> import torch
        >>> diagonal = torch.tensor([-3.0, 1.0, 2.0])
        >>> found = largest_eigenvalue(LinearMap(3, 3, diagonal.mul, diagonal.mul), seed=0)
        >>> round(found.largest, 4), round(found.value, 4), found.products
        (2.0, -3.0, 3)
    """
    budget = Budget(lambda: hessian.products, products, out_of_time)
    if not hessian.columns:
        return Eigenvalue(math.nan, math.nan, math.nan, math.nan, 0, note="it has no eigenvalues")
    process = Tridiagonalisation(hessian, hessian.start(seed, "curvature"), max(products, 1))
    above = below = math.inf
    while not process.over and budget.allows(1):
        process.step()
        if process.failure:
            return Eigenvalue(math.nan, math.nan, math.nan, math.nan, budget.used, note=process.failure)
        values = process.values()
        size = max(abs(values[0]), abs(values[-1]))
        above, below = (process.beyond(largest) + process.rounding * size for largest in (True, False))
        if max(above, below) <= accuracy * size:
            break
    if not process.diagonal:
        return Eigenvalue(math.nan, math.nan, math.nan, math.nan, 0, complete=False)
    return Eigenvalue(values[0], above, values[-1], below, budget.used, complete=not budget.spent)
