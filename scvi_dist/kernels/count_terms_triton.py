"""What zeros and counts cost, in Triton: terms of the losses and their derivatives.

Losses are minus log-probabilities.
"""

import triton
import triton.language as tl

from scvi_dist.kernels.triton_math import (
    gamma_differences,
    half_logistic,
    log1p,
    log_gamma_plus_one,
    quotient,
)

EPS = tl.constexpr(1e-8)
"""Added to ``θ`` and ``μ`` inside logarithms, and the least count that is no zero; scvi-tools'."""
_TINY = tl.constexpr(2.0**-126)


@triton.jit
def scale_of(logit: tl.tensor, high: tl.tensor, IS_SOFTMAX: tl.constexpr) -> tuple[tl.tensor, ...]:
    """The scale before it is divided, and its derivative by the logit as if it were not."""
    if IS_SOFTMAX:
        scale = tl.exp(logit - high)
        inner = scale
    else:
        low, inner = half_logistic(logit)
        scale = tl.maximum(logit, 0.0) + low
    return scale, inner


@triton.jit
def zero_terms(
    mu: tl.tensor, theta: tl.tensor, dropout: tl.tensor, IS_SOFTMAX: tl.constexpr, LAW: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """What a zero costs, and derivatives by ``μ``, ``log θ`` and the logit of extra zeros.

    Under a Poisson law and a softmax the sum of the means does not depend on the logits, and is
    added elsewhere. A mean of 0 costs nothing.
    """
    nothing = mu * 0.0
    loss, by_mu, by_theta, by_dropout = nothing, nothing, nothing, nothing
    if LAW == "poisson":
        if not IS_SOFTMAX:
            loss, by_mu = mu, nothing + 1.0
    else:
        t = mu / (theta + EPS)
        growth = log1p(t)
        by_mu = quotient(theta, theta + EPS + mu)
        by_theta = theta * (growth - t * by_mu)
        loss = theta * growth
    if LAW == "zinb":
        p = -dropout
        v = p - loss
        low_p, sigmoid_p = half_logistic(p)
        low_v, sigmoid_v = half_logistic(v)
        # softplus(p) - softplus(v), without rounding by the size of p.
        linear = tl.where(p > 0.0, tl.where(v > 0.0, loss, p), 0.0)
        loss = linear + (low_p - low_v)
        by_mu, by_theta = by_mu * sigmoid_v, by_theta * sigmoid_v
        by_dropout = sigmoid_v - sigmoid_p
    return loss, by_mu, by_theta, by_dropout


@triton.jit
def count_terms(
    x: tl.tensor, mu: tl.tensor, theta: tl.tensor, IS_SOFTMAX: tl.constexpr, LAW: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """What a count costs, and derivatives by ``μ`` and ``log θ``; float64."""
    loss = log_gamma_plus_one(x)
    if LAW == "poisson":
        by_theta = x * 0.0
        least = tl.maximum(mu, _TINY)
        loss -= x * tl.log(least)
        by_mu = -x / least
        if not IS_SOFTMAX:
            loss += mu
            by_mu += 1.0
    else:
        inverse = 1.0 / (theta + EPS)
        t = mu * inverse
        growth = log1p(t)
        q = inverse / (1.0 + t)
        value, slope = gamma_differences(x, theta)
        loss += theta * growth - x * (tl.log((mu + EPS) * inverse) - growth) - value
        by_mu = theta * q * (1.0 - x / (mu + EPS))
        by_theta = theta * (growth - theta * mu * inverse * q + x * q - slope)
    return loss, by_mu, by_theta
