"""Compiled loops over pairs of draws. They release the GIL; compiled code is kept on disk.

Draws are kept in tiles of a few features: those of a draw are contiguous there, so that the loops
over features are vector instructions, and a tile fits the processor's second-level cache. The
changes of a feature are then contiguous for its quantiles.

Axis suffixes: ``t`` tiles, ``r`` draws, ``g`` features of a tile, ``f`` all features, ``q`` pairs,
``l`` levels. Rows are unsigned numbers: others would be looked at for being negative.
"""

from typing import Any

import numpy as np

from scvi_dist.kernels.code_cache import cached_njit

_ATTEMPTS = 24
_FEW_VALUES = 64
"""Values that are sorted, once all others are known to be smaller or larger."""
_FEW = 16
"""Pairs whose changes are turned from rows to columns together: a line of the cache."""
_ASSOCIATIVE = {"reassoc", "contract", "nsz"}
_FINITE = {*_ASSOCIATIVE, "nnan", "ninf"}
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


@cached_njit(nogil=True, fastmath=_ASSOCIATIVE)
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


@cached_njit(nogil=True, fastmath=_ASSOCIATIVE)
def count_more(
    first_trg: np.ndarray,
    second_trg: np.ndarray,
    i1_q: np.ndarray,
    i2_q: np.ndarray,
    start: int,
    stop: int,
    found_1f: np.ndarray,
) -> None:
    """Pairs whose first scale is larger, of the features of some tiles."""
    width = first_trg.shape[2]
    for t in range(start, stop):
        first_rg, second_rg = first_trg[t], second_trg[t]
        more_g = np.zeros(width, dtype=np.int32)
        for q in range(len(i1_q)):
            r1, r2 = i1_q[q], i2_q[q]
            for g in range(width):
                more_g[g] += np.int32(first_rg[r1, g] > second_rg[r2, g])
        found_1f[0, t * width : (t + 1) * width] = more_g


@cached_njit(nogil=True)
def mean_changes(
    first_trg: np.ndarray,
    second_trg: np.ndarray,
    i1_q: np.ndarray,
    i2_q: np.ndarray,
    start: int,
    stop: int,
    pseudocount: float,
    found_1f: np.ndarray,
) -> None:
    """Mean LFC of the features of some tiles."""
    width = first_trg.shape[2]
    x_gq = np.empty((width, len(i1_q)), dtype=np.float32)
    for t in range(start, stop):
        _changes(first_trg[t], second_trg[t], i1_q, i2_q, pseudocount, x_gq)
        found_1f[0, t * width : (t + 1) * width] = describe(x_gq)[0]


@cached_njit(nogil=True)
def describe_changes(
    first_trg: np.ndarray,
    second_trg: np.ndarray,
    i1_q: np.ndarray,
    i2_q: np.ndarray,
    start: int,
    stop: int,
    pseudocount: float,
    fold: float,
    described: float,
    level_l: np.ndarray,
    found: np.ndarray,
) -> None:
    """Fill ``found [7 + 2 l, f]`` for the features of some tiles.

    Its rows are the pairs that go up by at least ``fold`` and down by more than it, with one
    pseudocount; and mean, median, standard deviation, smallest and largest value and the ends of
    the intervals of the LFC with another, ``described``.
    """
    width = first_trg.shape[2]
    x_gq = np.empty((width, len(i1_q)), dtype=np.float32)
    for t in range(start, stop):
        here = found[:, t * width : (t + 1) * width]
        _count_changes(first_trg[t], second_trg[t], i1_q, i2_q, pseudocount, fold, here)
        _changes(first_trg[t], second_trg[t], i1_q, i2_q, described, x_gq)
        here[2:7] = describe(x_gq)
        if len(level_l):
            ends = shortest_intervals(x_gq, level_l)
            for index in range(len(level_l)):
                here[7 + 2 * index] = ends[index, 0]
                here[8 + 2 * index] = ends[index, 1]


@cached_njit(nogil=True, fastmath=_ASSOCIATIVE)
def _count_changes(
    first_rg: np.ndarray,
    second_rg: np.ndarray,
    i1_q: np.ndarray,
    i2_q: np.ndarray,
    pseudocount: float,
    fold: float,
    found: np.ndarray,
) -> None:
    width = first_rg.shape[1]
    up_g, down_g = np.zeros(width, dtype=np.int32), np.zeros(width, dtype=np.int32)
    add, up, down = np.float32(pseudocount), np.float32(fold), np.float32(1.0 / fold)
    for q in range(len(i1_q)):
        r1, r2 = i1_q[q], i2_q[q]
        for g in range(width):
            u, v = first_rg[r1, g] + add, second_rg[r2, g] + add
            up_g[g] += np.int32(u >= up * v)
            down_g[g] += np.int32(u < down * v)
    found[0], found[1] = up_g, down_g


@cached_njit(nogil=True, fastmath=_ASSOCIATIVE)
def _changes(
    first_rg: np.ndarray,
    second_rg: np.ndarray,
    i1_q: np.ndarray,
    i2_q: np.ndarray,
    pseudocount: float,
    x_gq: np.ndarray,
) -> None:
    """Fill ``x_gq`` with the LFC of each pair."""
    n_pairs, width = len(i1_q), first_rg.shape[1]
    few = _FEW * width
    ratio_i = np.empty(few, dtype=np.float32)
    mantissa_i = np.empty(few, dtype=np.float32)
    x_i = np.empty(few, dtype=np.float32)
    bits_i, mantissa_bits_i = ratio_i.view(np.int32), mantissa_i.view(np.int32)
    add = np.float32(pseudocount)
    for start in range(0, n_pairs, _FEW):
        n_few = min(_FEW, n_pairs - start)
        for j in range(n_few):
            r1, r2 = i1_q[start + j], i2_q[start + j]
            for g in range(width):
                ratio_i[j * width + g] = (first_rg[r1, g] + add) / (second_rg[r2, g] + add)
        log2_of(bits_i[: n_few * width], mantissa_bits_i, mantissa_i, x_i[: n_few * width])
        for j in range(n_few):
            for g in range(width):
                x_gq[g, start + j] = x_i[j * width + g]


