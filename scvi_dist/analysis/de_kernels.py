"""Compiled loops over pairs of draws. They release the GIL; compiled code is kept on disk.

A tile of genes is worked on at a time: the draws of a pair are contiguous there, so that the loops
over genes are vector instructions, and the changes of a gene are then contiguous for its quantiles.

Axis suffixes: ``r`` draws, ``q`` pairs, ``g`` genes of a tile, ``l`` levels.
"""

import numpy as np
from numba import njit

_BINS = 512
_FEW = 16
"""Pairs whose changes are turned from rows to columns together: a line of the cache."""
_ASSOCIATIVE = {"reassoc", "contract", "nsz"}
_SQRT_2 = np.float32(1.4142135)
_TO_LOG2 = np.float32(1.4426950408889634)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)
# Source: Moshier's Cephes library, logf: log(1 + x) on [sqrt(1/2) - 1, sqrt(2) - 1].
_P0, _P1, _P2 = (
    np.float32(7.0376836292e-2),
    np.float32(-1.1514610310e-1),
    np.float32(1.1676998740e-1),
)
_P3, _P4, _P5 = (
    np.float32(-1.2420140846e-1),
    np.float32(1.4249322787e-1),
    np.float32(-1.6668057665e-1),
)
_P6, _P7, _P8 = (
    np.float32(2.0000714765e-1),
    np.float32(-2.4999993993e-1),
    np.float32(3.3333331174e-1),
)


@njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def log2_of(
    bits: np.ndarray, mantissa_bits: np.ndarray, mantissa: np.ndarray, out: np.ndarray
) -> None:
    """Binary logarithms of positive normal float32 numbers, of which the bits are given as int32.

    ``mantissa`` and ``mantissa_bits`` are room, one memory as float32 and as int32. No loop reads
    and writes one memory, so that each is of vector instructions. The error is below 1e-6.
    """
    for i in range(len(out)):
        mantissa_bits[i] = (bits[i] & 0x7FFFFF) | 0x3F800000
    for i in range(len(out)):
        exponent = np.float32((bits[i] >> 23) - 127)
        m = mantissa[i]
        is_large = m > _SQRT_2
        m = m * _HALF if is_large else m
        exponent = exponent + _ONE if is_large else exponent
        f = m - _ONE
        p = ((_P0 * f + _P1) * f + _P2) * f + _P3
        p = ((p * f + _P4) * f + _P5) * f + _P6
        p = (p * f + _P7) * f + _P8
        square = f * f
        out[i] = (f + (p * f * square - _HALF * square)) * _TO_LOG2 + exponent


@njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def count_more(
    first_rg: np.ndarray, second_rg: np.ndarray, i1_q: np.ndarray, i2_q: np.ndarray
) -> np.ndarray:
    """int32 ``[g]``: pairs whose first scale is larger."""
    more_g = np.zeros(first_rg.shape[1], dtype=np.int32)
    for q in range(len(i1_q)):
        u_g, v_g = first_rg[i1_q[q]], second_rg[i2_q[q]]
        for g in range(len(more_g)):
            more_g[g] += np.int32(u_g[g] > v_g[g])
    return more_g


@njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def count_changes(
    first_rg: np.ndarray,
    second_rg: np.ndarray,
    i1_q: np.ndarray,
    i2_q: np.ndarray,
    pseudocount: float,
    fold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """int32 ``[g]``: pairs that go up by at least a factor, and down by more than it."""
    n_genes = first_rg.shape[1]
    up_g, down_g = np.zeros(n_genes, dtype=np.int32), np.zeros(n_genes, dtype=np.int32)
    add, up, down = np.float32(pseudocount), np.float32(fold), np.float32(1.0 / fold)
    for q in range(len(i1_q)):
        u_g, v_g = first_rg[i1_q[q]], second_rg[i2_q[q]]
        for g in range(n_genes):
            u, v = u_g[g] + add, v_g[g] + add
            up_g[g] += np.int32(u >= up * v)
            down_g[g] += np.int32(u < down * v)
    return up_g, down_g


@njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def changes(
    first_rg: np.ndarray,
    second_rg: np.ndarray,
    i1_q: np.ndarray,
    i2_q: np.ndarray,
    pseudocount: float,
) -> np.ndarray:
    """float32 ``[g, q]``: the LFC of each pair."""
    n_genes, n_pairs = first_rg.shape[1], len(i1_q)
    x_gq = np.empty((n_genes, n_pairs), dtype=np.float32)
    ratio_g = np.empty(n_genes, dtype=np.float32)
    mantissa_g = np.empty(n_genes, dtype=np.float32)
    bits_g, mantissa_bits_g = ratio_g.view(np.int32), mantissa_g.view(np.int32)
    few_qg = np.empty((_FEW, n_genes), dtype=np.float32)
    add = np.float32(pseudocount)
    for start in range(0, n_pairs, _FEW):
        n_few = min(_FEW, n_pairs - start)
        for j in range(n_few):
            u_g, v_g = first_rg[i1_q[start + j]], second_rg[i2_q[start + j]]
            for g in range(n_genes):
                ratio_g[g] = (u_g[g] + add) / (v_g[g] + add)
            log2_of(bits_g, mantissa_bits_g, mantissa_g, few_qg[j])
        for g in range(n_genes):
            for j in range(n_few):
                x_gq[g, start + j] = few_qg[j, g]
    return x_gq


@njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def mean_changes(x_gq: np.ndarray) -> np.ndarray:
    """float64 ``[g]``."""
    means = np.empty(len(x_gq))
    for g in range(len(x_gq)):
        total = 0.0
        for value in x_gq[g]:
            total += np.float64(value)
        means[g] = total / x_gq.shape[1]
    return means


@njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def describe(x_gq: np.ndarray) -> np.ndarray:
    """float64 ``[5, g]``: mean, median, standard deviation, smallest and largest value."""
    n_genes, n_pairs = x_gq.shape
    found = np.empty((5, n_genes))
    place_q = np.empty(n_pairs, dtype=np.int32)
    near_q = np.empty(n_pairs, dtype=np.float32)
    for g in range(n_genes):
        x_q = x_gq[g]
        low, high, total, squares = x_q[0], x_q[0], 0.0, 0.0
        shift = np.float64(x_q[0])
        for q in range(n_pairs):
            low = min(low, x_q[q])
            high = max(high, x_q[q])
        for q in range(n_pairs):
            d = np.float64(x_q[q]) - shift
            total += d
            squares += d * d
        mean = total / n_pairs
        found[0, g] = mean + shift
        found[1, g] = _median(x_q, low, high, place_q, near_q)
        found[2, g] = np.sqrt(max(squares / n_pairs - mean * mean, 0.0))
        found[3, g], found[4, g] = low, high
    return found


@njit(nogil=True, cache=True)
def _median(
    x_q: np.ndarray, low: float, high: float, place_q: np.ndarray, near_q: np.ndarray
) -> float:
    """Exact: the values are counted by bins, and only those of the middle bins sorted."""
    n_pairs = len(x_q)
    if not high > low:
        return np.float64(low)
    counts = np.zeros(_BINS, dtype=np.int32)
    per_bin = np.float32((_BINS - 1) / (high - low))
    start = np.float32(low)
    for q in range(n_pairs):
        place_q[q] = np.int32((x_q[q] - start) * per_bin)
    for q in range(n_pairs):
        counts[place_q[q]] += 1
    rank_low, rank_high = (n_pairs - 1) // 2, n_pairs // 2
    before, bin_low = 0, 0
    while before + counts[bin_low] <= rank_low:
        before += counts[bin_low]
        bin_low += 1
    bin_high, upto = bin_low, before + counts[bin_low]
    while upto <= rank_high:
        bin_high += 1
        upto += counts[bin_high]
    n_near = 0
    for q in range(n_pairs):
        if bin_low <= place_q[q] <= bin_high:
            near_q[n_near] = x_q[q]
            n_near += 1
    near = np.sort(near_q[:n_near])
    return 0.5 * (np.float64(near[rank_low - before]) + np.float64(near[rank_high - before]))


@njit(nogil=True, cache=True)
def shortest_intervals(x_gq: np.ndarray, level_l: np.ndarray) -> np.ndarray:
    """float64 ``[l, 2, g]``: ends of the shortest interval with each share of the values."""
    n_genes, n_pairs = x_gq.shape
    found = np.empty((len(level_l), 2, n_genes))
    for g in range(n_genes):
        sorted_q = np.sort(x_gq[g])
        for index in range(len(level_l)):
            inside = int(np.floor(level_l[index] * n_pairs))
            best, width = 0, np.inf
            for q in range(n_pairs - inside):
                if sorted_q[q + inside] - sorted_q[q] < width:
                    best, width = q, sorted_q[q + inside] - sorted_q[q]
            found[index, 0, g] = sorted_q[best]
            found[index, 1, g] = sorted_q[best + inside]
    return found


@njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def mean_and_largest(x_rg: np.ndarray, rows_r: np.ndarray) -> np.ndarray:
    """float64 ``[2, g]``: mean and largest scale of some draws."""
    found = np.zeros((2, x_rg.shape[1]))
    for r in rows_r:
        x_g = x_rg[r]
        for g in range(len(x_g)):
            found[0, g] += np.float64(x_g[g])
            found[1, g] = max(found[1, g], np.float64(x_g[g]))
    found[0] /= len(rows_r)
    return found
