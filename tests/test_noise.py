"""The noise against SplitMix64 in Python integers, scipy's normal distribution, and independence."""

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from idfx.core.errors import UsageError
from idfx.core.noise import _quantiles, bits, hash_, key, normal, resolves_loosening, uniform

N = 2**21


def python_bits(seed, name, index):
    """SplitMix64 as published, in Python integers, keyed by blake2b."""
    z = int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "little")
    z = (z + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_hash_is_splitmix64():
    """The sequence for seed 1234567 that implementations of SplitMix64 are compared by."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [value % 2**64 for value in hash_(1234567, torch.arange(5)).tolist()] == published


@given(seed=st.integers(), name=st.text(), index=st.integers(0, 2**50))
def test_bits_and_what_is_made_of_them(seed, name, index):
    at = torch.tensor(index)
    z = python_bits(seed, name, index)
    assert bits(seed, name, at).item() % 2**64 == z
    assert uniform(seed, name, at).item() == (z // 2**12 + 0.5) / 2**52
    tail = (2 * (z // 2**11 % 2**52) + 1) / 2**54
    size = -NormalDist().inv_cdf(tail)
    assert normal(seed, name, at).item() == pytest.approx(-size if z >= 2**63 else size, abs=1.1e-6)
    assert at.item() == index


def test_every_bit_is_balanced_and_no_value_comes_twice():
    z = bits(7, "w", torch.arange(N)).numpy().view(np.uint64)
    assert len(np.unique(z)) == N
    ones = np.array([((z >> np.uint64(place)) & np.uint64(1)).mean() for place in range(64)])
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(N)


def test_quantile_table_is_that_of_scipy():
    """One value at least: a table that another libm rounds differently would give other weights."""
    start, rise = (part.numpy() for part in _quantiles(torch.device("cpu")))
    edges = [2.0 ** (octave - 54) * (1 + part / 256) for octave in range(53) for part in range(256)]
    exact = -special.ndtri(np.array([*edges, 0.5]))
    assert np.array_equal(start, np.round(exact[:-1] * 2**24) / 2**24)
    assert np.array_equal(start + rise, np.round(exact[1:] * 2**24) / 2**24)
    assert start[0] == pytest.approx(8.29, abs=0.01), "the documented end of the tail"


def test_interpolation_is_within_what_is_documented():
    start, rise = (part.numpy() for part in _quantiles(torch.device("cpu")))
    place = np.arange(len(start))
    for within in np.linspace(0, 1, 33):
        tail = np.ldexp(1 + (place % 256 + within) / 256, place // 256 - 54)
        assert np.abs(start + within * rise + special.ndtri(tail)).max() < 1e-6


@pytest.mark.parametrize(("seed", "name"), [(0, "w"), (1, "w"), (0, "layers.0.fc.weight")])
def test_normal_is_normal(seed, name):
    x = normal(seed, name, torch.arange(N)).numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4.5 * math.sqrt(variance / N), power
    for far in (3, 4, 4.5):
        expected = N * 2 * stats.norm.sf(far)
        assert abs((np.abs(x) > far).sum() - expected) < 4.5 * math.sqrt(expected), far


def test_uniform_is_uniform_and_open():
    x = uniform(0, "w", torch.arange(N)).numpy()
    assert stats.kstest(x, "uniform").pvalue > 1e-3
    assert 0 < x.min() < x.max() < 1


def test_streams_and_neighbours_are_independent():
    """Correlation of values and of squares; of n pairs its standard deviation is 1/sqrt(n)."""
    index = torch.arange(N)
    x = normal(0, "a", index).numpy()
    others = {
        "name": normal(0, "b", index).numpy(),
        "seed": normal(1, "a", index).numpy(),
        "next": normal(0, "a", index + 1).numpy(),
        "row": normal(0, "a", index + 4096).numpy(),
        "power of two": normal(0, "a", index + 2**32).numpy(),
    }
    for what, y in others.items():
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / math.sqrt(N), what
        assert abs(np.corrcoef(x**2, y**2)[0, 1]) < 5 / math.sqrt(N), what
    u = uniform(0, "a", index).numpy()
    counts = np.histogram2d(u[:-1:2], u[1::2], bins=32, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_key_separates_seed_and_name():
    names = [(seed, name) for seed in (0, 1, 10, -1) for name in ("", "0", "0w", "w", "\0w", "1\0w")]
    assert len({key(seed, name) for seed, name in names}) == len(names)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10**12), max_size=40))
def test_a_value_depends_on_its_index_alone(index):
    together = normal(3, "w", torch.tensor(index, dtype=torch.int64))
    apart = [normal(3, "w", torch.tensor(at)).item() for at in index]
    assert together.tolist() == apart


def test_seed_that_is_none():
    with pytest.raises(UsageError) as error:
        key(0.5, "w")
    assert str(error.value) == "seed: 0.5; expected an integer. Give one such as 0."


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tau", "eps_tau"), [(1.0, 1e-6), (1.0, 1e-2), (2**0.5, 1e-3), (1e-3, 1e-6)])
def test_resolves_loosening(dtype, tau, eps_tau):
    """If it says yes, a thousand draws round to many values; at a tenth of what it accepts, to few."""
    draws = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = (tau + eps_tau * draws).to(dtype).unique().numel()
    if resolves_loosening(dtype, tau, eps_tau):
        assert values >= 5
    elif not resolves_loosening(dtype, tau, 10 * eps_tau):
        assert values <= 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("draw", [bits, uniform, normal])
def test_cuda_has_the_same_bits(draw):
    index = torch.arange(0, 2**40, 2**20 - 1)
    assert torch.equal(draw(5, "w", index), draw(5, "w", index.cuda()).cpu())
