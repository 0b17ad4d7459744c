"""Compiled loops over the counts of one cell: what each costs beyond a zero, and derivatives.

Counts are taken out of the cell's dense rows, computed with side by side, and put back: so the
loops over all genes need not ask which of them have a count. Everything is float64.

Axis suffixes: ``n`` cells of the minibatch, ``g`` genes, ``m`` counts of a cell.
"""

import math
from typing import NamedTuple

import numpy as np

from scvi_dist.kernels.compiled import SUMS, part
from scvi_dist.kernels.gamma import LOG_FACTORIALS, log_gamma_plus_one
from scvi_dist.kernels.gamma_lanes import gamma_growth
from scvi_dist.kernels.math import decay, log, log1p_from_zero, three_logs

EPS = 1e-8
"""Added to ``θ`` and ``μ`` inside logarithms, and the least count that is no zero; scvi-tools'."""
MOST_FACTORS = 8.0
"""Whole counts up to here, nearly all, are done as products, others by gamma functions."""
LARGEST_COUNT = 1e15
"""Larger ones have an infinite loss under a negative binomial law."""
_TINY = float(np.finfo(np.float32).tiny)


class Rows(NamedTuple):
    """Counts of the minibatch's cells, as CSR."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray


class Scratch(NamedTuple):
    """Room for one cell."""

    scale: np.ndarray
    """``[g]``."""
    slope: np.ndarray
    """``[g]``."""
    logits: np.ndarray
    """``[g + PADDING]``: of extra zeros, of the counts."""
    counts: np.ndarray
    """float64 ``[COLUMNS, g + PADDING]``: see the names below."""
    genes: np.ndarray
    """int64 ``[g]``: of the counts."""
    stretch: np.ndarray
    """``[3, STRETCH]``: between the loops over a stretch of genes."""


PADDING = 16
"""Counts are done as multiples of this: what is left over by vector lanes is ten times as dear."""
COLUMNS = 9
_SCALE, _MU, _THETA, _COUNT, _PRODUCT, _OUT, _PLACE, _LARGE, _LARGE_THETA = range(COLUMNS)


@part()
def take_counts(
    rows: Rows,
    row: int,
    least: float,
    factor: float,
    theta: np.ndarray,
    scratch: Scratch,
) -> int:
    """Take the cell's counts out of its scales; their number."""
    scale, genes, counts = scratch.scale, scratch.genes, scratch.counts[_COUNT]
    a, b = rows.indptr[row], rows.indptr[row + 1]
    n = _taken(rows.data[a:b], rows.indices[a:b], least, counts, genes)
    scales, mus, thetas = scratch.counts[_SCALE], scratch.counts[_MU], scratch.counts[_THETA]
    has_theta = theta.size > 0
    for k in range(n):
        gene = genes[k]
        value = float(scale[gene])
        scale[gene] = 0.0
        scales[k], mus[k] = value, value * factor
        if has_theta:
            thetas[k] = theta[gene]
    # Zeros of mean 0 cost nothing and have finite slopes.
    for k in range(n, n_padded(n)):
        counts[k], mus[k], thetas[k] = 0.0, 0.0, 1.0
    return n


@part()
def _taken(
    data: np.ndarray, indices: np.ndarray, least: float, counts: np.ndarray, genes: np.ndarray
) -> int:
    """Fill counts that are no zeros, and their genes; how many there are."""
    n_zeros = 0
    for x in data:
        # A NaN is to be seen in the loss, and so is no zero.
        n_zeros += 1 if x < least or x == 0.0 else 0
    if n_zeros == 0:
        for k in range(data.size):
            counts[k] = data[k]
        for k in range(data.size):
            genes[k] = indices[k]
        return data.size
    n = 0
    for k in range(data.size):
        x = data[k]
        genes[n], counts[n] = indices[k], x
        n += 0 if x < least or x == 0.0 else 1
    return n


@part()
def n_padded(n: int) -> int:
    """The next multiple of the padding."""
    return (n + PADDING - 1) // PADDING * PADDING


@part()
def take_logits(dropout: np.ndarray, scratch: Scratch, n: int) -> None:
    """Take the logits of extra zeros of the cell's counts."""
    for k in range(n):
        scratch.logits[k] = dropout[scratch.genes[k]]
    scratch.logits[n : n_padded(n)] = -math.inf


@part()
def put_logits(dropout: np.ndarray, scratch: Scratch, n: int, weight: float) -> None:
    """Put derivatives by the logits in their places."""
    for k in range(n):
        dropout[scratch.genes[k]] = weight * scratch.logits[k]


@part()
def _log_factorials(counts: np.ndarray) -> float:
    total, n_others = 0.0, 0
    for x in counts:
        whole = int(x) if x < LOG_FACTORIALS.size else 0
        is_there = x == whole
        # The first one is 0.
        total += LOG_FACTORIALS[whole if is_there else 0]
        n_others += 0 if is_there else 1
    if n_others:
        for x in counts:
            if not (x < LOG_FACTORIALS.size and x == math.floor(x)):
                total += log_gamma_plus_one(x)
    return total


