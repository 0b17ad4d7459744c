"""Compiled loops over all genes of one cell: scales, and what a zero costs.

Each array is a row, a contiguous stretch of ``[g]``. Loops run from 0 to the length of their first
array and take slices, not bounds: then the compiler knows that no index is negative, and puts
them into vector lanes. Losses are minus log-probabilities.

A gene with a count has the scale 0 here, and so costs nothing and has no slope: what it costs is
added by :mod:`~scvi_dist.kernels.count_rows`.
"""

from typing import Any

import numpy as np

from scvi_dist.kernels.compiled import SUMS, part
from scvi_dist.kernels.float_bits import from_order_bits, order_bits
from scvi_dist.kernels.math import decay, exp, log1p_difference, log1p_from_zero

STRETCH = 2_048
"""Genes whose losses are added in the row's own precision, before they go to a float64."""


@part()
def largest(x: np.ndarray) -> Any:
    """The largest value of a row; NaN where there is one."""
    high = order_bits(x[0])
    for i in range(x.size):
        bits = order_bits(x[i])
        high = bits if bits > high else high
    return from_order_bits(high)


@part(SUMS)
def exp_row(logits: np.ndarray, high: Any, scale: np.ndarray) -> Any:
    """Fill ``scale`` with ``exp(logits - high)`` and give its sum."""
    total = logits.dtype.type(0.0)
    for i in range(scale.size):
        value = decay(logits[i] - high)
        scale[i] = value
        total += value
    return total


@part(SUMS)
def softplus_row(logits: np.ndarray, scale: np.ndarray) -> None:
    """Fill ``scale`` with the softplus of the logits, and these with its slope."""
    one, zero = logits.dtype.type(1.0), logits.dtype.type(0.0)
    for i in range(scale.size):
        x = logits[i]
        e = decay(-abs(x))
        scale[i] = (x if x > zero else zero) + log1p_from_zero(e)
        logits[i] = (one if x > zero else e) / (one + e)


@part(SUMS)
def dispersion_row(
    log_theta: np.ndarray, theta: np.ndarray, inverse: np.ndarray, padded: np.ndarray, eps: Any
) -> None:
    """Fill ``θ``, ``1 / (θ + ε)`` and ``θ + ε``."""
    one = theta.dtype.type(1.0)
    for i in range(theta.size):
        value = exp(log_theta[i])
        theta[i] = value
        inverse[i] = one / (value + eps)
        padded[i] = value + eps


@part(SUMS)
def nb_zeros(
    scale: np.ndarray,
    theta: np.ndarray,
    inverse: np.ndarray,
    padded: np.ndarray,
    factor: Any,
    weight: Any,
    slope: np.ndarray,
    theta_sum: np.ndarray,
) -> tuple[Any, Any]:
    """What zeros cost under a negative binomial law, and the sum of mean times slope.

    ``slope`` becomes the derivative by the mean; the derivative by ``θ`` is added to ``theta_sum``.
    """
    loss, total = scale.dtype.type(0.0), scale.dtype.type(0.0)
    for i in range(scale.size):
        mu = scale[i] * factor
        t = mu * inverse[i]
        growth = log1p_from_zero(t)
        d = theta[i] / (padded[i] + mu)
        loss += theta[i] * growth
        slope[i] = d
        total += mu * d
        theta_sum[i] += weight * (growth - t * d)
    return loss, total


@part(SUMS)
def nb_zeros_value(scale: np.ndarray, theta: np.ndarray, inverse: np.ndarray, factor: Any) -> Any:
    """What zeros cost under a negative binomial law."""
    loss = scale.dtype.type(0.0)
    for i in range(scale.size):
        loss += theta[i] * log1p_from_zero(scale[i] * factor * inverse[i])
    return loss


@part(SUMS)
def _growths(
    scale: np.ndarray,
    theta: np.ndarray,
    inverse: np.ndarray,
    padded: np.ndarray,
    factor: Any,
    growth: np.ndarray,
    slope: np.ndarray,
) -> None:
    """Fill ``growth`` with ``log(1 + μ / (θ + ε))``, ``slope`` with ``θ / (θ + ε + μ)``."""
    for i in range(scale.size):
        mu = scale[i] * factor
        growth[i] = log1p_from_zero(mu * inverse[i])
        slope[i] = theta[i] / (padded[i] + mu)


