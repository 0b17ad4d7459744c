"""Bound noise on a CPU: which numbers it is, that they have their laws and are independent."""

import numpy as np
import pytest
import torch
from scipy import stats

from scvi_dist.data.hashing import splitmix64
from scvi_dist.kernels.noise_rows import sine_of_quarter
from scvi_dist.nn import NoiseStream

N, WIDTH = 4_000, 25
LEAST_P = 1e-4
"""Numbers are the same in each run: a p-value below tells that the law is another."""
OTHERS = {
    "column": lambda x, _: (x[:, :-1], x[:, 1:]),
    "column of the same hash": lambda x, _: (x[:, : WIDTH // 2], x[:, (WIDTH + 1) // 2 :]),
    "row": lambda x, _: (x[:-1], x[1:]),
    "last and first": lambda x, _: (x[:-1, -1], x[1:, 0]),
    "draw": lambda x, other: (x, other["draw"]),
    "step": lambda x, other: (x, other["step"]),
    "seed": lambda x, other: (x, other["seed"]),
    "step and seed": lambda x, other: (x, other["step and seed"]),
}
AT = {
    "this": (5, 7, 0),
    "draw": (5, 7, 1),
    "step": (5, 8, 0),
    "seed": (6, 7, 0),
    "step and seed": (7, 5, 0),
}


def drawn(kind: str, seed: int, step: int, draw: int, dtype: torch.dtype) -> np.ndarray:
    """Noise ``[n, k]`` as float64."""
    noise = NoiseStream()
    noise.at(seed, step, 0, N, N)
    for _ in range(draw + 1):
        if kind == "normal":
            found = noise.normal_like(torch.empty(N, WIDTH, dtype=dtype))
        else:
            found = noise.bernoulli_keep((N, WIDTH), 0.3, dtype=dtype)
    assert found.dtype == dtype
    return found.double().numpy()


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def normal(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    return {name: drawn("normal", *at, request.param) for name, at in AT.items()}


@pytest.fixture(scope="module")
def kept() -> dict[str, np.ndarray]:
    return {name: drawn("kept", *at, torch.float32) for name, at in AT.items()}


def hashes(seed: int, step: int, draw: int, n: int) -> np.ndarray:
    """What the first ``n`` places of a draw hash to."""
    with np.errstate(over="ignore"):
        key = splitmix64(splitmix64(np.array([seed], np.uint64)) + np.uint64(step))
        places = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return splitmix64(splitmix64(key + np.uint64(draw)) + places)


def test_normal_numbers_are_those_of_the_hashes_of_their_places() -> None:
    bits = hashes(5, 7, 1, N * WIDTH)
    u, v = ((half.astype(float) + 0.5) / 2**32 for half in (bits >> 32, bits & (2**32 - 1)))
    expected = np.sqrt(-2 * np.log(u)) * np.sin(np.pi * (v - 0.5))
    seen = drawn("normal", 5, 7, 1, torch.float64).ravel()
    np.testing.assert_allclose(seen, expected, rtol=1e-12, atol=1e-15)
    rounded = drawn("normal", 5, 7, 1, torch.float32).ravel()
    np.testing.assert_array_equal(rounded, seen.astype(np.float32))


def test_masks_are_those_of_the_hashes_of_their_places() -> None:
    bits = hashes(5, 7, 1, N * 13).reshape(N, 13)
    places = np.concatenate([bits >> 32, (bits & (2**32 - 1))[:, : WIDTH - 13]], axis=1)
    np.testing.assert_array_equal(drawn("kept", 5, 7, 1, torch.float64), places >= 0.3 * 2**32)


def test_normal_numbers_have_the_normal_law(normal: dict[str, np.ndarray]) -> None:
    for values in normal.values():
        x = values.ravel()
        assert stats.kstest(x, "norm").pvalue > LEAST_P
        # Standard errors of the moments of a normal law.
        errors = np.sqrt(np.array([1, 2, 6, 24]) / x.size)
        moments = x.mean(), x.var() - 1, stats.skew(x), stats.kurtosis(x)
        assert np.all(np.abs(moments) < 4 * errors)
        edges = stats.norm.ppf(np.linspace(0, 1, 101))
        assert stats.chisquare(np.histogram(x, edges)[0]).pvalue > LEAST_P


def test_tails_are_as_heavy_as_they_should_be(normal: dict[str, np.ndarray]) -> None:
    x = np.concatenate([values.ravel() for values in normal.values()])
    for limit in (2.0, 3.0, 4.0):
        for side in (x, -x):
            n_beyond = int((side > limit).sum())
            p = stats.norm.sf(limit)
            assert stats.binomtest(n_beyond, x.size, p).pvalue > LEAST_P


@pytest.mark.parametrize("other", OTHERS)
def test_normal_numbers_of_neighbours_are_independent(
    normal: dict[str, np.ndarray], other: str
) -> None:
    pair = [x.ravel() for x in OTHERS[other](normal["this"], normal)]
    # Of their sizes too, which a law without correlation may share.
    for x, y in (pair, np.abs(pair), np.square(pair)):
        assert stats.pearsonr(x, y).pvalue > LEAST_P
    quarters = [np.digitize(x, stats.norm.ppf([0.25, 0.5, 0.75])) for x in pair]
    table = np.histogram2d(*quarters, bins=4)[0]
    assert stats.chi2_contingency(table).pvalue > LEAST_P


def test_masks_have_their_law(kept: dict[str, np.ndarray]) -> None:
    for mask in kept.values():
        assert set(np.unique(mask)) == {0.0, 1.0}
        assert stats.binomtest(int(mask.sum()), mask.size, 0.7).pvalue > LEAST_P
        for axis in (0, 1):
            # Neither rows nor columns differ by more than chance.
            sums, n = mask.sum(axis), mask.shape[axis]
            spread = ((sums - 0.7 * n) ** 2 / (n * 0.21)).sum()
            assert LEAST_P < stats.chi2.sf(spread, len(sums)) < 1 - LEAST_P


@pytest.mark.parametrize("other", OTHERS)
def test_masks_of_neighbours_are_independent(kept: dict[str, np.ndarray], other: str) -> None:
    pair = [x.ravel() for x in OTHERS[other](kept["this"], kept)]
    assert stats.chi2_contingency(np.histogram2d(*pair, bins=2)[0]).pvalue > LEAST_P


@pytest.mark.parametrize("shape", [(N, 1), (N, 2), (N, 7), (3, N, 2)])
def test_nothing_is_dropped_at_zero_and_nothing_kept_at_one(shape: tuple[int, ...]) -> None:
    noise = NoiseStream()
    noise.at(1, 2, 0, N, N)
    assert torch.equal(noise.bernoulli_keep(shape, 0.0), torch.ones(shape))
    assert torch.equal(noise.bernoulli_keep(shape, 1.0), torch.zeros(shape))


def test_samples_differ() -> None:
    noise = NoiseStream()
    noise.at(1, 2, 0, N, N)
    samples = noise.normal_like(torch.empty(3, N, WIDTH)).flatten(1)
    assert float((torch.corrcoef(samples) - torch.eye(3)).abs().max()) < 5 / (N * WIDTH) ** 0.5


def test_seeds_and_steps_of_any_size_have_noise_of_their_own() -> None:
    numbers = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, 2**65, 10**40, 10**40 + 1]
    noise, found = NoiseStream(), []
    for seed in numbers:
        for step in numbers:
            noise.at(seed, step, 0, 3, 3)
            found.append(tuple(noise.normal_like(torch.empty(3, 2)).flatten().tolist()))
    assert len(set(found)) == len(numbers) ** 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_types_are_rounded(dtype: torch.dtype) -> None:
    noise, like = NoiseStream(), torch.empty(5, 3)
    found = []
    for kind in (dtype, torch.float32):
        noise.at(1, 2, 0, 5, 5)
        found.append(
            (noise.normal_like(like.to(kind)), noise.bernoulli_keep((5, 3), 0.5, None, kind))
        )
    for narrow, wide in zip(*found, strict=True):
        assert torch.equal(narrow, wide.to(dtype))


def test_sines_are_exact() -> None:
    for x in np.linspace(-1, 1, 2_001):
        assert sine_of_quarter(x) == pytest.approx(np.sin(np.pi / 2 * x), rel=1e-15, abs=4e-16)
