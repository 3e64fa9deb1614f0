"""Spectra of linear maps against decompositions of their matrices, and of deep networks against free probability."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jvp, vjp

from idfx.measuring.curvature import largest_eigenvalue
from idfx.measuring.krylov import Tridiagonalisation
from idfx.measuring.moments import FEWEST, Moments
from idfx.measuring.operators import LinearMap
from idfx.measuring.spectrum import spectrum

N = 200
DOUBLE = torch.float64


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def as_map(matrix: Tensor, dtype: torch.dtype = DOUBLE) -> LinearMap:
    matrix = matrix.to(dtype)
    return LinearMap(*matrix.shape, lambda v: matrix @ v, lambda u: matrix.T @ u, dtype)


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)))


def orthogonal(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(size, size, seed)).Q


def with_values(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    left, right = orthogonal(rows, seed), orthogonal(columns, seed + 1)
    return left[:, : len(values)] * values @ right[:, : len(values)].T


def truth(matrix: Tensor) -> tuple[float, float, float, float]:
    """Largest and smallest singular value, mean of the squares, and their standard deviation over it, by numpy."""
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    squares = values**2
    mean = squares.mean()
    return values[0], values[-1], mean, squares.std() / mean if mean else 0.0


MATRICES = {
    "square": gaussian(N, N),
    "wide": gaussian(N // 2, 3 * N),
    "tall": gaussian(3 * N, N // 2),
    "low rank": gaussian(N, 5, 1) @ gaussian(5, N, 2),
    "rank one": torch.outer(gaussian(N, 1)[:, 0], gaussian(N, 1, 1)[:, 0]),
    "zero": torch.zeros(N, N + 1, dtype=DOUBLE),
    "identity": torch.eye(N, dtype=DOUBLE),
    "orthogonal": orthogonal(N),
    "ill-conditioned": with_values(torch.logspace(0, -12, N, dtype=DOUBLE), N, N),
    "two at the top": with_values(
        torch.cat([torch.tensor([1.0001, 1.0]), torch.linspace(0, 0.3, N - 2)]).double(), N, N
    ),
    "tiny": gaussian(N, N) * 1e-25,
    "huge": gaussian(N, N) * 1e25,
}


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_estimates_hold_the_truth(name, dtype):
    matrix = MATRICES[name]
    largest, smallest, mean, spread = truth(matrix.to(dtype))
    # Both decompositions round: LAPACK bounds its error by a slowly growing function of n times eps times the largest.
    slack = math.sqrt(N) * torch.finfo(dtype).eps * largest
    linear = as_map(matrix, dtype)
    found = spectrum(linear, "", seed=1)
    assert (found.rows, found.columns, found.exact, found.complete, found.note) == (*matrix.shape, False, True, "")
    assert -slack - found.largest_error * 1e-6 <= largest - found.largest <= found.largest_error + slack
    assert found.smallest - found.smallest_error - slack <= smallest <= found.smallest + found.smallest_error + slack
    assert abs(found.mean_square - mean) <= 4 * found.mean_square_error + 1e-5 * mean
    assert abs(found.spread - spread) <= 5 * found.spread_error + 1e-5
    assert found.products == linear.products <= 56
    assert math.fsum(share for _, share in found.density) == pytest.approx(1)


@pytest.mark.parametrize("name", ["square", "wide", "tall", "low rank", "zero", "identity", "ill-conditioned", "huge"])
def test_exact_path_is_the_decomposition(name):
    matrix = MATRICES[name][:40] if name != "tall" else MATRICES[name][:, :40]
    largest, smallest, mean, spread = truth(matrix)
    linear = as_map(matrix)
    found = spectrum(linear, "block", seed=1)
    assert (found.place, found.exact, found.complete) == ("block", True, True)
    assert found.products == linear.products == 41  # one is a check
    assert found.largest == pytest.approx(largest, rel=1e-12)
    assert found.smallest == pytest.approx(smallest, rel=1e-6, abs=1e-13 * largest)
    assert found.mean_square == pytest.approx(mean, rel=1e-12)
    assert found.spread == pytest.approx(spread, abs=1e-7)
    assert [value for value, _ in found.density] == pytest.approx(
        list(np.linalg.svd(matrix, compute_uv=False)), abs=1e-12 * largest
    )
    assert (found.largest_error, found.smallest_error, found.mean_square_error, found.spread_error) == (0, 0, 0, 0)


def test_exact_path_takes_long_sides_in_parts():
    matrix = gaussian(40_000, 3)
    assert spectrum(as_map(matrix), "", seed=0).largest == pytest.approx(truth(matrix)[0], rel=1e-12)


@pytest.mark.parametrize("side", [1, 2, 3, 10, 28])
def test_a_run_through_all_dimensions_is_exact(side):
    """The exact and the Lanczos path, each on its own, on sides that the Krylov space fills."""
    matrix = gaussian(side + 5, side)
    exact = spectrum(as_map(matrix), "", seed=0)
    run = spectrum(as_map(matrix), "", seed=0, exact_below=0, products=80)
    assert (exact.exact, run.exact) == (True, False)
    for name in ("largest", "smallest", "mean_square", "spread"):
        assert getattr(run, name) == pytest.approx(getattr(exact, name), rel=1e-8, abs=1e-8), name
    assert run.largest_error < 1e-12 * run.largest
    assert (run.mean_square_error, run.spread_error) == (0, 0)


@given(
    values=st.lists(
        st.sampled_from([0.0, 1e-3, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.0, 1.0001, 1.5, 30.0]), min_size=3, max_size=12
    ),
    copies=st.integers(1, 8),
    extra=st.integers(0, 40),
    products=st.integers(2, 40),
    seed=st.integers(0, 2**30),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_bounds_hold_on_random_spectra(values, copies, extra, products, seed):
    """Clusters, gaps, copies and zeros, and budgets that end before anything has converged."""
    each = torch.tensor(values * copies, dtype=DOUBLE)
    matrix = with_values(each, len(each) + extra, len(each), seed % 1000)
    found = spectrum(as_map(matrix), "", seed=seed, exact_below=0, products=products)
    rounding = 1e-13 * max(values)
    assert found.largest - rounding <= max(values) <= found.largest + found.largest_error + rounding
    assert found.smallest - found.smallest_error - rounding <= min(values) <= found.smallest + rounding
    assert found.products <= products


def test_residual_bounds_would_not_hold():
    """Two values at the top that Lanczos cannot tell apart yet: the reason for the bounds that are used.

    With squares λ1 > λ2 and a Ritz vector at an angle a to the first, the residual is sin a cos a (λ1 − λ2) and the
    error sin² a (λ1 − λ2), which is more for a > 45°: for half of the starts.
    """
    values = torch.cat([torch.tensor([1 + 1e-7, 1.0]), torch.zeros(N - 2)]).double()
    linear = as_map(torch.diag(values))
    wrong = 0
    for seed in range(100):
        start = linear.start(seed, "spectrum::0")
        wrong += abs(float(start[0])) < abs(float(start[1]))
        found = spectrum(linear, "", seed=seed, products=4)
        assert float(values[0]) <= found.largest + found.largest_error
    assert wrong > 30


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_standard_errors_are_those_over_seeds(depth):
    matrix = torch.eye(N, dtype=DOUBLE)
    for layer in range(depth):
        matrix = gaussian(N, N, layer) / math.sqrt(N) @ matrix
    _, _, mean, spread = truth(matrix)
    found = [spectrum(as_map(matrix), "", seed=seed) for seed in range(60)]
    of_mean = np.array([(one.mean_square - mean) / one.mean_square_error for one in found])
    of_spread = np.array([(one.spread - spread) / one.spread_error for one in found])
    assert 0.7 < np.sqrt((of_mean**2).mean()) < 1.4
    assert abs(of_mean.mean()) < 4 / math.sqrt(60)
    assert 0.7 < np.sqrt((of_spread**2).mean()) < 1.8  # of seven starts: that of Student's t with 6 degrees is 1.22


def test_the_density_is_a_gauss_quadrature_of_one_start():
    """Its moments to the order 2k − 1 are those of the start, by products that are made here."""
    matrix = gaussian(N, N) / math.sqrt(N)
    linear = as_map(matrix)
    found = spectrum(linear, "", seed=3, products=12)  # all four steps of the first start, then a start
    vector = linear.start(3, "spectrum::0")
    gram = matrix.T @ matrix
    for order in range(2 * len(found.density)):
        power = torch.linalg.matrix_power(gram, order)
        of_nodes = math.fsum(share * value ** (2 * order) for value, share in found.density)
        assert of_nodes == pytest.approx(float(vector @ power @ vector), rel=1e-9), order


def test_density_of_gaussian_matrix_is_the_quarter_circle():
    """Marchenko and Pastur, 1967: density √(4 − s²) / π on [0, 2]; here its distribution function at some points."""
    found = spectrum(as_map(gaussian(600, 600) / math.sqrt(600)), "", seed=0)
    for at in (0.5, 1.0, 1.5):
        expected = (at * math.sqrt(4 - at * at) / 2 + 2 * math.asin(at / 2)) / math.pi
        below = math.fsum(share for value, share in found.density if value < at)
        assert below == pytest.approx(
            expected, abs=0.08
        )  # a share of one of 21 nodes is some 0.05, a start's noise 0.03


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_orthogonal_products_are_isometries(dtype):
    layers = [orthogonal(N, seed).to(dtype) for seed in range(20)]

    def through(vector: Tensor) -> Tensor:
        for layer in layers:
            vector = layer @ vector
        return vector

    def back(vector: Tensor) -> Tensor:
        for layer in reversed(layers):
            vector = layer.T @ vector
        return vector

    found = spectrum(LinearMap(N, N, through, back, dtype), "", seed=0)
    eps = torch.finfo(dtype).eps
    assert abs(found.largest - 1) < 100 * eps and abs(found.smallest - 1) < 100 * eps
    assert abs(found.mean_square - 1) < 100 * eps
    assert found.spread < 100 * eps


def test_identity_takes_one_step():
    found = spectrum(as_map(torch.eye(10_000), torch.float32), "", seed=0)
    assert found.products == 2
    assert found.largest == pytest.approx(1, abs=1e-6) == found.smallest
    assert found.spread == 0


@pytest.mark.parametrize("depth", [1, 3, 10])
def test_gaussian_products_have_the_moments_of_fuss_and_catalan(depth):
    """E[σ²] = 1 and E[σ⁴] → L + 1 for the product of L square matrices with entries N(0, 1/n): spread² → L.

    By induction, for finite n. Let M = JᵀJ with eigenvalues m_i, a = E tr M² / n, b = E (tr M / n)². For M' = WᵀMW,
    tr M'² = Σ_ij m_i m_j (w_i · w_j)² over the rows w of W, and E (w_i · w_j)² is 1/n for i ≠ j, 1 + 2/n for i = j.
    Hence a' = b + a (1 + 1/n), and likewise b' = b + 2a/n², from a = b = 1. For n → ∞: b = 1, a = L + 1, which is the
    Fuss-Catalan number C(2L + 2, 2) / (2L + 1).

    Source: Pennington, Schoenholz and Ganguli, "Resurrecting the sigmoid in deep learning through dynamical isometry",
    NeurIPS 2017, section 2.3.
    """
    size = 600
    a = b = 1.0
    for _ in range(depth):
        a, b = b + a * (1 + 1 / size), b + 2 * a / size**2
    assert a == pytest.approx(math.comb(2 * depth + 2, 2) / (2 * depth + 1), rel=0.05)
    layers = [(gaussian(size, size, 100 + layer) / math.sqrt(size)).float() for layer in range(depth)]
    matrix = torch.eye(size)
    for layer in layers:
        matrix = layer @ matrix
    found = spectrum(as_map(matrix, torch.float32), "", seed=0)
    assert found.mean_square == pytest.approx(1, abs=0.15)
    assert found.spread**2 == pytest.approx(depth, rel=0.2)


# Deep networks


def hermite(function) -> float:
    """The mean of a function of a standard normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(160)
    return float((weights * function(nodes)).sum() / weights.sum())


