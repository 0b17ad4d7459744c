"""Elementary functions of float64 for compiled loops, which the compiler puts into vector lanes.

A call of the C library stops the vectoriser and costs several times as much. Errors are of one or
two units of the last place; NaN gives NaN. Arithmetic may be fused, but not put into another order.

Source
------
Sun Microsystems 1993, fdlibm (the logarithm); Taylor's series of degree 13 (the exponential).
"""

import numpy as np
from numba import njit

FUSED = {"contract"}
"""A multiplication and an addition may be one operation; sums keep their order."""
LANE = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": FUSED,
    "forceinline": True,
}
"""For functions of scalars: a loop with a call, or with a division that may raise, has no lanes."""
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_MAGIC = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to a whole number.
_ONE_BITS = 0x3FF0000000000000
_ROOT_HALF_BITS = 0x3FE6A09E667F3BCD
_LOWEST, _HIGHEST = -708.0, 709.0


@njit(**LANE)
def exp(x: float) -> float:
    """``e^x``; below -708 and above 709 that of -708 and 709, and so always a normal number."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    shifted = x * _LOG2_E + _MAGIC
    k = shifted - _MAGIC
    r = x - k * _LN2_HIGH
    r = r - k * _LN2_LOW
    p = 1.6059043836821613e-10
    p = p * r + 2.08767569878681e-09
    p = p * r + 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    bits = (np.float64(shifted).view(np.int64) << np.int64(52)) + np.int64(_ONE_BITS)
    return p * np.int64(bits).view(np.float64)


@njit(**LANE)
def log(x: float) -> float:
    """Natural logarithm of a normal number above 0; infinity of infinity."""
    bits = np.float64(x).view(np.int64)
    exponent = (bits - np.int64(_ROOT_HALF_BITS)) >> np.int64(52)
    f = np.int64(bits - (exponent << np.int64(52))).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = 1.479819860511658591e-01
    p = p * z + 1.531383769920937332e-01
    p = p * z + 1.818357216161805012e-01
    p = p * z + 2.222219843214978396e-01
    p = p * z + 2.857142874366239149e-01
    p = p * z + 3.999999999940941908e-01
    p = p * z + 6.666666666666735130e-01
    half = 0.5 * f * f
    e = np.float64(exponent)
    y = e * _LN2_HIGH - ((half - (s * (half + p * z) + e * _LN2_LOW)) - f)
    # Infinity and NaN have exponents that mean nothing.
    return y if x < np.inf else x


@njit(**LANE)
def log1p(x: float) -> float:
    """``log(1 + x)`` for ``x`` of at least 0, also for tiny ones."""
    u = 1.0 + x
    lost = (x - (u - 1.0)) / u
    y = log(u) + lost
    return y if x < np.inf else x


@njit(**LANE)
def stirling(inverse: float) -> float:
    """What Stirling's formula of log Γ(w) leaves out, for w = 1 / inverse of at least 8."""
    s = inverse * inverse
    p = 1 / 1188.0 + s * (-691 / 360360.0)
    p = -1 / 1680.0 + s * p
    p = 1 / 1260.0 + s * p
    p = -1 / 360.0 + s * p
    return inverse * (1 / 12.0 + s * p)


@njit(**LANE)
def stirling_slope(inverse: float) -> float:
    """``log w`` minus digamma of w = 1 / inverse, for w of at least 8."""
    s = inverse * inverse
    p = 1 / 132.0 + s * (-691 / 32760.0)
    p = -1 / 240.0 + s * p
    p = 1 / 252.0 + s * p
    p = -1 / 120.0 + s * p
    return inverse * 0.5 + s * (1 / 12.0 + s * p)


@njit(**LANE)
def gamma_growth(x: float, theta: float) -> tuple[float, float]:
    """``log Γ(x + θ) - log Γ(θ)``, and its derivative by ``θ``; ``x`` of at least 0, ``θ`` above 0.

    Gamma functions are those of arguments moved up by 8, over a product of 8 factors; differences
    are taken before they can cancel. Without a branch, unlike
    :func:`~scvi_dist.kernels.gamma.gamma_differences`: for loops over counts of all sizes.
    """
    y = x + theta
    low_a = theta * (theta + 1) * (theta + 2) * (theta + 3)
    low_b = (theta + 4) * (theta + 5) * (theta + 6) * (theta + 7)
    high_a = y * (y + 1) * (y + 2) * (y + 3)
    high_b = (y + 4) * (y + 5) * (y + 6) * (y + 7)
    inv_low, inv_high = 1 / (theta + 8), 1 / (y + 8)
    log_grown = log1p(x * inv_low)
    value = x * log(y + 8) + (theta + 7.5) * log_grown - x
    value += stirling(inv_high) - stirling(inv_low)
    value -= log((high_a / low_a) * (high_b / low_b))
    slope = log_grown - stirling_slope(inv_high) + stirling_slope(inv_low)
    slope += reciprocals(theta, low_a, low_b) - reciprocals(y, high_a, high_b)
    return value, slope


@njit(**LANE)
def reciprocals(z: float, product_a: float, product_b: float) -> float:
    """``1 / z + … + 1 / (z + 7)``, with the products of the first and the last four."""
    # z (z + 3) = s and (z + 1) (z + 2) = s + 2: their reciprocals add to (2z + 3) (1/s + 1/(s+2)).
    s = z * (z + 3)
    u = (z + 4) * (z + 7)
    first = (2 * z + 3) * (2 * s + 2) / product_a
    return first + (2 * z + 11) * (2 * u + 2) / product_b
