"""Compiled loops of a normal posterior: its heads, a draw, the divergence, and their derivatives.

Axis suffixes: ``n`` cells, ``h`` hidden units, ``k`` latent.
"""

from typing import NamedTuple

import numpy as np

from scvi_dist.kernels.compiled import SUMS, compiled, part
from scvi_dist.kernels.math import exp, log
from scvi_dist.kernels.small_products import dot, multiply_dense


class Heads(NamedTuple):
    """Weights ``[k, h]`` and biases ``[k]`` of the mean and of the logarithm of the variance."""

    mean: np.ndarray
    mean_bias: np.ndarray
    var: np.ndarray
    var_bias: np.ndarray


class Normals(NamedTuple):
    """Means, standard deviations and draws, ``[n, k]``."""

    mean: np.ndarray
    scale: np.ndarray
    z: np.ndarray


@compiled(SUMS)
def draw(
    hidden_nh: np.ndarray,
    heads: Heads,
    noise_nk: np.ndarray,
    eps: float,
    normals: Normals,
    divergence_n: np.ndarray,
) -> None:
    """Fill means, standard deviations, draws, and divergences from the standard normal law.

    Source
    ------
    Kingma & Welling 2014, "Auto-encoding variational Bayes", appendix B.
    """
    n_latent, real = len(heads.mean), hidden_nh.dtype.type
    for n in range(len(hidden_nh)):
        hidden, noise = hidden_nh[n], noise_nk[n]
        means, scales, z = normals.mean[n], normals.scale[n], normals.z[n]
        for k in range(n_latent):
            means[k] = heads.mean_bias[k] + dot(hidden, heads.mean[k])
            z[k] = heads.var_bias[k] + dot(hidden, heads.var[k])
        total = 0.0
        for k in range(n_latent):
            variance = exp(z[k]) + real(eps)
            scales[k] = np.sqrt(variance)
            z[k] = means[k] + scales[k] * noise[k]
            # Near the prior these terms cancel.
            v, m = np.float64(variance), np.float64(means[k])
            total += 0.5 * (v + m * m - 1.0 - log(v))
        divergence_n[n] = total


@part()
def _slopes_by_heads(
    slopes: Normals,
    divergence_slope_n: np.ndarray,
    normals: Normals,
    noise_nk: np.ndarray,
    eps: float,
    slope_nk: np.ndarray,
) -> None:
    """Fill the derivatives by what the heads of the mean and of the variance give."""
    real, (n_cells, n_latent) = noise_nk.dtype.type, noise_nk.shape
    for n in range(n_cells):
        weight = divergence_slope_n[n]
        for k in range(n_latent):
            scale = normals.scale[n, k]
            by_z = slopes.z[n, k] if slopes.z.size else real(0.0)
            by_mean = by_z + weight * normals.mean[n, k]
            by_scale = by_z * noise_nk[n, k] + weight * (scale - real(1.0) / scale)
            if slopes.mean.size:
                by_mean += slopes.mean[n, k]
            if slopes.scale.size:
                by_scale += slopes.scale[n, k]
            slope_nk[n, k] = by_mean
            # By the logarithm of the variance less eps.
            by_var = by_scale * (scale * scale - real(eps)) / (scale + scale)
            slope_nk[n, n_latent + k] = by_var


@compiled(SUMS)
def draw_slopes(
    slopes: Normals,
    divergence_slope_n: np.ndarray,
    hidden_nh: np.ndarray,
    heads: Heads,
    normals: Normals,
    noise_nk: np.ndarray,
    eps: float,
    by_hidden_nh: np.ndarray,
    by_heads: Heads,
) -> None:
    """Fill derivatives by hidden units and heads from those by what :func:`draw` filled.

    Parameters
    ----------
    slopes
        By means, standard deviations and draws; ``[0, 0]`` where there are none.
    by_hidden_nh, by_heads
        ``[0, 0]`` or ``[0]`` where they are not wanted.
    """
    n_latent, real = noise_nk.shape[1], noise_nk.dtype
    slope_nk = np.empty((len(noise_nk), 2 * n_latent), real)
    _slopes_by_heads(slopes, divergence_slope_n, normals, noise_nk, eps, slope_nk)
    slope_kn = np.ascontiguousarray(slope_nk.T)
    if by_hidden_nh.size:
        weights_kh = np.empty((2 * n_latent, hidden_nh.shape[1]), real)
        weights_kh[:n_latent] = heads.mean
        weights_kh[n_latent:] = heads.var
        multiply_dense(slope_nk, weights_kh, by_hidden_nh)
    if by_heads.mean.size:
        multiply_dense(slope_kn[:n_latent], hidden_nh, by_heads.mean)
    if by_heads.var.size:
        multiply_dense(slope_kn[n_latent:], hidden_nh, by_heads.var)
    for k in range(by_heads.mean_bias.size):
        by_heads.mean_bias[k] = slope_kn[k].sum()
    for k in range(by_heads.var_bias.size):
        by_heads.var_bias[k] = slope_kn[n_latent + k].sum()
