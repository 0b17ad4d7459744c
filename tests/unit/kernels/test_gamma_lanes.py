"""Gamma functions without a branch grow as products do, and as SciPy's."""

import math

import pytest
from scipy.special import digamma, gammaln

from scvi_dist.kernels.gamma_lanes import gamma_growth


@pytest.mark.parametrize("theta", [1e-10, 1e-6, 0.3, 1.0, 7.5, 40.0, 1e6, 1e12])
def test_gamma_functions_grow_as_they_should(theta: float) -> None:
    """By products where the count is small, by SciPy where nothing cancels."""
    for x in (0.0, 1.0, 2.0, 5.0, 30.0):
        value, slope = gamma_growth(x, theta)
        factors = [theta + k for k in range(int(x))]
        expected = math.fsum(math.log(f) for f in factors)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-13)
        assert slope == pytest.approx(math.fsum(1 / f for f in factors), rel=1e-12, abs=1e-14)
    for x in (1e-3, 7.3, 2e6):
        if theta <= 40:
            value, slope = gamma_growth(x, theta)
            assert value == pytest.approx(gammaln(x + theta) - gammaln(theta), rel=1e-10)
            assert slope == pytest.approx(digamma(x + theta) - digamma(theta), rel=1e-10)