def tanh_at_criticality(q: float) -> tuple[float, float, float]:
    """Variances of weights (times n) and biases for which chi is 1 and q stays, and the relative variance of φ'²."""
    slope = [hermite(lambda z, power=power: (1 - np.tanh(math.sqrt(q) * z) ** 2) ** power) for power in (2, 4)]
    weights = 1 / slope[0]
    return weights, q - weights * hermite(lambda z: np.tanh(math.sqrt(q) * z) ** 2), slope[1] / slope[0] ** 2 - 1


def network_jacobian(phi, weights: float, biases: float, depth: int, size: int, entry: float, drawn: str, seed: int):
    """The Jacobian of φ(W x + b), depth times, at a random x with ‖x‖² = entry · size."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(depth):
        layer = torch.randn(size, size, generator=generator) / math.sqrt(size)
        if drawn == "orthogonal":
            layer = torch.linalg.qr(layer).Q * torch.randn(size, generator=generator).sign()
        layers.append((layer * math.sqrt(weights), torch.randn(size, generator=generator) * math.sqrt(biases)))

    def network(x: Tensor) -> Tensor:
        for weight, bias in layers:
            x = phi(weight @ x + bias)
        return x

    x = torch.randn(size, generator=generator)
    x *= math.sqrt(entry * size) / x.norm()
    pull = vjp(network, x)[1]
    return LinearMap(size, size, lambda v: jvp(network, (x,), (v,))[1], lambda u: pull(u)[0])


@pytest.mark.parametrize("drawn", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("phi", ["linear", "relu", "tanh", "hardtanh"])
def test_deep_networks_have_the_spectra_of_free_probability(phi, drawn):
    """Mean square and spread of J = D_L W_L … D_1 W_1 at criticality: 1, and spread² = L (v_φ + v_W).

    D holds the derivatives φ'(h), h normal with variance q*, W the weights. For wide layers they are free of each
    other, and S-transforms multiply: S_JJᵀ = Π S_WWᵀ S_D². The S-transform of a law with moments m1, m2 is
    (1/m1) (1 − (m2/m1² − 1) z + …), so that means multiply and relative variances m2/m1² − 1 add up.
      weights: orthogonal, WWᵀ = σ_w² 1, v_W = 0; Gaussian, S = 1 / (σ_w² (1 + z)), v_W = 1;
      D²: the mean is μ1 = E φ'(√q* z)², v_φ = μ2/μ1² − 1 with μ2 = E φ'(√q* z)⁴.
    The mean is (σ_w² μ1)^L, 1 if critical. φ' of ReLU and hard tanh is 0 or 1, 1 with probability p: μ1 = μ2 = p,
    v_φ = 1/p − 1; p = 1/2 for ReLU (σ_w² = 2, σ_b = 0), erf(1/√(2 q*)) for hard tanh; linear: v_φ = 0; tanh: by
    Gauss-Hermite quadrature at q* = 0.3, hard tanh at q* = 0.5. So spread² is L (1/p − 1) for orthogonal and L/p for
    Gaussian weights.

    Width 400 and depth 6, three networks each. Tolerance: that of fluctuations of the width, 5 · spread / √width for
    the mean of three (chi fluctuates from net to net by some √(2 spread² / width) for ReLU).

    Source: Pennington, Schoenholz and Ganguli, "The emergence of spectral universality in deep networks", AISTATS 2018,
    equations for σ²_JJᵀ: L (μ2/μ1² − 1 − s1), where s1 is −1 for Gaussian and 0 for orthogonal weights.
    """
    depth, size = 6, 400
    hard = 0.5
    inside = math.erf(1 / math.sqrt(2 * hard))
    weights, biases, vary, entry, function = {
        "linear": lambda: (1.0, 0.0, 0.0, 1.0, lambda x: 1.0 * x),
        "relu": lambda: (2.0, 0.0, 1.0, 1.0, torch.relu),
        "tanh": lambda: (*tanh_at_criticality(0.3), None, torch.tanh),
        "hardtanh": lambda: (
            1 / inside,
            hard - hermite_clip(hard) / inside,
            1 / inside - 1,
            None,
            torch.nn.functional.hardtanh,
        ),
    }[phi]()
    if entry is None:  # of the input, so that q is q* from the first layer on
        entry = ({"tanh": 0.3, "hardtanh": hard}[phi] - biases) / weights
    spread = math.sqrt(depth * (vary + (drawn == "gaussian")))
    found = [
        spectrum(network_jacobian(function, weights, biases, depth, size, entry, drawn, seed), "", seed=0)
        for seed in range(3)
    ]
    tolerance = 5 * spread / math.sqrt(size) / math.sqrt(3) + 1e-5
    assert np.mean([one.mean_square for one in found]) == pytest.approx(1, abs=tolerance)
    assert np.mean([one.spread for one in found]) == pytest.approx(spread, rel=0.1, abs=1e-5)


def hermite_clip(q: float) -> float:
    """The mean square of hard tanh of a normal number with variance q, in closed form."""
    inside = math.erf(1 / math.sqrt(2 * q))
    return q * inside - math.sqrt(2 * q / math.pi) * math.exp(-1 / (2 * q)) + 1 - inside


# What is not as it should be


def test_the_flagship_size_takes_less_than_sixty_products():
    """1000 × 150,528 as the logits of resnet50 by an image: a map of this shape, without its matrix."""
    values = torch.linspace(1, 0, 1000) ** 4 * 5
    linear = LinearMap(
        1000, 150_528, lambda v: values * v[:1000], lambda u: torch.nn.functional.pad(values * u, (0, 149_528))
    )
    found = spectrum(linear, "", seed=0)
    assert found.products == linear.products < 60
    assert found.largest <= 5 * (1 + 1e-6) and found.largest + found.largest_error >= 5
    assert found.largest_error < 0.03 * found.largest  # though there is no gap below it
    assert found.smallest >= 0 and found.smallest - found.smallest_error <= 0


@pytest.mark.parametrize("side", [10, N])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_products_that_are_not_finite(side, bad, at):
    """Both directions are spoilt from product number `at` on."""
    linear = as_map(gaussian(side, side))
    broken = LinearMap(
        side,
        side,
        lambda v: linear.forward(v) * (bad if broken.products > at else 1),
        lambda u: linear.adjoint(u) * (bad if broken.products > at else 1),
        DOUBLE,
    )
    found = spectrum(broken, "", seed=0)
    numbers = (found.largest, found.largest_error, found.smallest, found.mean_square, found.spread)
    assert all(math.isnan(number) for number in numbers)
    assert (found.density, found.note, found.complete) == ((), "a product is not finite", True)
    assert found.products == broken.products == at + 1 if side != N else found.products <= at + 2


@pytest.mark.parametrize("side", [10, N])
@pytest.mark.parametrize("kind", ["nonlinear", "another adjoint", "no adjoint", "noise"])
def test_products_that_contradict_each_other(side, kind):
    a, b = gaussian(side, side), gaussian(side, side, 5)
    generator = torch.Generator().manual_seed(0)
    forward = {
        "nonlinear": lambda v: (40 * a @ v).sin(),
        "noise": lambda v: torch.randn(side, generator=generator, dtype=DOUBLE),
    }.get(kind, lambda v: a @ v)
    adjoint = {"another adjoint": lambda u: b.T @ u, "no adjoint": lambda u: 0 * u}.get(kind, lambda u: a.T @ u)
    found = spectrum(LinearMap(side, side, forward, adjoint, DOUBLE), "", seed=0)
    assert found.note.startswith("the products contradict each other")
    assert math.isnan(found.largest) and found.complete


def test_noise_of_low_precision_widens_the_bounds():
    """Products rounded to bfloat16 are consistent to 1e-2 or so; the bounds tell, and the truth lies within."""
    matrix = gaussian(N, N) / math.sqrt(N)
    rounded = LinearMap(N, N, lambda v: (matrix.float() @ v).bfloat16(), lambda u: (matrix.float().T @ u).bfloat16())
    found, clean = spectrum(rounded, "", seed=0), spectrum(as_map(matrix, torch.float32), "", seed=0)
    assert found.note == "" and abs(found.largest - truth(matrix)[0]) <= found.largest_error
    assert found.largest_error > clean.largest_error


@pytest.mark.parametrize(("shape", "asked"), [((N, N), 0), ((N, N), 1), ((N, N), 5), ((N, N), 25), ((20, N), 6)])
def test_time_runs_out(shape, asked):
    calls = iter(range(10**6))
    linear = as_map(gaussian(*shape))
    found = spectrum(linear, "", seed=0, out_of_time=lambda: next(calls) >= asked)
    assert not found.complete and found.note == ""
    assert found.products == linear.products == asked * (1 if found.rows == 20 else 2)
    if asked and found.rows == N:
        largest, _, mean, spread = truth(gaussian(*shape))
        assert found.largest <= largest <= found.largest + found.largest_error
        assert abs(found.mean_square - mean) <= 4 * found.mean_square_error
        assert math.isnan(found.spread_error) == (asked < 21 + FEWEST)
        assert math.isnan(found.spread_error) or abs(found.spread - spread) <= 5 * found.spread_error
    else:
        assert math.isnan(found.largest) and math.isnan(found.mean_square) and found.density == ()


def test_too_few_products_and_no_values():
    assert not spectrum(as_map(gaussian(N, N)), "", seed=0, products=1).complete
    empty = spectrum(as_map(gaussian(0, 5)), "", seed=0)
    assert (empty.note, empty.products, empty.density) == ("it has no singular values", 0, ())


def test_the_same_seed_gives_the_same_record_and_another_another():
    matrix = gaussian(N, N)
    same = [spectrum(as_map(matrix), "a", seed=4) for _ in range(2)]
    assert same[0] == same[1]
    other = spectrum(as_map(matrix), "a", seed=5), spectrum(as_map(matrix), "b", seed=4)
    assert len({same[0].mean_square, other[0].mean_square, other[1].mean_square}) == 3
    single = spectrum(as_map(matrix, torch.float32), "a", seed=4)
    assert single.mean_square == pytest.approx(same[0].mean_square, rel=1e-5)


def test_a_transposed_map_has_the_same_record():
    matrix = gaussian(N, 2 * N)
    here, there = spectrum(as_map(matrix), "", seed=0), spectrum(as_map(matrix.T.contiguous()), "", seed=0)
    assert dataclasses.replace(there, rows=N, columns=2 * N).largest == pytest.approx(here.largest, rel=1e-12)
    assert there.mean_square == pytest.approx(here.mean_square, rel=1e-12)


@pytest.mark.cuda
def test_cuda_gives_what_the_cpu_gives():
    matrix = gaussian(N, N).float()
    there = matrix.cuda()
    linear = LinearMap(N, N, lambda v: there @ v, lambda u: there.T @ u, device="cuda")
    here, found = spectrum(as_map(matrix, torch.float32), "", seed=0), spectrum(linear, "", seed=0)
    assert found.largest == pytest.approx(here.largest, rel=1e-5)
    assert found.mean_square == pytest.approx(here.mean_square, rel=1e-5)


def test_moments_of_what_is_spanned_and_what_is_not():
    """diag(4, 1, 1, 3) with the first direction spanned, and a start that is (1, 1, 1) / √3 in the rest."""
    moments = Moments(4, [(4.0, 0.0)], [(5 / 3, 11 / 3 - 25 / 9)])
    assert moments.mean == pytest.approx(9 / 4)
    assert moments.spread == pytest.approx(np.std([4, 1, 1, 3]) / np.mean([4, 1, 1, 3]))
    assert Moments(4, [(4.0, 1.0)], moments.starts).mean_error == pytest.approx(
        3 / 4 * math.sqrt(np.var([1, 1, 3]) * 2 / 5)
    )


# Curvature


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    basis = orthogonal(len(values), seed)
    return basis * values @ basis.T


@given(
    values=st.lists(
        st.sampled_from([-30.0, -1.0, -0.999, 0.0, 1e-3, 0.5, 0.999, 1.0, 1.001, 2.0, 40.0]), min_size=1, max_size=12
    ),
    copies=st.integers(1, 6),
    products=st.integers(1, 30),
    seed=st.integers(0, 2**30),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_bounds_on_eigenvalues_hold(values, copies, products, seed):
    matrix = symmetric(torch.tensor(values * copies, dtype=DOUBLE), seed % 1000)
    linear = as_map(matrix)
    found = largest_eigenvalue(linear, seed=seed, products=products)
    rounding = 1e-13 * max(map(abs, values))
    assert found.largest - rounding <= max(values) <= found.largest + found.largest_error + rounding
    assert found.smallest - found.smallest_error - rounding <= min(values) <= found.smallest + rounding
    assert found.products == linear.products <= products
    assert found.value == max((found.largest, found.smallest), key=abs)
    assert found.error == (found.largest_error if found.value == found.largest else found.smallest_error)


def test_stable_step_of_gradient_descent():
    """On a quadratic function a step just below 2 / largest converges, one just above does not."""
    hessian = symmetric(torch.linspace(0.1, 7, N, dtype=DOUBLE))
    found = largest_eigenvalue(as_map(hessian), seed=0, accuracy=1e-4, products=200)
    assert found.largest == pytest.approx(7, rel=1e-4)
    for share, smaller in ((0.99, True), (1.01, False)):
        point = torch.ones(N, dtype=DOUBLE)
        for _ in range(1000):
            point = point - share * 2 / found.largest * (hessian @ point)
        assert (float(point.norm()) < 1) == smaller


def test_hessian_of_a_loss():
    """Of a small network, by forward over reverse, against the whole matrix."""
    x, y = gaussian(50, 4), gaussian(50, 1, 1)
    weights = torch.from_numpy(np.random.default_rng(2).standard_normal(4 * 6 + 6))

    def loss(w: Tensor) -> Tensor:
        return ((torch.tanh(x @ w[:24].view(4, 6)) @ w[24:].view(6, 1) - y) ** 2).mean()

    exact = np.linalg.eigvalsh(torch.func.hessian(loss)(weights).numpy())

    def product(v: Tensor) -> Tensor:
        return jvp(torch.func.grad(loss), (weights,), (v,))[1]

    found = largest_eigenvalue(LinearMap(30, 30, product, product, DOUBLE), seed=0)
    assert found.largest <= exact[-1] + 1e-12 and exact[-1] <= found.largest + found.largest_error
    assert found.smallest - found.smallest_error <= exact[0] <= found.smallest + 1e-12
    assert found.complete and found.products < 30


def test_curvature_with_little_memory():
    """With three vectors kept instead of all, eigenvalues come in copies, but those at the ends are the same."""
    linear = as_map(symmetric(torch.linspace(-1, 1, N, dtype=DOUBLE) ** 5))
    start = linear.start(0, "curvature")
    ends = []
    for kept in (3, 80):
        process = Tridiagonalisation(linear, start, 80, room=kept * N * 8)
        while not process.over:
            process.step()
        assert process.failure == "" and len(process.diagonal) == 80
        ends.append((process.values()[0], process.values()[-1]))
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)
    assert ends[0] == pytest.approx((1, -1), rel=1e-9)


def test_curvature_of_odd_maps():
    zero = largest_eigenvalue(as_map(torch.zeros(N, N)), seed=0)
    assert (zero.value, zero.error, zero.products, zero.complete) == (0, 0, 1, True)
    broken = largest_eigenvalue(LinearMap(5, 5, lambda v: v * math.nan, lambda v: v), seed=0)
    assert math.isnan(broken.value) and (broken.note, broken.products) == ("a product is not finite", 1)
    lopsided = largest_eigenvalue(as_map(gaussian(N, N).triu()), seed=0)
    assert math.isnan(lopsided.value) and lopsided.note.startswith("the products contradict")
    calls = iter(range(100))
    early = largest_eigenvalue(
        as_map(symmetric(torch.linspace(-1, 1, N).double())), seed=0, out_of_time=lambda: next(calls) >= 3
    )
    assert (early.products, early.complete) == (3, False)
    assert early.largest <= 1 <= early.largest + early.largest_error
    none = largest_eigenvalue(as_map(gaussian(N, N)), seed=0, out_of_time=lambda: True)
    assert math.isnan(none.largest) and not none.complete
    assert largest_eigenvalue(as_map(gaussian(0, 0)), seed=0).note == "it has no eigenvalues"
