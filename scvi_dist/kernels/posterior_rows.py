"""Compiled loops of a normal posterior: its heads, a draw, the divergence, and their derivatives.

The heads are small: a product of their own is done before a matrix library has begun.

Axis suffixes: ``n`` cells, ``h`` hidden units, ``k`` latent.
"""

from typing import Any, NamedTuple

import numpy as np

from scvi_dist.kernels.compiled import SUMS, compiled, part
from scvi_dist.kernels.math import exp, log


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


@part(SUMS)
def dot(x: np.ndarray, y: np.ndarray) -> Any:
    """The scalar product."""
    total = x.dtype.type(0.0)
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@part(SUMS)
def add_multiple(factor: Any, x: np.ndarray, total: np.ndarray) -> None:
    """Add a multiple of a row to another."""
    for i in range(x.size):
        total[i] += factor * x[i]


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
    real, (n_cells, n_latent) = noise_nk.dtype.type, noise_nk.shape
    for by_weight in (by_heads.mean, by_heads.var):
        by_weight[:] = 0.0
    for by_bias in (by_heads.mean_bias, by_heads.var_bias):
        by_bias[:] = 0.0
    by_hidden_nh[:] = 0.0
    for n in range(n_cells):
        weight, hidden = divergence_slope_n[n], hidden_nh[n]
        for k in range(n_latent):
            scale = normals.scale[n, k]
            by_z = slopes.z[n, k] if slopes.z.size else real(0.0)
            by_mean = by_z + weight * normals.mean[n, k]
            if slopes.mean.size:
                by_mean += slopes.mean[n, k]
            by_var = by_z * noise_nk[n, k] + weight * (scale - real(1.0) / scale)
            if slopes.scale.size:
                by_var += slopes.scale[n, k]
            # By the logarithm of the variance less eps.
            by_var *= (scale * scale - real(eps)) / (scale + scale)
            if by_hidden_nh.size:
                add_multiple(by_mean, heads.mean[k], by_hidden_nh[n])
                add_multiple(by_var, heads.var[k], by_hidden_nh[n])
            if by_heads.mean.size:
                add_multiple(by_mean, hidden, by_heads.mean[k])
            if by_heads.var.size:
                add_multiple(by_var, hidden, by_heads.var[k])
            if by_heads.mean_bias.size:
                by_heads.mean_bias[k] += by_mean
            if by_heads.var_bias.size:
                by_heads.var_bias[k] += by_var
