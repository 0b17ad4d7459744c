"""Compiled loops of a normal posterior: a draw, the divergence, and their derivatives.

Axis suffixes: ``n`` cells, ``k`` latent.
"""

import numpy as np

from scvi_dist.kernels.compiled import SUMS, compiled, part
from scvi_dist.kernels.math import exp, log


@part(SUMS)
def _draw(
    mean: np.ndarray,
    log_variance: np.ndarray,
    noise: np.ndarray,
    eps: float,
    scale: np.ndarray,
    z: np.ndarray,
) -> float:
    total = 0.0
    for k in range(mean.size):
        variance = exp(log_variance[k]) + mean.dtype.type(eps)
        scale[k] = np.sqrt(variance)
        z[k] = mean[k] + scale[k] * noise[k]
        # Near the prior these terms cancel.
        v, m = np.float64(variance), np.float64(mean[k])
        total += 0.5 * (v + m * m - 1.0 - log(v))
    return total


@compiled()
def draw(
    mean_nk: np.ndarray,
    log_variance_nk: np.ndarray,
    noise_nk: np.ndarray,
    eps: float,
    scale_nk: np.ndarray,
    z_nk: np.ndarray,
    divergence_n: np.ndarray,
) -> None:
    """Fill standard deviations, draws, and divergences from the standard normal law.

    Source
    ------
    Kingma & Welling 2014, "Auto-encoding variational Bayes", appendix B.
    """
    for n in range(len(mean_nk)):
        rows = mean_nk[n], log_variance_nk[n], noise_nk[n]
        divergence_n[n] = _draw(rows[0], rows[1], rows[2], eps, scale_nk[n], z_nk[n])


@compiled()
def draw_slopes(
    z_slope_nk: np.ndarray,
    divergence_slope_n: np.ndarray,
    mean_nk: np.ndarray,
    noise_nk: np.ndarray,
    scale_nk: np.ndarray,
    eps: float,
    mean_slope_nk: np.ndarray,
    scale_slope_nk: np.ndarray,
) -> None:
    """Add what comes through draws and divergences to the slopes by mean and standard deviation.

    Those by the standard deviation become slopes by the logarithm of the variance less ``eps``.
    """
    real = mean_nk.dtype.type
    for n in range(len(mean_nk)):
        weight = divergence_slope_n[n]
        for k in range(mean_nk.shape[1]):
            z_slope, scale = z_slope_nk[n, k], scale_nk[n, k]
            mean_slope_nk[n, k] += z_slope + weight * mean_nk[n, k]
            slope = scale_slope_nk[n, k] + z_slope * noise_nk[n, k]
            slope += weight * (scale - real(1.0) / scale)
            scale_slope_nk[n, k] = slope * (scale * scale - real(eps)) / (scale + scale)
