"""The log-gamma function of counts, for compiled loops; float64.

Source
------
Abramowitz & Stegun 1964, 6.1.15 (recurrence), 6.1.41 (series).
"""

import math

import numpy as np

from scvi_dist.kernels.compiled import compiled, part
from scvi_dist.kernels.math import log

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
