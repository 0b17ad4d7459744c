"""Elementary and gamma functions of compiled loops are those of the C library and of SciPy."""

import math

import numpy as np
import pytest
from numba import njit
from scipy.special import digamma, gammaln

from scvi_dist.kernels import float64

WIDE = np.concatenate([[0.0], np.geomspace(1e-300, 1e300, 2001)])


@njit
def exp_of(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = float64.exp(x[i])
    return out


@njit
def log_of(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = float64.log(x[i])
    return out


@njit
def log1p_of(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = float64.log1p(x[i])
    return out


def test_elementary_functions_are_exact_to_two_units() -> None:
    cases = (
        (exp_of, np.exp, np.linspace(-708, 709, 20_001)),
        (log_of, np.log, WIDE[1:]),
        (log_of, np.log, np.linspace(0.5, 2, 2001)),
        (log1p_of, np.log1p, WIDE),
        (log1p_of, np.log1p, np.linspace(0, 3, 2001)),
    )
    for ours, exact, x in cases:
        np.testing.assert_allclose(ours(x), exact(x), rtol=5e-16, atol=0)


def test_what_is_no_number_is_no_number() -> None:
    nan = np.array([np.nan])
    for function in (exp_of, log_of, log1p_of):
        assert np.isnan(function(nan)).all()
    infinity = np.array([np.inf])
    assert log_of(infinity) == log1p_of(infinity) == np.inf
    # Beyond its range the exponential stays at the ends of it.
    np.testing.assert_array_equal(exp_of(np.array([-1e9, 1e9])), exp_of(np.array([-708.0, 709.0])))


@pytest.mark.parametrize("theta", [1e-10, 1e-6, 0.3, 1.0, 7.5, 40.0, 1e6, 1e12])
def test_gamma_functions_grow_as_they_should(theta: float) -> None:
    """By products where the count is small, by SciPy where nothing cancels."""
    for x in (0.0, 1.0, 2.0, 5.0, 30.0):
        value, slope = float64.gamma_growth(x, theta)
        factors = [theta + k for k in range(int(x))]
        expected = math.fsum(math.log(f) for f in factors)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-13)
        assert slope == pytest.approx(math.fsum(1 / f for f in factors), rel=1e-12, abs=1e-14)
    for x in (1e-3, 7.3, 2e6):
        if theta <= 40:
            value, slope = float64.gamma_growth(x, theta)
            assert value == pytest.approx(gammaln(x + theta) - gammaln(theta), rel=1e-10)
            assert slope == pytest.approx(digamma(x + theta) - digamma(theta), rel=1e-10)
