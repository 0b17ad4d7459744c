"""Differences of the log-gamma function and its derivative without a branch; float64.

For loops over counts of all sizes. ``log Γ(x + θ) - log Γ(θ)`` cancels where ``θ`` is large and is
singular where it is small.

Source
------
Abramowitz & Stegun 1964, 6.1.15 (recurrence), 6.1.41 and 6.3.18 (series).
"""

from scvi_dist.kernels.compiled import compiled
from scvi_dist.kernels.math import log, log1p


@compiled(inlined=True)
def stirling(inverse: float) -> float:
    """What Stirling's formula of log Γ(w) leaves out, for w = 1 / inverse of at least 8."""
    s = inverse * inverse
    p = 1 / 1188.0 + s * (-691 / 360360.0)
    p = -1 / 1680.0 + s * p
    p = 1 / 1260.0 + s * p
    p = -1 / 360.0 + s * p
    return inverse * (1 / 12.0 + s * p)


@compiled(inlined=True)
def stirling_slope(inverse: float) -> float:
    """``log w`` minus digamma of w = 1 / inverse, for w of at least 8."""
    s = inverse * inverse
    p = 1 / 132.0 + s * (-691 / 32760.0)
    p = -1 / 240.0 + s * p
    p = 1 / 252.0 + s * p
    p = -1 / 120.0 + s * p
    return inverse * 0.5 + s * (1 / 12.0 + s * p)


@compiled(inlined=True)
def gamma_growth(x: float, theta: float) -> tuple[float, float]:
    """``log Γ(x + θ) - log Γ(θ)``, and its derivative by ``θ``; ``x`` of at least 0, ``θ`` above 0.

    Gamma functions are those of arguments moved up by 8, over a product of 8 factors; differences
    are taken before they can cancel.
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


@compiled(inlined=True)
def reciprocals(z: float, product_a: float, product_b: float) -> float:
    """``1 / z + … + 1 / (z + 7)``, with the products of the first and the last four."""
    # z (z + 3) = s and (z + 1) (z + 2) = s + 2: their reciprocals add to (2z + 3) (1/s + 1/(s+2)).
    s = z * (z + 3)
    u = (z + 4) * (z + 7)
    first = (2 * z + 3) * (2 * s + 2) / product_a
    return first + (2 * z + 11) * (2 * u + 2) / product_b