@part(SUMS)
def _small_products(
    thetas: np.ndarray, counts: np.ndarray, products: np.ndarray, slopes: np.ndarray
) -> int:
    """Fill ``Γ(x + θ) / (Γ(θ) x!)`` and the slope of its logarithm; of how many counts.

    Counts that are not whole, or large, have 1 and 0.
    """
    n_small = 0
    for k in range(counts.size):
        theta, x = thetas[k], counts[k]
        small = x if x == math.floor(x) else 0.0
        small = small if small <= MOST_FACTORS else 0.0
        product = theta if small > 0.0 else 1.0
        steps = 1.0 if small > 0.0 else 0.0
        for step in range(1, 8):
            by_step = 1.0 / (step + 1)
            factor = theta * by_step + step * by_step
            taken = small > step
            steps = steps * factor + product * by_step if taken else steps
            product = product * factor if taken else product
        products[k], slopes[k] = product, steps / product
        n_small += 1 if small > 0.0 else 0
    return n_small


@part(SUMS)
def nb_counts(work: np.ndarray, n: int) -> tuple[float, float]:
    """What counts cost under a negative binomial law, and the sum of mean times slope.

    The derivatives by the mean and by ``θ`` take the places of ``_MU`` and ``_OUT``.
    """
    m = n_padded(n)
    mus, thetas, counts, outs = work[_MU, :m], work[_THETA, :m], work[_COUNT, :m], work[_OUT, :m]
    products = work[_PRODUCT, :m]
    n_small = _small_products(thetas, counts, products, outs)
    loss, total = 0.0, 0.0
    for k in range(m):
        mu, theta, x = mus[k], thetas[k], counts[k]
        a, b = theta + EPS, mu + EPS
        c = a + mu
        # One division for three.
        both = a * b
        inverse = 1.0 / (both * c)
        by_a, by_b, by_c = inverse * (b * c), inverse * (a * c), inverse * both
        growth, odds, factors = three_logs(mu * by_a, a * by_c, b * by_c, products[k])
        loss += theta * growth - x * odds - factors
        slope = theta * by_c * (1.0 - x * by_b)
        mus[k] = slope
        total += mu * slope
        outs[k] = growth - theta * mu * by_a * by_c + x * by_c - outs[k]
    if n_small < n:
        loss -= _large_counts(work, n)
    return loss, total


@part()
def _large_counts(work: np.ndarray, n: int) -> float:
    """Gamma functions of counts that are no small products; their slopes are subtracted."""
    counts, thetas, outs = work[_COUNT], work[_THETA], work[_OUT]
    places, larges, large_thetas = work[_PLACE], work[_LARGE], work[_LARGE_THETA]
    m, constant = 0, 0.0
    for k in range(n):
        x = counts[k]
        if not (x <= MOST_FACTORS and x == math.floor(x)):
            places[m], larges[m], large_thetas[m] = k, x, thetas[k]
            # What differences leave of such a number is rounding: no loss is better than that.
            constant += math.inf if x > LARGEST_COUNT else log_gamma_plus_one(x)
            m += 1
    # Nothing grows from 1 to 1 + 0.
    for k in range(m, n_padded(m)):
        larges[k], large_thetas[k] = 0.0, 1.0
    total = _gamma_growths(larges[: n_padded(m)], large_thetas[: n_padded(m)])
    for k in range(m):
        outs[int(places[k])] -= larges[k]
    return total - constant


@part(SUMS)
def _gamma_growths(counts: np.ndarray, thetas: np.ndarray) -> float:
    """The sum of ``log Γ(x + θ) - log Γ(θ)``; the counts become its derivatives by ``θ``."""
    total = 0.0
    for k in range(counts.size):
        value, slope = gamma_growth(counts[k], thetas[k])
        total += value
        counts[k] = slope
    return total


@part(SUMS)
def poisson_counts(work: np.ndarray, n: int) -> tuple[float, float]:
    """What counts cost under a Poisson law beyond their mean, and the sum of mean times slope.

    The slope takes the place of ``_MU``.
    """
    m = n_padded(n)
    mus, counts = work[_MU, :m], work[_COUNT, :m]
    loss, total = 0.0, 0.0
    for k in range(m):
        mu = mus[k] if mus[k] > _TINY else _TINY
        loss -= counts[k] * log(mu)
        slope = -counts[k] / mu
        total += mus[k] * slope
        mus[k] = slope
    return loss + _log_factorials(counts[:n]), total


@part(SUMS)
def counted(logits: np.ndarray) -> float:
    """What it costs that counts are no extra zeros; the logits become the derivatives by them."""
    one, zero = logits.dtype.type(1.0), logits.dtype.type(0.0)
    loss = 0.0
    for k in range(logits.size):
        logit = logits[k]
        # Not by calls of softplus and sigmoid, which keep the loop out of vector lanes.
        e = decay(-abs(logit))
        loss += np.float64((logit if logit > zero else zero) + log1p_from_zero(e))
        logits[k] = (one if logit > zero else e) / (one + e)
    return loss


@part()
def put_counts(scratch: Scratch, n: int, weight: float, theta_sum: np.ndarray) -> None:
    """Put slopes and scales of the cell's counts in their places."""
    genes, scale, slope = scratch.genes, scratch.scale, scratch.slope
    scales, slopes, by_theta = scratch.counts[_SCALE], scratch.counts[_MU], scratch.counts[_OUT]
    for k in range(n):
        gene = genes[k]
        scale[gene] = scales[k]
        slope[gene] = slopes[k]
    if theta_sum.size:
        for k in range(n):
            theta_sum[genes[k]] += weight * by_theta[k]
