"""Compiled loops over cells: CellAssign's loss and its gradient, one cell at a time.

Axis suffixes: ``n`` cells, ``g`` genes, ``m`` markers (pairs of a gene and a type), ``l`` laws (the
genes, then the markers; see :mod:`~scvi_dist.kernels.cell_type_laws`), ``c`` types, ``b`` basis
functions, ``z`` laws of counts that are not zero.
"""

import math

import numpy as np

from scvi_dist.kernels.cell_type_laws import (
    N_BASIS,
    fill_count_slopes,
    fill_count_terms,
    fill_dispersions,
    fill_means,
    fill_powers,
    fill_zero_slopes,
    fill_zero_terms,
    place_of,
)
from scvi_dist.kernels.compiled import SUMS, compiled


@compiled(SUMS)
def total(values: np.ndarray) -> float:
    """Sum of all values."""
    result = 0.0
    for i in range(len(values)):
        result += values[i]
    return result


@compiled()
def take_counts(
    counts: np.ndarray,
    genes: np.ndarray,
    first_g: np.ndarray,
    lgamma_of: np.ndarray,
    laws: tuple[np.ndarray, np.ndarray],
    taken: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    log_p_l: np.ndarray,
) -> int:
    """Lay the laws of a cell's counts side by side, and give their number.

    The markers of gene ``j`` are ``first_g[j] … first_g[j + 1] - 1``. The term ``-log Γ(x + 1)``
    goes straight to ``log_p_l``.
    """
    mu_l, phi_l = laws
    law_z, x_z, mu_z, phi_z = taken
    g = len(first_g) - 1
    z = 0
    for entry in range(len(counts)):
        x, gene = counts[entry], genes[entry]
        index = int(x) if 0 <= x < len(lgamma_of) else 0
        constant = lgamma_of[index] if index == x else math.lgamma(x + 1)
        for k in range(first_g[gene] - 1, first_g[gene + 1]):
            law = gene if k < first_g[gene] else g + k
            law_z[z], x_z[z], mu_z[z], phi_z[z] = law, x, mu_l[law], phi_l[law]
            log_p_l[law] -= constant
            z += 1
    return z


@compiled()
def add_at(law_z: np.ndarray, addend_z: np.ndarray, values_l: np.ndarray) -> None:
    """Add to the values of some laws."""
    for z in range(len(law_z)):
        values_l[law_z[z]] += addend_z[z]


@compiled()
def add_up_types(
    log_p_l: np.ndarray, gene_m: np.ndarray, type_m: np.ndarray, log_p_c: np.ndarray
) -> None:
    """Add the log-probabilities of a cell's counts under each type to ``log_p_c``."""
    g = len(log_p_l) - len(gene_m)
    log_p_c += total(log_p_l[:g])
    for m in range(len(gene_m)):
        log_p_c[type_m[m]] += log_p_l[g + m] - log_p_l[gene_m[m]]


@compiled()
def expected_loss(log_p_c: np.ndarray, weight_c: np.ndarray) -> float:
    """``-sum_c gamma_c log_p_c``, and its derivative by each ``log_p_c``.

    ``gamma`` is the softmax of ``log_p_c``, and not a constant.
    """
    largest, normaliser, loss = log_p_c.max(), 0.0, 0.0
    for c in range(len(log_p_c)):
        weight_c[c] = math.exp(log_p_c[c] - largest)
        normaliser += weight_c[c]
    for c in range(len(log_p_c)):
        weight_c[c] /= normaliser
        # A type that cannot be has no part, however unlikely it makes the counts.
        loss -= weight_c[c] * log_p_c[c] if weight_c[c] > 0 else 0.0
    for c in range(len(log_p_c)):
        weight_c[c] *= -(1 + log_p_c[c] + loss) if weight_c[c] > 0 else 0.0
    return loss


@compiled()
def fill_weights(
    weight_c: np.ndarray, gene_m: np.ndarray, type_m: np.ndarray, weight_l: np.ndarray
) -> None:
    """The derivative of a cell's loss by the log-probability under each law."""
    g = len(weight_l) - len(gene_m)
    weight_l[:g] = weight_c.sum()
    for m in range(len(gene_m)):
        weight = weight_c[type_m[m]]
        weight_l[g + m] = weight
        weight_l[gene_m[m]] -= weight


@compiled()
def weigh(
    weight_l: np.ndarray, by_phi_l: np.ndarray, slope_l: np.ndarray, by_log_mu_l: np.ndarray
) -> None:
    """Turn the derivatives by the log mean into those of the cell's loss, dispersion included."""
    for i in range(len(weight_l)):
        by_log_mu_l[i] = weight_l[i] * (by_log_mu_l[i] + by_phi_l[i] * slope_l[i])


@compiled()
def give_to_parameters(
    by_log_mu_l: np.ndarray, gene_m: np.ndarray, grad_base_g: np.ndarray, grad_shift_m: np.ndarray
) -> None:
    """Add up the derivatives of a cell's loss by its log means; ``grad_base_g`` is this cell's."""
    g = len(grad_base_g)
    for m in range(len(gene_m)):
        grad_shift_m[m] += by_log_mu_l[g + m]
        by_log_mu_l[gene_m[m]] += by_log_mu_l[g + m]
    for j in range(g):
        grad_base_g[j] = by_log_mu_l[j]


