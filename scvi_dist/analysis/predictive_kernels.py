"""Compiled sums over drawn counts: one look at each number, next to nothing for zeros.

Axis suffixes: ``n`` cells, ``f`` features, ``s`` samples, ``c`` groups, ``b`` bins, ``i``
intervals. Sums are float64. The loops release the GIL.
"""

import math

import numpy as np

from scvi_dist.kernels.code_cache import cached_njit


@cached_njit(nogil=True)
def add_moments(
    x_snf: np.ndarray,
    sum_sf: np.ndarray,
    square_sf: np.ndarray,
    nonzero_sf: np.ndarray,
    cell_sum_ns: np.ndarray,
    cell_square_ns: np.ndarray,
) -> None:
    """Add values, their squares and how many are not zero to the sums of features and of cells."""
    n_samples, n_cells, n_features = x_snf.shape
    for s in range(n_samples):
        for n in range(n_cells):
            total, square = 0.0, 0.0
            for f in range(n_features):
                x = float(x_snf[s, n, f])
                if x != 0.0:
                    total += x
                    square += x * x
                    sum_sf[s, f] += x
                    square_sf[s, f] += x * x
                    nonzero_sf[s, f] += 1
            cell_sum_ns[n, s] = total
            cell_square_ns[n, s] = square


@cached_njit(nogil=True)
def add_coverage(
    counts_nf: np.ndarray,
    x_snf: np.ndarray,
    below_i: np.ndarray,
    above_i: np.ndarray,
    inside_i: np.ndarray,
) -> None:
    """Count the observed values that lie between two quantiles of their draws, ends included.

    Quantiles ``below`` and ``above`` are interpolated linearly between order statistics, with
    NumPy's arithmetic, so that ties with a count are decided as NumPy decides them.
    """
    n_samples, n_cells, n_features = x_snf.shape
    n_intervals = len(below_i)
    drawn = np.empty(n_samples)
    zero_in_zeros = 0
    for n in range(n_cells):
        for f in range(n_features):
            count = float(counts_nf[n, f])
            is_empty = True
            for s in range(n_samples):
                drawn[s] = x_snf[s, n, f]
                is_empty &= drawn[s] == 0.0
            if is_empty:
                zero_in_zeros += count == 0.0
                continue
            _sort(drawn)
            for i in range(n_intervals):
                if _quantile(drawn, below_i[i]) <= count <= _quantile(drawn, above_i[i]):
                    inside_i[i] += 1
    for i in range(n_intervals):
        inside_i[i] += zero_in_zeros


@cached_njit(nogil=True)
def _sort(values: np.ndarray) -> None:
    """In place, by insertion: there are few values."""
    for i in range(1, len(values)):
        value = values[i]
        j = i
        while j > 0 and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value


@cached_njit(nogil=True)
def _quantile(ordered: np.ndarray, share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    if low >= len(ordered) - 1:
        return ordered[-1]
    part = place - low
    first, second = ordered[low], ordered[low + 1]
    if part >= 0.5:
        return second - (second - first) * (1.0 - part)
    return first + (second - first) * part


@cached_njit(nogil=True)
def add_group_moments(
    x_snf: np.ndarray,
    group_n: np.ndarray,
    target_sum: float,
    sum_scf: np.ndarray,
    square_scf: np.ndarray,
) -> None:
    """Add ``log(1 + target · x / Σ x)`` and its square to the sums of each cell's group."""
    n_samples, n_cells, n_features = x_snf.shape
    for s in range(n_samples):
        for n in range(n_cells):
            factor = _factor(x_snf[s, n], target_sum)
            c = group_n[n]
            for f in range(n_features):
                if x_snf[s, n, f] != 0.0:
                    value = math.log1p(factor * x_snf[s, n, f])
                    sum_scf[s, c, f] += value
                    square_scf[s, c, f] += value * value


@cached_njit(nogil=True)
def write_normalised(x_snf: np.ndarray, target_sum: float, out_nsf: np.ndarray) -> None:
    """Write ``log(1 + target · x / Σ x)`` of each cell."""
    n_samples, n_cells, n_features = x_snf.shape
    for s in range(n_samples):
        for n in range(n_cells):
            factor = _factor(x_snf[s, n], target_sum)
            for f in range(n_features):
                x = x_snf[s, n, f]
                out_nsf[n, s, f] = math.log1p(factor * x) if x != 0.0 else 0.0


@cached_njit(nogil=True)
def add_histogram(
    x_snf: np.ndarray, group_n: np.ndarray, target_sum: float, histogram_scbf: np.ndarray
) -> None:
    """Count ``log(1 + target · x / Σ x)`` in equal bins up to its maximum; zeros go nowhere."""
    n_samples, n_cells, n_features = x_snf.shape
    n_bins = histogram_scbf.shape[2]
    per_unit = n_bins / math.log1p(target_sum)
    for s in range(n_samples):
        for n in range(n_cells):
            factor = _factor(x_snf[s, n], target_sum)
            c = group_n[n]
            for f in range(n_features):
                x = x_snf[s, n, f]
                if x != 0.0:
                    b = int(per_unit * math.log1p(factor * x))
                    histogram_scbf[s, c, min(max(b, 0), n_bins - 1), f] += 1


@cached_njit(nogil=True)
def _factor(x_f: np.ndarray, target_sum: float) -> float:
    """What the counts of a cell are multiplied by; a cell without counts stays as it is."""
    total = 0.0
    for f in range(len(x_f)):
        total += x_f[f]
    return target_sum / total if total > 0.0 else 1.0
