"""Compiled samplers of count laws whose every number is a hash of cell, draw and gene.

The draws of an element follow from the cell's key, the number of the draw and the feature alone:
not from the minibatch, the other cells, the engine or the device. Small means, which are most of
an atlas, are drawn by inversion of one uniform number, and mostly without any logarithm.

Axis suffixes: ``n`` cells, ``f`` features, ``s`` samples. Compiled loops release the GIL.
"""

import math

import numpy as np

from scvi_dist.kernels.code_cache import cached_njit
from scvi_dist.kernels.hashing import GAMMA, splitmix64

MAX_POISSON_RATE = 1e8
"""Rates above are cut, as where laws are sampled with torch."""
BY_INVERSION = 16.0
"""Means below are drawn by inversion, whose cost is the mean; those above as Poisson of Gamma."""

_S11 = np.uint64(11)
_UNIT = 1.0 / 9007199254740992.0
_SMALL_RATE = 10.0
_NEGLIGIBLE = 1e-18
_FIRST_PLACE = 1
"""Place 0 of a stream decides whether a zero is extra, or which part of a mixture it is."""


@cached_njit(nogil=True, inline="always")
def _unit(bits: np.uint64) -> float:
    """A number in [0, 1) with 53 bits."""
    return float(bits >> _S11) * _UNIT


@cached_njit(nogil=True)
def _uniform(element: np.uint64, place: int) -> float:
    """The number at a place of an element's stream, never 0."""
    return _unit(splitmix64(element + np.uint64(place) * GAMMA)) + 0.5 * _UNIT


@cached_njit(nogil=True)
def _normal(element: np.uint64, place: int) -> float:
    """Standard normal, from the numbers at a place and the next (Box and Muller 1958)."""
    radius = math.sqrt(-2.0 * math.log(_uniform(element, place)))
    return radius * math.cos(2.0 * math.pi * _uniform(element, place + 1))


@cached_njit(nogil=True)
def _gamma(shape: float, element: np.uint64, place: int) -> tuple[float, int]:
    """A gamma variable of scale 1, and the place behind the numbers it used.

    Source: Marsaglia and Tsang 2000, "A simple method for generating gamma variables".
    """
    boost = 1.0
    if shape < 1.0:
        boost = math.exp(math.log(_uniform(element, place)) / shape)
        place += 1
        shape += 1.0
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = _normal(element, place)
        u = _uniform(element, place + 2)
        place += 3
        v = 1.0 + c * x
        if v > 0.0:
            v = v * v * v
            if math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
                return boost * d * v, place