@part(SUMS)
def _exponentials(
    theta: np.ndarray, growth: np.ndarray, logits: np.ndarray, e_p: np.ndarray, e_v: np.ndarray
) -> None:
    """Fill these with ``exp(-abs(p))`` and ``exp(-abs(v))`` of :func:`zinb_zeros`."""
    for i in range(theta.size):
        p = -logits[i]
        v = p - theta[i] * growth[i]
        e_p[i] = decay(-abs(p))
        e_v[i] = decay(-abs(v))


@part(SUMS)
def zinb_zeros(
    scale: np.ndarray,
    theta: np.ndarray,
    inverse: np.ndarray,
    padded: np.ndarray,
    factor: Any,
    weight: Any,
    slope: np.ndarray,
    theta_sum: np.ndarray,
    logits: np.ndarray,
    room: np.ndarray,
) -> tuple[Any, Any]:
    """As :func:`nb_zeros` with extra zeros, whose logits become the derivative by them.

    With ``p`` minus the logit and ``v`` this plus the log-probability of a counted zero, the loss
    is ``softplus(p) - softplus(v)``, of which the linear parts are taken out.

    Three short loops: in a long one each vector waits for the results of the one before it, and
    the processor cannot look far enough ahead to compute others meanwhile. ``room`` is ``[3, k]``
    for what they hand on, ``k`` at least the genes.
    """
    one, zero = scale.dtype.type(1.0), scale.dtype.type(0.0)
    loss, total = zero, zero
    growths, e_ps, e_vs = room[0], room[1], room[2]
    _growths(scale, theta, inverse, padded, factor, growths, slope)
    _exponentials(theta, growths, logits, e_ps, e_vs)
    for i in range(scale.size):
        mu, growth = scale[i] * factor, growths[i]
        t = mu * inverse[i]
        log_zero = -theta[i] * growth
        p = -logits[i]
        v = log_zero + p
        e_p, e_v = e_ps[i], e_vs[i]
        sigmoid_p = (one if p > zero else e_p) / (one + e_p)
        sigmoid_v = (one if v > zero else e_v) / (one + e_v)
        # Not v - p, which would round by the size of p.
        linear = (log_zero if v > zero else -p) if p > zero else zero
        loss -= linear + log1p_difference(e_v, e_p)
        d = sigmoid_v * slope[i]
        slope[i] = d
        total += mu * d
        theta_sum[i] += weight * (sigmoid_v * growth - t * d)
        logits[i] = weight * (sigmoid_v - sigmoid_p)
    return loss, total


@part(SUMS)
def zinb_zeros_value(
    scale: np.ndarray, theta: np.ndarray, inverse: np.ndarray, factor: Any, logits: np.ndarray
) -> Any:
    """What zeros cost under a zero-inflated negative binomial law."""
    zero = scale.dtype.type(0.0)
    loss = zero
    for i in range(scale.size):
        log_zero = -theta[i] * log1p_from_zero(scale[i] * factor * inverse[i])
        p = -logits[i]
        v = log_zero + p
        e_p, e_v = decay(-abs(p)), decay(-abs(v))
        linear = (log_zero if v > zero else -p) if p > zero else zero
        loss -= linear + log1p_difference(e_v, e_p)
    return loss


@part(SUMS)
def sum_row(x: np.ndarray) -> Any:
    """The sum of a row."""
    total = x.dtype.type(0.0)
    for i in range(x.size):
        total += x[i]
    return total


@part(SUMS)
def softmax_slopes(
    scale: np.ndarray,
    slope: np.ndarray,
    factor: Any,
    shift: Any,
    logits: np.ndarray,
    bias_sum: np.ndarray,
) -> None:
    """Derivatives by the logits of a softmax: ``scale (factor slope - shift)``."""
    for i in range(scale.size):
        value = scale[i] * (factor * slope[i] - shift)
        logits[i] = value
        bias_sum[i] += value


@part(SUMS)
def softplus_slopes(
    slope: np.ndarray, factor: Any, logits: np.ndarray, bias_sum: np.ndarray
) -> None:
    """Derivatives by the logits of a softplus, in place of the slopes of :func:`softplus_row`."""
    for i in range(slope.size):
        value = factor * slope[i] * logits[i]
        logits[i] = value
        bias_sum[i] += value


@part(SUMS)
def add_row(x: np.ndarray, total: np.ndarray) -> None:
    """Add a row to a sum of rows."""
    for i in range(x.size):
        total[i] += x[i]


@part(SUMS)
def log_theta_slopes(theta: np.ndarray, slope: np.ndarray, bias_sum: np.ndarray) -> None:
    """Derivatives by ``log θ`` from those by ``θ``, in place."""
    for i in range(theta.size):
        value = slope[i] * theta[i]
        slope[i] = value
        bias_sum[i] += value
