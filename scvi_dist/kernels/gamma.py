"""Differences of the log-gamma function and its derivative, for compiled loops; float64.

``log Γ(x + θ) - log Γ(θ)`` cancels where ``θ`` is large and is singular where it is small. Whole
``x`` up to 8, nearly all counts there are, are done as products; others by Stirling's series
with the differences taken inside of it.

Source
------
Abramowitz & Stegun 1964, 6.1.15 (recurrence), 6.1.41 and 6.3.18 (series).
"""

import math

import numpy as np

from scvi_dist.kernels.compiled import compiled, part
from scvi_dist.kernels.math import log

MOST_FACTORS = 8.0
_SHIFT = 8
_SERIES_FROM = 16.0
"""From here on five terms of the series are exact to 1e-15."""
LOG_FACTORIALS = np.cumsum(np.log(np.maximum(np.arange(256.0), 1.0)))
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@part()
def _series(z: float) -> float:
    """``log Γ(z) - (z - 1/2) log z + z - log(2π) / 2``."""
    r = 1.0 / z
    s = r * r
    return r * (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s / 1188))))


@part()
def _digamma_series(z: float) -> float:
    """``ψ(z) - log z``."""
    r = 1.0 / z
    s = r * r
    return -0.5 * r - s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))


@part()
def _by_factors(x: float, theta: float) -> tuple[float, float]:
    product, slope = theta, 1.0
    for k in range(1, int(x)):
        factor = theta + k
        slope = slope * factor + product
        product = product * factor
    return log(product), slope / product


@part()
def _by_series(x: float, theta: float) -> tuple[float, float]:
    value, slope = 0.0, 0.0
    if theta < _SERIES_FROM:
        # Both arguments are moved up: one quotient for each step.
        ratio, steps = 1.0, 2 * _SHIFT
        for k in range(steps):
            upper, lower = x + theta + k, theta + k
            ratio *= lower / upper
            slope += x / (lower * upper)
        value = log(ratio)
        theta = theta + steps
    top = theta + x
    growth = math.log1p(x / theta)
    value += (theta - 0.5) * growth + x * log(top) - x + (_series(top) - _series(theta))
    slope += growth + (_digamma_series(top) - _digamma_series(theta))
    return value, slope


@compiled()
def gamma_differences(x: float, theta: float) -> tuple[float, float]:
    """``log Γ(x + θ) - log Γ(θ)`` and ``ψ(x + θ) - ψ(θ)``, its derivative by ``θ``.

    Parameters
    ----------
    x
        At least 0; need not be whole.
    theta
        Positive.
    """
    if x == 0.0:
        return 0.0, 0.0
    if x <= MOST_FACTORS and x == math.floor(x):
        return _by_factors(x, theta)
    return _by_series(x, theta)


@compiled()
def log_gamma_plus_one(x: float) -> float:
    """``log Γ(x + 1)``, for whole ``x`` the logarithm of its factorial; ``x`` at least 0."""
    if x < 256.0:
        n = int(x)
        if n == x:
            return LOG_FACTORIALS[n]
    z, product = x + 1.0, 1.0
    while z < _SERIES_FROM:
        product *= z
        z += 1.0
    return (z - 0.5) * log(z) - z + _HALF_LOG_2PI + _series(z) - log(product)