@cached_njit(nogil=True, fastmath=_FINITE)
def describe(x_gq: np.ndarray) -> np.ndarray:
    """float64 ``[5, g]``: mean, median, standard deviation, smallest and largest value."""
    n_genes, n_pairs = x_gq.shape
    found = np.empty((5, n_genes))
    near_q = np.empty(n_pairs + 1, dtype=np.float32)
    for g in range(n_genes):
        x_q = x_gq[g]
        low, high, total, squares = x_q[0], x_q[0], 0.0, 0.0
        shift = np.float64(x_q[0])
        for q in range(n_pairs):
            low = x_q[q] if x_q[q] < low else low
            high = x_q[q] if x_q[q] > high else high
        for q in range(n_pairs):
            d = np.float64(x_q[q]) - shift
            total += d
            squares += d * d
        mean = total / n_pairs
        found[0, g] = mean + shift
        found[2, g] = np.sqrt(max(squares / n_pairs - mean * mean, 0.0))
        found[1, g] = _median(x_q, low, high, mean + shift, found[2, g], near_q)
        found[3, g], found[4, g] = low, high
    return found


@cached_njit(nogil=True, fastmath=_ASSOCIATIVE)
def _count_below(x_q: np.ndarray, value: np.float32) -> np.int64:
    below = np.int32(0)
    for q in range(len(x_q)):
        below += np.int32(x_q[q] < value)
    return np.int64(below)


@cached_njit(nogil=True)
def _between(x_q: np.ndarray, lower: np.float32, upper: np.float32, near_q: np.ndarray) -> int:
    n_near: Any = 0
    for q in range(len(x_q)):
        # Without a branch: half of the values are below, which no processor can foresee.
        near_q[n_near] = x_q[q]
        n_near += np.int64(x_q[q] >= lower) & np.int64(x_q[q] < upper)
    return n_near


@cached_njit(nogil=True)
def _median(
    x_q: np.ndarray, low: float, high: float, mean: float, std: float, near_q: np.ndarray
) -> float:
    """Exact: values are counted until few lie between two bounds, and only those are sorted."""
    n_pairs = len(x_q)
    rank_low, rank_high = (n_pairs - 1) // 2, n_pairs // 2
    # All values are at least the lower and below the upper bound, which is infinite at first.
    lower: Any
    lower, below, upper, upto = np.float32(low), 0, np.float32(np.inf), n_pairs
    left, right = mean - 0.2 * std, mean + 0.2 * std
    for attempt in range(_ATTEMPTS):
        for guess in (np.float32(left), np.float32(right)):
            if lower < guess < upper:
                count = _count_below(x_q, guess)
                if count <= rank_low:
                    lower, below = guess, count
                elif count > rank_high:
                    upper, upto = guess, count
        if upto - below <= _FEW_VALUES:
            break
        end = min(np.float64(upper), high)
        width = (end - lower) / (upto - below)
        middle = lower + width * (rank_low + 1 - below)
        around = width * _FEW_VALUES / 4
        if attempt % 3 == 2:
            middle, around = 0.5 * (lower + end), 0.25 * (end - lower)
        left, right = middle - around, middle + around
    near = np.sort(near_q[: _between(x_q, lower, upper, near_q)])
    return 0.5 * (np.float64(near[rank_low - below]) + np.float64(near[rank_high - below]))


@cached_njit(nogil=True)
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


@cached_njit(nogil=True, fastmath=_ASSOCIATIVE)
def mean_and_largest(
    x_trg: np.ndarray, rows_r: np.ndarray, start: int, stop: int, found_2f: np.ndarray
) -> None:
    """Mean and largest scale of some draws, of the features of some tiles."""
    width = x_trg.shape[2]
    for t in range(start, stop):
        x_rg = x_trg[t]
        sum_g, largest_g = np.zeros(width), np.zeros(width, dtype=np.float32)
        for r in rows_r:
            for g in range(width):
                sum_g[g] += np.float64(x_rg[r, g])
                largest_g[g] = max(largest_g[g], x_rg[r, g])
        found_2f[0, t * width : (t + 1) * width] = sum_g / len(rows_r)
        found_2f[1, t * width : (t + 1) * width] = largest_g


@cached_njit(nogil=True)
def put_tiles(scale_rf: np.ndarray, start: int, out_trg: np.ndarray) -> None:
    """Write draws into tiles; features beyond the last one are 1."""
    n_draws, n_features = scale_rf.shape
    n_tiles, _, width = out_trg.shape
    n_whole = n_features // width
    for r in range(n_draws):
        for t in range(n_whole):
            for g in range(width):
                out_trg[t, start + r, g] = scale_rf[r, t * width + g]
        for t in range(n_whole, n_tiles):
            for g in range(width):
                f = t * width + g
                out_trg[t, start + r, g] = scale_rf[r, f] if f < n_features else np.float32(1.0)
