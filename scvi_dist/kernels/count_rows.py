"""Compiled loops over the cells of a block: the loss of each and its derivatives by the logits.

Axis suffixes: ``n`` cells of the minibatch, ``r`` of the block, ``g`` genes, ``t`` kinds of cells
with dispersions of their own, ``m`` counts of a cell.
"""

from typing import NamedTuple

import numpy as np

from scvi_dist.kernels.compiled import compiled, part
from scvi_dist.kernels.count_terms import (
    EPS,
    Rows,
    Scratch,
    counted,
    n_padded,
    nb_counts,
    poisson_counts,
    put_counts,
    put_logits,
    take_counts,
    take_logits,
)
from scvi_dist.kernels.dense_rows import (
    STRETCH,
    add_row,
    dispersion_row,
    exp_row,
    largest,
    log_theta_slopes,
    nb_zeros,
    nb_zeros_value,
    softmax_slopes,
    softplus_row,
    softplus_slopes,
    sum_row,
    zinb_zeros,
    zinb_zeros_value,
)
from scvi_dist.kernels.math import exp


class CellArrays(NamedTuple):
    """What there is of each cell of the minibatch, ``[n]``."""

    log_size: np.ndarray
    """Logarithm of what the scales are multiplied by."""
    weight: np.ndarray
    """Derivative of the objective by the cell's loss; 0 for padding."""
    group: np.ndarray
    """int64: row of the dispersions; ``[0]`` where it is the first one."""
    loss: np.ndarray
    """Filled."""
    size_slope: np.ndarray
    """Filled: derivative of the objective by the log size."""


class Dispersions(NamedTuple):
    """``θ``, ``1 / (θ + ε)`` and ``θ + ε``; ``[t, g]``, or a row to fill for each cell."""

    theta: np.ndarray
    inverse: np.ndarray
    padded: np.ndarray


class GeneSums(NamedTuple):
    """Derivatives that are summed over the cells."""

    theta: np.ndarray
    """``[t, g]``; by ``θ``."""
    bias: np.ndarray
    """``[g]``, as are the others; by the bias of each head."""
    dropout_bias: np.ndarray
    dispersion_bias: np.ndarray


@part()
def _scale(logits: np.ndarray, scale: np.ndarray, is_softmax: bool) -> float:
    """Fill the scales; what they are to be divided by."""
    if not is_softmax:
        softplus_row(logits, scale)
        return 1.0
    total, high = 0.0, largest(logits)
    for a in range(0, scale.size, STRETCH):
        b = a + STRETCH
        total += float(exp_row(logits[a:b], high, scale[a:b]))
    return total


@part()
def _finish(
    logits: np.ndarray,
    scratch: Scratch,
    factor: float,
    weight: float,
    shift: float,
    is_softmax: bool,
    bias_sum: np.ndarray,
) -> None:
    """From slopes by the mean to slopes by the logits."""
    real = logits.dtype.type
    if is_softmax:
        f, s = real(factor * weight), real(shift * weight)
        softmax_slopes(scratch.scale, scratch.slope, f, s, logits, bias_sum)
    else:
        softplus_slopes(scratch.slope, real(factor * weight), logits, bias_sum)


@part()
def _nb_dense(
    scratch: Scratch,
    dispersion: Dispersions,
    factor: float,
    weight: float,
    theta_sum: np.ndarray,
    dropout: np.ndarray,
) -> tuple[float, float]:
    """Loss of all zeros, and the sum of mean times slope; without ``theta_sum`` the loss alone."""
    scale, slope = scratch.scale, scratch.slope
    f, w = scale.dtype.type(factor), scale.dtype.type(weight)
    loss, total = 0.0, 0.0
    for a in range(0, scale.size, STRETCH):
        b = a + STRETCH
        s, theta, inverse = scale[a:b], dispersion.theta[a:b], dispersion.inverse[a:b]
        if not theta_sum.size:
            if dropout.size:
                loss += float(zinb_zeros_value(s, theta, inverse, f, dropout[a:b]))
            else:
                loss += float(nb_zeros_value(s, theta, inverse, f))
            continue
        padded, sums = dispersion.padded[a:b], theta_sum[a:b]
        if dropout.size:
            rest = slope[a:b], sums, dropout[a:b], scratch.stretch
            part = zinb_zeros(s, theta, inverse, padded, f, w, *rest)
        else:
            part = nb_zeros(s, theta, inverse, padded, f, w, slope[a:b], sums)
        loss += float(part[0])
        total += float(part[1])
    return loss, total