@cached_njit(nogil=True)
def _poisson(rate: float, element: np.uint64, place: int) -> float:
    """A Poisson variable.

    Source: Hörmann 1993, "The transformed rejection method for generating Poisson random
    variables", algorithm PTRS; sequential inversion for small rates.
    """
    if rate < _SMALL_RATE:
        return _poisson_inverse(_uniform(element, place), rate)
    log_rate = math.log(rate)
    b = 0.931 + 2.53 * math.sqrt(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_r = 0.9277 - 3.6224 / (b - 2.0)
    while True:
        u = _uniform(element, place) - 0.5
        v = _uniform(element, place + 1)
        place += 2
        us = 0.5 - abs(u)
        k = math.floor((2.0 * a / us + b) * u + rate + 0.43)
        if us >= 0.07 and v <= v_r:
            return k
        if k < 0.0 or (us < 0.013 and v > us):
            continue
        accept = math.log(v) + math.log(inverse_alpha) - math.log(a / (us * us) + b)
        if accept <= k * log_rate - rate - math.lgamma(k + 1.0):
            return k


@cached_njit(nogil=True)
def _poisson_inverse(u: float, rate: float) -> float:
    p = math.exp(-rate)
    k = 0.0
    while u >= p:
        u -= p
        k += 1.0
        p *= rate / k
        if p < _NEGLIGIBLE and k > rate:
            break
    return k


@cached_njit(nogil=True)
def _nb_inverse(u: float, mu: float, theta: float) -> float:
    p = math.exp(-theta * math.log1p(mu / theta))
    success = mu / (mu + theta)
    k = 0.0
    while u >= p:
        u -= p
        k += 1.0
        p *= success * (theta + k - 1.0) / k
        if p < _NEGLIGIBLE and k > mu:
            break
    return k


@cached_njit(nogil=True)
def _negative_binomial(element: np.uint64, mu: float, theta: float) -> float:
    """A count; a ``theta`` of infinity stands for a Poisson law."""
    u = _unit(element)
    # A law of counts with mean μ is 0 with a probability of at least 1 - μ.
    if u < 1.0 - mu or mu <= 0.0 or theta <= 0.0:
        return 0.0
    if math.isnan(mu) or math.isnan(theta):
        return math.nan
    if mu < BY_INVERSION:
        return _poisson_inverse(u, mu) if math.isinf(theta) else _nb_inverse(u, mu, theta)
    place = _FIRST_PLACE
    rate = mu
    if not math.isinf(theta):
        drawn, place = _gamma(theta, element, place)
        rate = mu * (drawn / theta)
    return _poisson(min(rate, MAX_POISSON_RATE), element, place)


@cached_njit(nogil=True)
def draw_counts(
    starts: np.ndarray,
    mu_snf: np.ndarray,
    theta_snf: np.ndarray,
    zero_logits_snf: np.ndarray,
    out_snf: np.ndarray,
) -> None:
    """Counts of negative binomial laws, with extra zeros where logits are given.

    Parameters
    ----------
    starts
        uint64 ``[n]``: where each cell's streams begin.
    mu_snf
        Means.
    theta_snf
        Inverse dispersions, infinite for a Poisson law; axes of length 1 are shared.
    zero_logits_snf
        Logits of an extra zero, or an array without any element.
    out_snf
        Written.
    """
    n_samples, n_cells, n_features = mu_snf.shape
    by_sample, by_cell = int(theta_snf.shape[0] > 1), int(theta_snf.shape[1] > 1)
    by_feature = int(theta_snf.shape[2] > 1)
    is_inflated = zero_logits_snf.size > 0
    for s in range(n_samples):
        for n in range(n_cells):
            first = starts[n] + np.uint64(s * n_features) * GAMMA
            for f in range(n_features):
                element = splitmix64(first)
                first += GAMMA
                mu = float(mu_snf[s, n, f])
                u = _unit(element)
                if u < 1.0 - mu:
                    out_snf[s, n, f] = 0.0
                    continue
                theta = float(theta_snf[s * by_sample, n * by_cell, f * by_feature])
                count = _negative_binomial(element, mu, theta)
                if count > 0.0 and is_inflated:
                    extra = 1.0 / (1.0 + math.exp(-float(zero_logits_snf[s, n, f])))
                    if _uniform(element, 0) < extra:
                        count = 0.0
                out_snf[s, n, f] = count


@cached_njit(nogil=True)
def draw_mixtures(
    starts: np.ndarray,
    mu_1_snf: np.ndarray,
    mu_2_snf: np.ndarray,
    theta_1_snf: np.ndarray,
    theta_2_snf: np.ndarray,
    logits_snf: np.ndarray,
    out_snf: np.ndarray,
) -> None:
    """Counts of mixtures of two negative binomial laws; ``logits`` are those of the first."""
    n_samples, n_cells, n_features = mu_1_snf.shape
    for s in range(n_samples):
        for n in range(n_cells):
            first = starts[n] + np.uint64(s * n_features) * GAMMA
            for f in range(n_features):
                element = splitmix64(first)
                first += GAMMA
                weight = 1.0 / (1.0 + math.exp(-float(logits_snf[s, n, f])))
                mu, theta = float(mu_2_snf[s, n, f]), float(theta_2_snf[s, n, f])
                if _uniform(element, 0) < weight:
                    mu, theta = float(mu_1_snf[s, n, f]), float(theta_1_snf[s, n, f])
                out_snf[s, n, f] = _negative_binomial(element, mu, theta)
