"""The functions that compiled loops are made of, beside float64 ones of the C library and SciPy."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from scipy import special

from scvi_dist.kernels import float_bits, gamma
from scvi_dist.kernels import math as kernel_math
from scvi_dist.kernels.gamma_lanes import gamma_growth

RNG = np.random.default_rng(0)


def spread(low: float, high: float) -> np.ndarray:
    """Values whose logarithms are spread evenly."""
    return np.exp(RNG.uniform(math.log(low), math.log(high), 20_000))


POSITIVE = np.concatenate([spread(1e-37, 1e37), 1 + RNG.uniform(-0.6, 1.0, 20_000)])
SIGNED = np.concatenate([RNG.uniform(-87, 87, 40_000), RNG.normal(0, 1e-3, 1_000)])
CASES = {
    # name: function of float64, arguments, units of the last place
    "exp": (np.exp, SIGNED, 2),
    "log": (np.log, POSITIVE, 2),
    "decay": (np.exp, -np.abs(SIGNED), 2),
    "log1p": (np.log1p, np.concatenate([spread(1e-30, 3e38), RNG.uniform(-0.99, 1, 20_000)]), 2),
    "log1p_from_zero": (
        np.log1p,
        np.concatenate([spread(1e-30, 1e38), RNG.uniform(0, 2, 20_000)]),
        3,
    ),
}


@cache
def mapped(name: str) -> Callable[[np.ndarray], np.ndarray]:
    function = getattr(kernel_math, name)

    @njit
    def run(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        for i in range(x.size):
            y[i] = function(x[i])
        return y

    return run


@pytest.fixture(scope="module", params=list(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_are_exact_to_the_last_places(name: str, dtype: type) -> None:
    truth, x, units = CASES[name]
    x = x.astype(dtype)
    seen = mapped(name)(x)
    assert seen.dtype == dtype
    expected = truth(x.astype(np.longdouble) if dtype == np.float64 else x.astype(np.float64))
    error = np.abs(seen - expected) / np.spacing(np.abs(expected).astype(dtype))
    assert error.max() <= units


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_at_the_edges(name: str, dtype: type) -> None:
    edges = {
        "exp": {-math.inf: 0.0, -1e4: 0.0, 0.0: 1.0, 1e4: math.inf, math.inf: math.inf},
        "log": {0.0: -math.inf, 1.0: 0.0, 1e-40: math.log(1e-40), math.inf: math.inf},
        "decay": {-math.inf: 0.0, -1e4: 0.0, -1e-40: 1.0, 0.0: 1.0},
        "log1p": {-1.0: -math.inf, 0.0: 0.0, 1e-40: 1e-40, math.inf: math.inf},
        "log1p_from_zero": {0.0: 0.0, 1e-40: 1e-40, math.inf: math.inf},
    }[name]
    x = np.array([*edges, math.nan], dtype=dtype)
    seen = mapped(name)(x)
    np.testing.assert_allclose(seen[:-1], list(edges.values()), rtol=1e-5, atol=1e-80)
    assert np.isnan(seen[-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_differences_of_logarithms(dtype: type) -> None:
    @njit
    def run(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        z = np.empty_like(x)
        for i in range(x.size):
            z[i] = kernel_math.log1p_difference(x[i], y[i])
        return z

    small = np.concatenate([[0.0, 1.0, 0.0, 1.0], spread(1e-30, 1.0)])
    x = np.concatenate([small, RNG.uniform(0, 1, 40_000)]).astype(dtype)
    y = np.concatenate([[0.0, 0.0, 1.0, 1.0], RNG.permutation(x[4:])]).astype(dtype)
    one = np.longdouble(1)
    expected = np.log1p((x - one * y) / (one + y))
    error = np.abs(run(x, y) - expected) / np.spacing(np.abs(expected).astype(dtype))
    assert error.max() <= 4
    bad = np.array([math.nan, 0.5], dtype)
    assert np.isnan(run(bad, bad[::-1].copy())).all()


def test_three_logarithms_with_one_division() -> None:
    x, y, z = spread(1e-30, 1e30), spread(1e-60, 1.0), spread(1e-300, 1e300)
    for a, b, c in zip(x[:2_000], y, z, strict=False):
        seen = kernel_math.three_logs(a, 1 / (1 + a), b, c)
        assert seen == pytest.approx((math.log1p(a), math.log(b), math.log(c)), rel=1e-15)
    assert math.isnan(kernel_math.three_logs(math.nan, math.nan, 1.0, 1.0)[0])


def test_logarithms_of_negative_numbers_are_nan() -> None:
    for name in ("log", "log1p"):
        for dtype in (np.float32, np.float64):
            assert np.isnan(mapped(name)(np.array([-2.0, -math.inf], dtype=dtype))).all()


def test_compiled_and_plain_functions_agree() -> None:
    for name, (_, x, _) in CASES.items():
        plain = [getattr(kernel_math, name)(float(value)) for value in x[:50]]
        np.testing.assert_allclose(mapped(name)(x[:50]), plain, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_have_the_order_of_the_numbers(dtype: type) -> None:
    @njit
    def largest(x: np.ndarray) -> float:
        high = float_bits.order_bits(x[0])
        for value in x:
            high = max(high, float_bits.order_bits(value))
        return float_bits.from_order_bits(high)

    for values in ([-3.0, -2.0, -1e-30], [-1.0, 0.0], [2.0, 1e30, 5.0], [-math.inf, -1e30]):
        x = np.array(values, dtype=dtype)
        assert largest(x) == x.max()
    assert np.isnan(largest(np.array([1.0, math.nan, math.inf], dtype=dtype)))


def exact_differences(x: float, theta: float) -> tuple[float, float]:
    """By the recurrence, with exact summation; ``x`` is whole."""
    steps = [theta + k for k in range(int(x))]
    return math.fsum(math.log(step) for step in steps), math.fsum(1 / step for step in steps)


@given(st.integers(0, 3_000), st.floats(-6, 6).map(lambda e: 10**e))
def test_gamma_differences_of_counts(x: int, theta: float) -> None:
    seen = gamma_growth(float(x), theta)
    expected = exact_differences(x, theta)
    scale = max(1.0, max((abs(math.log(theta + k)) for k in (0, x)), default=0.0)) * max(x, 1)
    assert abs(seen[0] - expected[0]) <= 1e-13 * scale
    assert seen[1] == pytest.approx(expected[1], rel=1e-11)


@given(st.floats(1e-6, 2e6), st.floats(-6, 6).map(lambda e: 10**e))
def test_gamma_differences_of_fractional_counts(x: float, theta: float) -> None:
    value, slope = gamma_growth(x, theta)
    top, bottom = special.gammaln(x + theta), special.gammaln(theta)
    assert value == pytest.approx(top - bottom, rel=1e-12, abs=1e-14 * (1 + abs(top) + abs(bottom)))
    top, bottom = special.digamma(x + theta), special.digamma(theta)
    assert slope == pytest.approx(top - bottom, rel=1e-9, abs=1e-14 * (1 + abs(top) + abs(bottom)))


@pytest.mark.parametrize("theta", [1e-30, 1e25, 1e37])
def test_gamma_differences_survive_any_dispersion(theta: float) -> None:
    for x in (1.0, 3.0, 9.0, 2e6):
        value, slope = gamma_growth(x, theta)
        if theta > 1e20:
            assert value == pytest.approx(x * math.log(theta), rel=1e-12)
            assert slope == pytest.approx(x / theta, rel=1e-9)
        else:
            assert value == pytest.approx(math.log(theta) + special.gammaln(x), rel=1e-12)
            assert slope == pytest.approx(1 / theta, rel=1e-12)


@given(st.one_of(st.integers(0, 2_000_000).map(float), st.floats(0, 2e6)))
def test_log_factorials(x: float) -> None:
    assert gamma.log_gamma_plus_one(x) == pytest.approx(
        special.gammaln(x + 1), rel=1e-13, abs=1e-13
    )