@compiled()
def fill_dispersions(log_theta_tg: np.ndarray, table: Dispersions) -> None:
    """Fill the table from the logarithms of the dispersions."""
    for t in range(len(log_theta_tg)):
        rows = table.theta[t], table.inverse[t], table.padded[t]
        dispersion_row(log_theta_tg[t], *rows, log_theta_tg.dtype.type(EPS))


@compiled()
def nb_rows(
    span: tuple[int, int, int],
    logits_rg: np.ndarray,
    dropout_rg: np.ndarray,
    log_theta_rg: np.ndarray,
    rows: Rows,
    cells: CellArrays,
    dispersions: Dispersions,
    sums: GeneSums,
    scratch: Scratch,
    is_softmax: bool,
    wants_slopes: bool,
) -> None:
    """Losses of some cells under a (zero-inflated) negative binomial law.

    Parameters
    ----------
    span
        First cell, one after the last, and the cell that the block begins with.
    logits_rg, dropout_rg, log_theta_rg
        Logits of the scales, of extra zeros (``[0, 0]`` where there are none) and logarithms of
        the dispersions (where cells have their own). Each becomes the derivative of the objective.
    """
    start, stop, first = span
    nothing = scratch.scale[:0]
    for n in range(start, stop):
        r = n - first
        logits = logits_rg[r]
        weight = float(cells.weight[n]) if wants_slopes else 0.0
        has_slopes = weight != 0.0
        kind = cells.group[n] if cells.group.size else 0
        if log_theta_rg.size:
            kind = 0
            dispersion_row(
                log_theta_rg[r],
                dispersions.theta[0],
                dispersions.inverse[0],
                dispersions.padded[0],
                logits.dtype.type(EPS),
            )
            # Their derivatives are added up in the same place.
            log_theta_rg[r, :] = 0.0
        own = Dispersions(
            dispersions.theta[kind], dispersions.inverse[kind], dispersions.padded[kind]
        )
        dropout = dropout_rg[r] if dropout_rg.size else nothing
        theta_sum = nothing
        if has_slopes:
            theta_sum = log_theta_rg[r] if log_theta_rg.size else sums.theta[kind]
        divisor = _scale(logits, scratch.scale, is_softmax)
        factor = exp(float(cells.log_size[n])) / divisor
        least = EPS if dropout_rg.size else 0.0
        m = take_counts(rows, n, least, factor, own.theta, scratch)
        loss, total = nb_counts(scratch.counts, m)
        if dropout_rg.size:
            take_logits(dropout, scratch, m)
            loss += counted(scratch.logits[: n_padded(m)])
        zeros = _nb_dense(scratch, own, factor, weight, theta_sum, dropout)
        cells.loss[n] = loss + zeros[0]
        if not has_slopes:
            logits[:] = 0.0
            dropout[:] = 0.0
            cells.size_slope[n] = 0.0
            continue
        put_counts(scratch, m, weight, theta_sum)
        total += zeros[1]
        cells.size_slope[n] = weight * total
        _finish(logits, scratch, factor, weight, total / divisor, is_softmax, sums.bias)
        if dropout_rg.size:
            put_logits(dropout, scratch, m, weight)
            add_row(dropout, sums.dropout_bias)
        if log_theta_rg.size:
            log_theta_slopes(own.theta, log_theta_rg[r], sums.dispersion_bias)


@compiled()
def poisson_rows(
    span: tuple[int, int, int],
    logits_rg: np.ndarray,
    rows: Rows,
    cells: CellArrays,
    sums: GeneSums,
    scratch: Scratch,
    is_softmax: bool,
    wants_slopes: bool,
) -> None:
    """Losses of some cells under a Poisson law; arguments as for :func:`nb_rows`."""
    start, stop, first = span
    nothing = scratch.scale[:0]
    for n in range(start, stop):
        logits = logits_rg[n - first]
        divisor = _scale(logits, scratch.scale, is_softmax)
        factor = exp(float(cells.log_size[n])) / divisor
        mean = 0.0
        for a in range(0, logits.size, STRETCH):
            mean += float(sum_row(scratch.scale[a : a + STRETCH]))
        mean *= factor
        m = take_counts(rows, n, 0.0, factor, nothing, scratch)
        loss, total = poisson_counts(scratch.counts, m)
        cells.loss[n] = loss + mean
        weight = float(cells.weight[n]) if wants_slopes else 0.0
        if weight == 0.0:
            logits[:] = 0.0
            cells.size_slope[n] = 0.0
            continue
        scratch.slope[:] = 0.0
        put_counts(scratch, m, weight, nothing)
        cells.size_slope[n] = weight * (mean + total)
        if not is_softmax:
            # The sum of the means of a softmax does not depend on the logits.
            for g in range(logits.size):
                scratch.slope[g] += 1.0
        _finish(logits, scratch, factor, weight, total / divisor, is_softmax, sums.bias)
