"""Spectra as they are estimated, against decompositions of the matrices and against predictions.

python docs/measurements/spectra.py
python docs/measurements/spectra.py --model resnet50
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator

import timm
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from idfx.core.findings import Spectrum
from idfx.measuring.operators import LinearMap
from idfx.measuring.spectrum import spectrum

SIZE = 400
HEAD = "map | largest | smallest | mean square | spread | predicted spread | products"


def as_map(matrix: Tensor) -> LinearMap:
    """Return a matrix as a map."""
    return LinearMap(*matrix.shape, matrix.mv, matrix.T.mv, matrix.dtype)


def matrices() -> Iterator[tuple[str, Tensor, float | None]]:
    """Yield names, matrices in float64, and the spread that is predicted for large ones."""
    generator = torch.Generator().manual_seed(0)

    def gaussian() -> Tensor:
        return torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) / math.sqrt(SIZE)

    def orthogonal() -> Tensor:
        return torch.linalg.qr(gaussian()).Q

    def gate() -> Tensor:
        return torch.diag((torch.rand(SIZE, generator=generator) < 0.5).double() * math.sqrt(2))

    def product(factors: list[Tensor]) -> Tensor:
        return torch.linalg.multi_dot(factors)

    yield "one Gaussian matrix", gaussian(), 1.0
    yield "product of 10 Gaussian matrices", product([gaussian() for _ in range(10)]), math.sqrt(10)
    yield "product of 10 orthogonal matrices", product([orthogonal() for _ in range(10)]), 0.0
    yield "10 layers of ReLU, Gaussian", product([f() for _ in range(10) for f in (gate, gaussian)]), math.sqrt(20)
    yield "10 layers of ReLU, orthogonal", product([f() for _ in range(10) for f in (gate, orthogonal)]), math.sqrt(10)
    decay = torch.logspace(0, -12, SIZE, dtype=torch.float64)
    yield "condition 1e12", orthogonal() * decay @ orthogonal(), None
    yield "rank 5", gaussian()[:, :5] @ gaussian()[:5], None


def shown(found: Spectrum) -> str:
    """Return the numbers of a record, each with its error."""
    pairs = [
        f"{found.largest:.4g} + {found.largest_error:.1g}",
        f"{found.smallest:.2g} − {found.smallest_error:.1g}",
        f"{found.mean_square:.3g} ± {found.mean_square_error:.1g}",
        f"{found.spread:.3g} ± {found.spread_error:.1g}",
    ]
    return " | ".join(pairs)


def exactly(found: Spectrum) -> str:
    """Return the numbers of a record that was computed exactly."""
    return f"{found.largest:.4g} | {found.smallest:.2g} | {found.mean_square:.3g} | {found.spread:.3g}"


def by_scipy(matrix: Tensor) -> int:
    """Return how many products scipy's svds takes for the largest singular value, to 1e-3."""
    count = itertools.count()
    linear = LinearOperator(
        matrix.shape,
        matvec=lambda v: (next(count), matrix @ torch.from_numpy(v).ravel())[1].numpy(),
        rmatvec=lambda u: (next(count), matrix.T @ torch.from_numpy(u).ravel())[1].numpy(),
        dtype=float,
    )
    svds(linear, k=1, tol=1e-3, rng=0)
    return next(count)


def table(seeds: int) -> None:
    """Print the estimates of each map beside the truth, and how often a bound or an error is missed."""
    print(HEAD)
    for name, matrix, predicted in matrices():
        exact = spectrum(as_map(matrix), "", seed=0, exact_below=SIZE)
        found = [spectrum(as_map(matrix), "", seed=seed) for seed in range(seeds)]
        expected = "" if predicted is None else f"{predicted:.3g}"
        print(f"{name} | {shown(found[0])} | {expected} | {found[0].products}")
        print(f"  exact | {exactly(exact)} | | scipy {by_scipy(matrix)}")
        slack = 1e-12 * exact.largest
        missed = sum(
            not -slack <= exact.largest - one.largest <= one.largest_error + slack
            or not -slack <= one.smallest - exact.smallest <= one.smallest_error + slack
            for one in found
        )
        print(f"  of {seeds} seeds: {missed} bounds missed", end="")
        print("".join(f"; {number} {rms(found, exact, number, slack)}" for number in ("mean_square", "spread")))


def rms(found: list[Spectrum], exact: Spectrum, number: str, slack: float) -> str:
    """Return the root mean square of error over standard error, where the latter is not rounding alone."""
    pairs = [(getattr(one, number) - getattr(exact, number), getattr(one, f"{number}_error")) for one in found]
    scaled = [(missed / error) ** 2 for missed, error in pairs if error > slack]
    return f"{math.sqrt(sum(scaled) / len(scaled)):.2f}" if scaled else "known"


def of_model(name: str, exact: bool) -> None:
    """Print the spectrum of the Jacobian of a model of timm, for one random image."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval().requires_grad_(False)
    image = torch.randn(1, 3, 224, 224, requires_grad=True)
    out = model(image).flatten()
    seed = torch.zeros_like(out, requires_grad=True)
    (back,) = torch.autograd.grad(out, image, seed, create_graph=True)  # linear in seed, its derivative is J

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(back, seed, v.view(image.shape), retain_graph=True)[0]

    def adjoint(u: Tensor) -> Tensor:
        return torch.autograd.grad(out, image, u, retain_graph=True)[0].flatten()

    jacobian = LinearMap(out.numel(), image.numel(), forward, adjoint)
    for below in (0, out.numel()) if exact else (0,):
        start = time.perf_counter()
        found = spectrum(jacobian, "", seed=0, exact_below=below)
        print(f"{name} | {exactly(found) if below else shown(found)} | | {found.products}", end=" ")
        print(f"({time.perf_counter() - start:.0f} s)")


def main() -> None:
    """Measure the maps, or a model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--model")
    parser.add_argument("--exact", action="store_true", help="all singular values of the model too")
    given = parser.parse_args()
    if given.model:
        of_model(given.model, given.exact)
    else:
        table(given.seeds)


if __name__ == "__main__":
    main()