@compiled()
def weigh_tails(
    weight_l: np.ndarray, by_phi_l: np.ndarray, tail_l: np.ndarray, part_l: np.ndarray
) -> None:
    """The derivative of a cell's loss by each inverse dispersion, times its tail."""
    for i in range(len(weight_l)):
        part_l[i] = weight_l[i] * by_phi_l[i] * tail_l[i]


@compiled(SUMS)
def moment(
    part_l: np.ndarray, mu_l: np.ndarray, first: float, inv_step: float
) -> tuple[float, float]:
    """The sums of the parts, and of the parts times their places."""
    plain, placed = 0.0, 0.0
    for i in range(len(part_l)):
        plain += part_l[i]
        placed += part_l[i] * place_of(mu_l[i], first, inv_step)
    return plain, placed


@compiled()
def multiply(part_l: np.ndarray, t_l: np.ndarray) -> None:
    """Multiply in place."""
    for i in range(len(part_l)):
        part_l[i] *= t_l[i]


@compiled()
def add_moments(
    part_l: np.ndarray,
    t_l: np.ndarray,
    mu_l: np.ndarray,
    basis: tuple[float, float],
    moments_b2: np.ndarray,
) -> None:
    """Add ``sum_l part t^b`` and ``sum_l part t^b place`` for each basis function ``b``."""
    for b in range(N_BASIS):
        plain, placed = moment(part_l, mu_l, basis[0], basis[1])
        moments_b2[b, 0] += plain
        moments_b2[b, 1] += placed
        multiply(part_l, t_l)


@compiled()
def cell_rows(
    rows: tuple[int, int, int],
    counts: tuple[np.ndarray, np.ndarray, np.ndarray],
    log_base_ng: np.ndarray,
    markers: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    basis: tuple[float, float],
    heights: tuple[tuple[float, ...], tuple[float, ...]],
    lgamma_of: np.ndarray,
    log_p_nc: np.ndarray,
    grads: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> float:
    """Log-probabilities under each type of some cells, the sum of their losses, and gradients.

    Parameters
    ----------
    rows
        First cell, first cell after the last one, and the first one that carries no loss: its
        gradients are zeros. For log-probabilities alone this is 0.
    counts
        CSR: ``indptr``, ``indices``, ``data``.
    log_base_ng
        Log mean of a count in a cell of a type that the gene is no marker of.
    markers
        Gene, type, and factor of the mean for each, gene by gene; and where those of each gene
        start, ``[g + 1]``.
    basis
        First centre, and one over the step between centres.
    heights
        Of the basis functions, as in :func:`fill_dispersions`.
    lgamma_of
        ``log Γ(k + 1)`` at ``k``.
    log_p_nc
        Holds the log-proportions of the types; the log-probabilities of the counts are added.
    grads
        Of ``log_base [n, g]`` (written), of the shifts ``[m]``, of the log-proportions ``[c]`` and
        of the moments ``[b, 2]`` (added to).
    """
    start, stop, n_real = rows
    indptr, indices, data = counts
    gene_m, type_m, factor_m, first_g = markers
    grad_base_ng, grad_shift_m, grad_type_c, moments_b2 = grads
    g = log_base_ng.shape[1]
    n_laws = g + len(gene_m)
    mu, t, tail, phi = np.empty(n_laws), np.empty(n_laws), np.empty(n_laws), np.empty(n_laws)
    slope, log_p, by_phi = np.empty(n_laws), np.empty(n_laws), np.empty(n_laws)
    by_log_mu, weight, part = np.empty(n_laws), np.empty(n_laws), np.empty(n_laws)
    law_z, x_z = np.empty(n_laws, np.int64), np.empty(n_laws)
    mu_z, phi_z = np.empty(n_laws), np.empty(n_laws)
    add_z, slope_z = np.empty(n_laws), np.empty(n_laws)
    weight_c = np.empty(log_p_nc.shape[1])
    loss = 0.0
    for n in range(start, stop):
        fill_means(log_base_ng[n], gene_m, factor_m, mu)
        fill_powers(mu, basis[0], basis[1], t, tail)
        fill_dispersions(mu, t, tail, basis, heights[0], heights[1], phi, slope)
        fill_zero_terms(mu, phi, log_p, by_phi)
        row = slice(indptr[n], indptr[n + 1])
        taken = (law_z, x_z, mu_z, phi_z)
        z = take_counts(data[row], indices[row], first_g, lgamma_of, (mu, phi), taken, log_p)
        fill_count_terms(x_z[:z], mu_z[:z], phi_z[:z], add_z[:z], slope_z[:z])
        add_at(law_z[:z], add_z[:z], log_p)
        add_up_types(log_p, gene_m, type_m, log_p_nc[n])
        if n >= n_real:
            continue
        add_at(law_z[:z], slope_z[:z], by_phi)
        loss += expected_loss(log_p_nc[n], weight_c)
        grad_type_c += weight_c
        fill_weights(weight_c, gene_m, type_m, weight)
        fill_zero_slopes(mu, phi, by_log_mu)
        fill_count_slopes(x_z[:z], mu_z[:z], phi_z[:z], add_z[:z])
        add_at(law_z[:z], add_z[:z], by_log_mu)
        weigh(weight, by_phi, slope, by_log_mu)
        give_to_parameters(by_log_mu, gene_m, grad_base_ng[n], grad_shift_m)
        weigh_tails(weight, by_phi, tail, part)
        add_moments(part, t, mu, basis, moments_b2)
    return loss
