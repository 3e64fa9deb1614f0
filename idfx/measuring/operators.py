"""A linear map given by its products with vectors, and a budget of products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from idfx.core.noise import normal

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearMap:
    """A map of shape (rows, columns) on flat vectors of one dtype on one device, which counts its products.

    Args:
        rows, columns: the lengths of outputs and inputs.
        forward: the product with a vector, columns → rows.
        adjoint: the product of the transpose with a vector, rows → columns.
        dtype: torch.float32 or torch.float64, of the vectors.
        device: of the vectors.

    Example:
        >>> double = LinearMap(2, 2, lambda v: 2 * v, lambda u: 2 * u)
        >>> double.times(torch.ones(2)), double.products
        (tensor([2., 2.]), 1)
    """

    rows: int
    columns: int
    forward: Product
    adjoint: Product
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    _made: Counter[str] = field(default_factory=Counter, repr=False, compare=False)

    @property
    def products(self) -> int:
        """The number of products with it or its transpose."""
        return self._made["products"]

    @property
    def transposed(self) -> LinearMap:
        """Its transpose; products with it count as products of this map."""
        return LinearMap(self.columns, self.rows, self.adjoint, self.forward, self.dtype, self.device, self._made)

    @property
    def tall(self) -> LinearMap:
        """Itself or its transpose, whichever has fewer columns."""
        return self if self.columns <= self.rows else self.transposed

    def times(self, vector: Tensor) -> Tensor:
        """Return its product with a vector, detached."""
        self._made["products"] += 1
        return self.forward(vector).detach().to(self.dtype)

    def start(self, seed: int, stream: str) -> Tensor:
        """Return a random vector of length 1, uniform on the sphere, equal on every device."""
        drawn = normal(seed, stream, torch.arange(self.columns))
        unit: Tensor = drawn / torch.linalg.vector_norm(drawn)
        return unit.to(self.device, self.dtype)


@dataclass
class Budget:
    """A limit on the number of products and on the time; `spent` says whether time ran out."""

    made: Callable[[], int]
    products: int
    out_of_time: Callable[[], bool]
    spent: bool = False

    def __post_init__(self) -> None:
        self._before = self.made()

    @property
    def used(self) -> int:
        """The number of products since the budget was created."""
        return self.made() - self._before

    def allows(self, number: int, limit: int | None = None) -> bool:
        """Whether time remains for this many more products, within a limit or the whole budget."""
        if self.used + number > (self.products if limit is None else limit):
            return False
        self.spent = self.spent or self.out_of_time()
        return not self.spent


def norm(vector: Tensor) -> float:
    """Return the length of a vector without overflow.

    Example:
        >>> round(norm(torch.tensor([3e30, 4e30])) / 1e30, 5), norm(torch.zeros(2))
        (5.0, 0.0)
    """
    largest = float(vector.abs().max()) if vector.numel() else 0.0
    return largest * float(torch.linalg.vector_norm(vector / largest)) if largest else largest
