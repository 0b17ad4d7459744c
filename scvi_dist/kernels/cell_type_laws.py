"""Compiled loops over the laws of a cell's counts under CellAssign's model.

A *law* is what a count of a gene follows: one law for all types that the gene is no marker of, and
one for each type that it is a marker of. All arithmetic is float64, whatever the parameters are:
nothing is kept that would be large, and float32 resolves neither lgamma of a large count nor a sum
over many genes.

Axis suffixes: ``g`` genes, ``m`` markers (pairs of a gene and a type), ``l`` laws (the genes, then
the markers), ``b`` basis functions, ``z`` laws of counts that are not zero.

Source
------
Zhang et al. 2019, "Probabilistic cell-type assignment of single-cell RNA-seq for tumor
microenvironment profiling", methods; the placement of ``EPS`` is scvi-tools'.
"""

import numpy as np

from scvi_dist.kernels.compiled import compiled
from scvi_dist.kernels.gamma_lanes import gamma_growth
from scvi_dist.kernels.math import exp, log1p

N_BASIS = 10
CENTRE = 4.5
"""Places on the axis of the basis functions are counted from the middle of their centres."""
FARTHEST = 30.0
"""Places beyond are moved here, where all basis functions are 0 to any precision."""
LEAST_PHI = 1e-10
"""Added to the inverse dispersion, which the basis functions leave at 0 far from their centres."""
EPS = 1e-8
"""Added inside logarithms."""


@compiled()
def fill_means(
    log_base_g: np.ndarray, gene_m: np.ndarray, factor_m: np.ndarray, mu_l: np.ndarray
) -> None:
    """The mean of each law."""
    g = len(log_base_g)
    for j in range(g):
        mu_l[j] = exp(log_base_g[j])
    for m in range(len(gene_m)):
        mu_l[g + m] = mu_l[gene_m[m]] * factor_m[m]


@compiled(inlined=True)
def place_of(mu: float, first: float, inv_step: float) -> float:
    """Where a mean lies among the centres, from their middle."""
    place = (mu - first) * inv_step - CENTRE
    place = place if place < FARTHEST else FARTHEST
    return place if place > -FARTHEST else -FARTHEST


@compiled()
def fill_powers(
    mu_l: np.ndarray, first: float, inv_step: float, t_l: np.ndarray, tail_l: np.ndarray
) -> None:
    """``t = exp(place)`` and ``tail = exp(-place (place / 2 + 4.5))``.

    Basis function ``b``, whose centre is ``b - 4.5 + d`` with a tiny ``d``, is ``tail t^b (1 + d
    place) exp(-(b - 4.5 + d)^2 / 2)``: two exponentials give all of them.
    """
    for i in range(len(mu_l)):
        place = place_of(mu_l[i], first, inv_step)
        t_l[i] = exp(place)
        tail_l[i] = exp(-place * (0.5 * place + CENTRE))


@compiled()
def fill_dispersions(
    mu_l: np.ndarray,
    t_l: np.ndarray,
    tail_l: np.ndarray,
    basis: tuple[float, float],
    height_b: tuple[float, ...],
    tilt_b: tuple[float, ...],
    phi_l: np.ndarray,
    slope_l: np.ndarray,
) -> None:
    """The inverse dispersion, and its derivative by the log mean.

    ``height_b`` is ``a_b exp(-(b - 4.5 + d_b)^2 / 2)``, ``tilt_b`` that times ``d_b``.
    """
    first, inv_step = basis
    h0, h1, h2, h3, h4, h5, h6, h7, h8, h9 = height_b
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = tilt_b
    for i in range(len(mu_l)):
        mu = mu_l[i]
        place = place_of(mu, first, inv_step)
        t = t_l[i]
        w = h9 + place * s9
        p = w
        q = w * 9.0 + s9
        w = h8 + place * s8
        p = p * t + w
        q = q * t + (w * 8.0 + s8)
        w = h7 + place * s7
        p = p * t + w
        q = q * t + (w * 7.0 + s7)
        w = h6 + place * s6
        p = p * t + w
        q = q * t + (w * 6.0 + s6)
        w = h5 + place * s5
        p = p * t + w
        q = q * t + (w * 5.0 + s5)
        w = h4 + place * s4
        p = p * t + w
        q = q * t + (w * 4.0 + s4)
        w = h3 + place * s3
        p = p * t + w
        q = q * t + (w * 3.0 + s3)
        w = h2 + place * s2
        p = p * t + w
        q = q * t + (w * 2.0 + s2)
        w = h1 + place * s1
        p = p * t + w
        q = q * t + (w + s1)
        w = h0 + place * s0
        p = p * t + w
        q = q * t + s0
        phi_l[i] = tail_l[i] * p + LEAST_PHI
        slope_l[i] = tail_l[i] * (q - (place + CENTRE) * p) * (inv_step * mu)


@compiled()
def fill_zero_terms(
    mu_l: np.ndarray, phi_l: np.ndarray, log_p_l: np.ndarray, by_phi_l: np.ndarray
) -> None:
    """Log-probability of a count of zero, and its derivative by the inverse dispersion."""
    for i in range(len(mu_l)):
        mu, phi = mu_l[i], phi_l[i]
        ratio = mu / (phi + EPS)
        log_ratio = log1p(ratio)
        log_p_l[i] = -phi * log_ratio
        by_phi_l[i] = ratio * (phi / (phi + mu + EPS)) - log_ratio


@compiled()
def fill_zero_slopes(mu_l: np.ndarray, phi_l: np.ndarray, by_log_mu_l: np.ndarray) -> None:
    """Derivative of the log-probability of a zero by the log mean, at a fixed dispersion."""
    for i in range(len(mu_l)):
        mu, phi = mu_l[i], phi_l[i]
        by_log_mu_l[i] = -phi / (phi + mu + EPS) * mu


@compiled()
def fill_count_terms(
    x_z: np.ndarray, mu_z: np.ndarray, phi_z: np.ndarray, log_p_z: np.ndarray, by_phi_z: np.ndarray
) -> None:
    """What a count adds to the terms of a zero, but for ``-log Γ(x + 1)``."""
    for i in range(len(x_z)):
        x, mu, phi = x_z[i], mu_z[i], phi_z[i]
        value, slope = gamma_growth(x, phi)
        log_p_z[i] = value - x * log1p(phi / (mu + EPS))
        by_phi_z[i] = slope - x / (phi + mu + EPS)


@compiled()
def fill_count_slopes(
    x_z: np.ndarray, mu_z: np.ndarray, phi_z: np.ndarray, by_log_mu_z: np.ndarray
) -> None:
    """What a count adds to the derivative by the log mean at a fixed dispersion."""
    for i in range(len(x_z)):
        mu, phi = mu_z[i], phi_z[i]
        by_log_mu_z[i] = x_z[i] / (mu + EPS) * mu * (phi / (phi + mu + EPS))
