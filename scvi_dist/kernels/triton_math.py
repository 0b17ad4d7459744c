"""Elementary functions of Triton's kernels. For GPUs.

They are written in Triton's own operations, not in CUDA's library: then the interpreter, which has
no device, computes what a device does.

Source
------
Abramowitz & Stegun 1964, 6.1.15 (recurrence), 6.1.41 and 6.3.18 (series), as in
:mod:`~scvi_dist.kernels.gamma`.
"""

import math

import triton
import triton.language as tl

OPTIONS = {"enable_fp_fusion": True}
"""Of each launch. Triton's own default changes from version to version."""
MOST_FACTORS = tl.constexpr(8)
"""Whole counts up to here are products of factors."""
_SHIFT = tl.constexpr(16)
"""From here on five terms of the series are exact to 1e-15."""
_HALF_LOG_2PI = tl.constexpr(0.5 * math.log(2.0 * math.pi))


@triton.jit
def log1p(t: tl.tensor) -> tl.tensor:
    """``log(1 + t)`` of a ``t`` that is not negative."""
    u = 1.0 + t
    return tl.log(u) + (t - (u - 1.0)) / u


@triton.jit
def quotient(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """``a / b`` rounded to the nearest; Triton's own in float32 is two units off."""
    if a.dtype == tl.float32:
        ratio = tl.div_rn(a, b)
    else:
        ratio = a / b
    return ratio


@triton.jit
def half_logistic(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``softplus(-|x|)``, and the sigmoid of ``x``."""
    e = tl.exp(-tl.abs(x))
    return log1p(e), tl.where(x > 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def _series(z: tl.tensor) -> tl.tensor:
    """``log Γ(z) - (z - 1/2) log z + z - log(2π) / 2``."""
    r = 1.0 / z
    s = r * r
    return r * (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s / 1188))))


@triton.jit
def _digamma_series(z: tl.tensor) -> tl.tensor:
    """``ψ(z) - log z``."""
    r = 1.0 / z
    s = r * r
    return -0.5 * r - s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))


@triton.jit
def log_gamma_plus_one(x: tl.tensor) -> tl.tensor:
    """``log Γ(x + 1)`` of float64 that are not negative."""
    is_low = x < _SHIFT
    product = x * 0.0 + 1.0
    for k in range(1, _SHIFT + 1):
        product *= x + k
    product = tl.where(is_low, product, 1.0)
    z = x + 1.0 + tl.where(is_low, _SHIFT, 0)
    return (z - 0.5) * tl.log(z) - z + _HALF_LOG_2PI + _series(z) - tl.log(product)


@triton.jit
def _by_factors(x: tl.tensor, theta: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    product, slope = theta, theta * 0.0 + 1.0
    for k in range(1, MOST_FACTORS):
        factor = theta + k
        is_taken = x > k
        slope = tl.where(is_taken, slope * factor + product, slope)
        product = tl.where(is_taken, product * factor, product)
    return tl.log(product), slope / product


@triton.jit
def _by_series(x: tl.tensor, theta: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    is_low = theta < _SHIFT
    ratio, slope = theta * 0.0 + 1.0, theta * 0.0
    for k in range(_SHIFT):
        lower = theta + k
        inverse = 1.0 / (lower * (lower + x))
        ratio *= lower * lower * inverse
        slope += x * inverse
    ratio, slope = tl.where(is_low, ratio, 1.0), tl.where(is_low, slope, 0.0)
    low = theta + tl.where(is_low, _SHIFT, 0)
    top = low + x
    growth = log1p(x / low)
    value = tl.log(ratio) + (low - 0.5) * growth + x * tl.log(top) - x
    value += _series(top) - _series(low)
    return value, slope + growth + (_digamma_series(top) - _digamma_series(low))


@triton.jit
def gamma_differences(x: tl.tensor, theta: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``log Γ(x + θ) - log Γ(θ)`` and its derivative by ``θ``; float64, of ``x`` above 0."""
    is_product = (x <= MOST_FACTORS) & (x == tl.floor(x))
    value, slope = _by_factors(x, theta)
    # Most counts are small, but what is not a product costs ten times as much.
    if tl.min(is_product.to(tl.int32), 0) == 0:
        other_value, other_slope = _by_series(x, theta)
        value = tl.where(is_product, value, other_value)
        slope = tl.where(is_product, slope, other_slope)
    return value, slope
