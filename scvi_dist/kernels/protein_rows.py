"""Compiled loops over the proteins of a cell: TOTALVI's mixture, its priors, and derivatives.

Everything is float64: there are few proteins, and their counts are large.

Axis suffixes: ``n`` cells, ``p`` proteins, ``k`` kinds of values.
"""

import math

import numpy as np

from scvi_dist.kernels.compiled import compiled
from scvi_dist.kernels.gamma_lanes import gamma_growth
from scvi_dist.kernels.math import exp, log, log1p

EPS = 1e-8
"""Added inside logarithms."""
BACKGROUND_WEIGHT = 1e-3
"""Weight of the term that makes background the first explanation of a protein's counts."""
INPUTS = (
    "back_mean",
    "back_spread",
    "log_rate_back",
    "fore_scale",
    "mixing",
    "theta",
    "log_efficiency",
    "prior_mean",
    "prior_spread",
)
"""What has a derivative; the counts, ``log Γ(y + 1)`` and whether they were measured follow."""
LANES = 128
"""Proteins that are done at a time: at fixed places of one array, which makes lanes of them."""
N_VALUES = len(INPUTS) + 3
_COUNT, _CONSTANT, _MEASURED = len(INPUTS), len(INPUTS) + 1, len(INPUTS) + 2
_REC, _BACK = N_VALUES, N_VALUES + 1
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@compiled(inlined=True)
def softplus_and_slope(x: float) -> tuple[float, float]:
    """``log(1 + e^x)`` and ``1 / (1 + e^-x)``."""
    e = exp(-x if x > 0 else x)
    return (x if x > 0 else 0.0) + log1p(e), (1.0 if x > 0 else e) / (1.0 + e)


@compiled(inlined=True)
def nb_terms(y: float, mu: float, theta: float) -> tuple[float, float, float]:
    """Log-probability without what the mean has no part in; derivatives by log mean and ``θ``."""
    padded, total = theta + EPS, theta + mu + EPS
    log_ratio, odds = log1p(mu / padded), mu / (mu + EPS)
    value = -theta * log_ratio - y * log1p(theta / (mu + EPS))
    by_log_mu = theta / total * (y * odds - mu)
    by_theta = (theta / padded * mu - y) / total - log_ratio
    return value, by_log_mu, by_theta


@compiled()
def lanes(work: np.ndarray, by_rec: float, by_back: float) -> None:
    """Terms of :data:`LANES` proteins, and derivatives in the places of what they are by."""
    for i in range(LANES):
        mean, spread = work[i], work[LANES + i]
        scale, mixing = work[3 * LANES + i], work[4 * LANES + i]
        theta, log_e = work[5 * LANES + i], work[6 * LANES + i]
        prior_mean, prior_spread = work[7 * LANES + i], work[8 * LANES + i]
        measured = work[_MEASURED * LANES + i] != 0.0
        y = work[_COUNT * LANES + i] if measured else 0.0
        mu_1 = exp(log_e + work[2 * LANES + i])
        one, by_mu_1, by_theta_1 = nb_terms(y, mu_1, theta)
        two, by_mu_2, by_theta_2 = nb_terms(y, mu_1 * scale, theta)
        shared, shared_slope = gamma_growth(y, theta)
        # log(1 + e^-m) and log(1 + e^m): minus the log-probabilities of the components.
        cost, no_background = softplus_and_slope(-mixing)
        one, two = one - cost, two - (cost + mixing)
        high = one if one > two else two
        weight_1, weight_2 = exp(one - high), exp(two - high)
        inverse = 1.0 / (weight_1 + weight_2)
        # The sum lies between 1 and 2.
        log_p = high - log(inverse) + shared - work[_CONSTANT * LANES + i]
        weight_1, weight_2 = weight_1 * inverse, weight_2 * inverse
        background = 1.0 - no_background if mixing < 0 else 1.0 / (1.0 + exp(-mixing))
        by_mixing = weight_1 * no_background - weight_2 * background
        by_mu_1, by_mu_2 = weight_1 * by_mu_1, weight_2 * by_mu_2
        by_theta = weight_1 * by_theta_1 + weight_2 * by_theta_2 + shared_slope
        ratio, shift = spread / prior_spread, (mean - prior_mean) / prior_spread
        divergence = 0.5 * (ratio * ratio + shift * shift - 1.0) - log(ratio)
        own = log_e * (1.0 + 0.5 * log_e) + HALF_LOG_2PI + BACKGROUND_WEIGHT * cost
        rec, kl = (-by_rec if measured else 0.0), (by_back if measured else 0.0)
        work[_REC * LANES + i] = -log_p if measured else 0.0
        work[_BACK * LANES + i] = own + (divergence if measured else 0.0)
        work[i] = kl * shift / prior_spread
        work[LANES + i] = kl * (ratio / prior_spread - 1.0 / spread)
        work[2 * LANES + i] = rec * (by_mu_1 + by_mu_2)
        work[3 * LANES + i] = rec * by_mu_2 / scale
        work[4 * LANES + i] = rec * by_mixing - by_back * BACKGROUND_WEIGHT * no_background
        work[5 * LANES + i] = rec * by_theta
        work[6 * LANES + i] = rec * (by_mu_1 + by_mu_2) + by_back * (1.0 + log_e)
        work[7 * LANES + i] = -kl * shift / prior_spread
        work[8 * LANES + i] = kl * (1.0 - ratio * ratio - shift * shift) / prior_spread


@compiled()
def protein_rows(
    values_knp: np.ndarray,
    n_real: int,
    by_terms: tuple[float, float],
    terms_2n: np.ndarray,
    slopes_knp: np.ndarray,
) -> None:
    """Each cell's terms, and derivatives of their weighted sum over the cells that count.

    Parameters
    ----------
    values_knp
        :data:`INPUTS`, counts, ``log Γ(count + 1)``, and 1 for what was measured, 0 for others.
    n_real
        Cells that count: the first ones. Derivatives of others are zeros.
    by_terms
        Weights of the cells' two terms.
    terms_2n
        Filled: minus the log-probability of the proteins measured; and what the background rates,
        the efficiencies and the odds of background cost.
    slopes_knp
        Filled, unless it is empty: derivatives by :data:`INPUTS`.
    """
    n_values, n_cells, n_proteins = values_knp.shape
    work = np.ones((N_VALUES + 2) * LANES)
    for n in range(n_cells):
        factor = 1.0 if n < n_real else 0.0
        rec, back = 0.0, 0.0
        for first in range(0, n_proteins, LANES):
            size = min(LANES, n_proteins - first)
            for k in range(n_values):
                work[k * LANES : k * LANES + size] = values_knp[k, n, first : first + size]
            lanes(work, factor * by_terms[0], factor * by_terms[1])
            for i in range(size):
                rec += work[_REC * LANES + i]
                back += work[_BACK * LANES + i]
            for k in range(len(slopes_knp)):
                slopes_knp[k, n, first : first + size] = work[k * LANES : k * LANES + size]
        terms_2n[0, n], terms_2n[1, n] = rec, back
