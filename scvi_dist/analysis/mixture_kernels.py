"""Compiled log-densities of mixtures: components in blocks, nothing of the size of all pairs.

Axis suffixes: ``n`` cells, ``k`` latent, ``j`` components of a block.
"""

import math

import numpy as np

from scvi_dist.kernels.code_cache import cached_njit

BLOCK = 512
"""Components at a time: their parameters stay in the processor's cache."""
NEGLIGIBLE = -40.0
"""Logarithm of the part of the largest component below which one is left out."""
_FACTORS = 16
"""Dimensions whose factors are multiplied before a logarithm is taken; they are below 10³⁰⁸ up to
a distance of 10⁹ scales."""


@cached_njit(nogil=True)
def _quadratic(
    point_k: np.ndarray, loc_kj: np.ndarray, inverse_kj: np.ndarray, q_j: np.ndarray
) -> None:
    """Subtract half the squared distances, in standard deviations."""
    for k in range(len(point_k)):
        x = point_k[k]
        loc, inverse = loc_kj[k], inverse_kj[k]
        for j in range(len(q_j)):
            y = (x - loc[j]) * inverse[j]
            q_j[j] -= 0.5 * y * y


@cached_njit(nogil=True)
def _student(
    point_k: np.ndarray,
    loc_kj: np.ndarray,
    inverse_kj: np.ndarray,
    dof: float,
    product_j: np.ndarray,
    q_j: np.ndarray,
) -> None:
    """Subtract ``(ν + 1) / 2 · Σ log(1 + y² / ν)``."""
    half = 0.5 * (dof + 1.0)
    n_dims = len(point_k)
    for first in range(0, n_dims, _FACTORS):
        product_j[:] = 1.0
        for k in range(first, min(first + _FACTORS, n_dims)):
            x = point_k[k]
            loc, inverse = loc_kj[k], inverse_kj[k]
            for j in range(len(q_j)):
                y = (x - loc[j]) * inverse[j]
                product_j[j] *= 1.0 + y * y / dof
        for j in range(len(q_j)):
            q_j[j] -= half * math.log(product_j[j])


@cached_njit(nogil=True)
def mixture_log_density(
    points_nk: np.ndarray,
    loc_kc: np.ndarray,
    inverse_kc: np.ndarray,
    constant_c: np.ndarray,
    dof: float,
    out_n: np.ndarray,
) -> None:
    """Write ``log Σ_c exp(log density of component c)`` of each point.

    Parameters
    ----------
    points_nk
        float64.
    loc_kc, inverse_kc
        float64 ``[k, components]``: locations, and one over the scales.
    constant_c
        What a component's log-density has at its location.
    dof
        Degrees of freedom of Student's t; infinite for normal components.
    out_n
        Written.
    """
    n_components = len(constant_c)
    peak_n = np.full(len(points_nk), -np.inf)
    total_n = np.zeros(len(points_nk))
    q, product = np.empty(BLOCK), np.empty(BLOCK)
    for start in range(0, n_components, BLOCK):
        stop = min(start + BLOCK, n_components)
        q_j, product_j = q[: stop - start], product[: stop - start]
        loc_kj = np.ascontiguousarray(loc_kc[:, start:stop])
        inverse_kj = np.ascontiguousarray(inverse_kc[:, start:stop])
        for n in range(len(points_nk)):
            q_j[:] = constant_c[start:stop]
            if math.isinf(dof):
                _quadratic(points_nk[n], loc_kj, inverse_kj, q_j)
            else:
                _student(points_nk[n], loc_kj, inverse_kj, dof, product_j, q_j)
            highest = q_j.max()
            if highest > peak_n[n]:
                total_n[n] *= math.exp(peak_n[n] - highest)
                peak_n[n] = highest
            peak, total = peak_n[n], 0.0
            for j in range(len(q_j)):
                if q_j[j] - peak > NEGLIGIBLE:
                    total += math.exp(q_j[j] - peak)
            total_n[n] += total
    for n in range(len(points_nk)):
        out_n[n] = peak_n[n] + math.log(total_n[n])
