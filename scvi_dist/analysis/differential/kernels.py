"""Compiled loops over pairs of draws. They release the GIL; compiled code is kept on disk.

Draws are kept in tiles of as many features as a vector has lanes: those of a draw are one line of
the processor's cache, and all of a tile fit into its second level with the changes of the pairs.
Statistics of the features are lanes of variables; no feature's values are brought together but the
few around its median.

Axis suffixes: ``t`` tiles, ``r`` draws, ``g`` features of a tile, ``f`` all features, ``q`` pairs,
``l`` levels.
"""

from typing import Any

import numpy as np

from scvi_dist.kernels.compiled import compiled, part
from scvi_dist.kernels.lanes import (
    LANES,
    any_of,
    fill,
    larger,
    load,
    log2,
    ones,
    prefetch,
    smaller,
    store,
    widened,
)

_ATTEMPTS = 24
_FEW = 48
"""Values around a median that are sorted, once all others are known to be smaller or larger."""
_GUESSES = (-2.5, -0.75, 0.75, 2.5)
_FIRST_SPREAD, _LATER_SPREAD, _HALVING_SPREAD = 0.12, _FEW / 4, 0.15
_INFINITE = np.float32(np.inf)


@compiled()
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
    more_g = np.empty(LANES, dtype=np.int32)
    for t in range(start, stop):
        at1, at2 = t * first_trg.shape[1], t * second_trg.shape[1]
        more = fill(np.int32(0))
        for q in range(len(i1_q)):
            u = load(first_trg, (at1 + np.int64(i1_q[q])) * LANES)
            v = load(second_trg, (at2 + np.int64(i2_q[q])) * LANES)
            more += ones(u > v)
        store(more_g, 0, more)
        found_1f[0, t * LANES : (t + 1) * LANES] = more_g


@compiled()
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
    x_qg = _lines(len(i1_q))
    count_2g, described = np.empty((2, LANES), dtype=np.int32), np.empty((5, LANES))
    for t in range(start, stop):
        pairs = first_trg, second_trg, i1_q, i2_q, t
        _compare(pairs, (pseudocount, 1.0, pseudocount), x_qg, count_2g)
        _describe(x_qg, described)
        found_1f[0, t * LANES : (t + 1) * LANES] = described[0]


@compiled()
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
    x_qg = _lines(len(i1_q))
    count_2g, described_5g = np.empty((2, LANES), dtype=np.int32), np.empty((5, LANES))
    near_gk = np.empty((LANES, _FEW + 1), dtype=np.float32)
    for t in range(start, stop):
        here = found[:, t * LANES : (t + 1) * LANES]
        pairs = first_trg, second_trg, i1_q, i2_q, t
        _compare(pairs, (pseudocount, fold, described), x_qg, count_2g)
        here[:2] = count_2g
        _describe(x_qg, described_5g)
        _find_medians(x_qg, described_5g, near_gk)
        here[2:7] = described_5g
        _find_intervals(x_qg, level_l, here[7:])


@compiled()
def describe(
    x_tqg: np.ndarray, start: int, stop: int, level_l: np.ndarray, found: np.ndarray
) -> None:
    """As :func:`describe_changes`, of changes that are there: ``found [5 + 2 l, f]``."""
    described_5g = np.empty((5, LANES))
    near_gk = np.empty((LANES, _FEW + 1), dtype=np.float32)
    for t in range(start, stop):
        here = found[:, t * LANES : (t + 1) * LANES]
        _describe(x_tqg[t], described_5g)
        _find_medians(x_tqg[t], described_5g, near_gk)
        here[:5] = described_5g
        _find_intervals(x_tqg[t], level_l, here[5:])


@part()
def _lines(n: int) -> Any:
    """float32 ``[n, LANES]``, each row of which is one line of the cache."""
    room = np.empty((n + 1) * LANES, dtype=np.float32)
    skipped = -room.ctypes.data % (4 * LANES) // 4
    return room[skipped : skipped + n * LANES].reshape(n, LANES)


@part()
def _compare(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int],
    bounds: tuple[float, float, float],
    x_qg: np.ndarray,
    count_2g: np.ndarray,
) -> None:
    """Fill ``x_qg`` with the LFC of each pair of a tile, and count those that go up and down."""
    first_trg, second_trg, i1_q, i2_q, t = pairs
    pseudocount, fold, described = bounds
    n1 = first_trg.shape[1]
    at1, at2 = t * n1, t * second_trg.shape[1]
    add, also = fill(np.float32(pseudocount)), fill(np.float32(described))
    upwards, downwards = fill(np.float32(fold)), fill(np.float32(1.0 / fold))
    up, down = fill(np.int32(0)), fill(np.int32(0))
    for q in range(len(i1_q)):
        u = load(first_trg, (at1 + np.int64(i1_q[q])) * LANES)
        v = load(second_trg, (at2 + np.int64(i2_q[q])) * LANES)
        # In this order no line of the next tile is waited for; in that of the pairs each is.
        prefetch(first_trg, (at1 + n1 + min(q, n1 - 1)) * LANES)
        more, than = u + add, v + add
        up += ones(more >= upwards * than)
        down += ones(more < downwards * than)
        store(x_qg, q * LANES, log2((u + also) / (v + also)))
    store(count_2g, 0, up)
    store(count_2g, LANES, down)


@part()
def _describe(x_qg: np.ndarray, found_5g: np.ndarray) -> None:
    """Mean, standard deviation, smallest and largest value: rows 0, 2, 3 and 4."""
    first = load(x_qg, 0)
    low, high, shift = first, first, widened(first)
    total, squares = fill(0.0), fill(0.0)
    for q in range(len(x_qg)):
        x = load(x_qg, q * LANES)
        low, high = smaller(x, low), larger(x, high)
        d = widened(x) - shift
        total += d
        squares += d * d
    store(found_5g, 0, total)
    store(found_5g, 2 * LANES, squares)
    store(found_5g, 3 * LANES, widened(low))
    store(found_5g, 4 * LANES, widened(high))
    for g in range(LANES):
        mean = found_5g[0, g] / len(x_qg)
        found_5g[2, g] = np.sqrt(max(found_5g[2, g] / len(x_qg) - mean * mean, 0.0))
        found_5g[0, g] = mean + np.float64(x_qg[0, g])


@part()
def _find_medians(x_qg: np.ndarray, found_5g: np.ndarray, near_gk: np.ndarray) -> None:
    """Row 1 from the others. Exact: values are counted until few lie between two bounds."""
    n_pairs = len(x_qg)
    rank_low, rank_high = (n_pairs - 1) // 2, n_pairs // 2
    # All values are at least the lower and below the upper bound, which is infinite at first.
    lower_g, upper_g = found_5g[3].astype(np.float32), np.full(LANES, _INFINITE)
    below_g, upto_g = np.zeros(LANES, dtype=np.int32), np.full(LANES, np.int32(n_pairs))
    guess_cg = np.empty((len(_GUESSES), LANES), dtype=np.float32)
    count_cg = np.empty((len(_GUESSES), LANES), dtype=np.int32)
    for attempt in range(_ATTEMPTS):
        if (upto_g - below_g).max() <= _FEW:
            break
        for g in range(LANES):
            end = min(np.float64(upper_g[g]), found_5g[4, g])
            width = (end - lower_g[g]) / (upto_g[g] - below_g[g])
            middle, around = lower_g[g] + width * (rank_low + 1 - below_g[g]), width * _LATER_SPREAD
            if attempt == 0:
                middle, around = found_5g[0, g], found_5g[2, g] * _FIRST_SPREAD
            elif attempt % 3 == 0:
                middle, around = 0.5 * (lower_g[g] + end), _HALVING_SPREAD * (end - lower_g[g])
            for c in range(len(_GUESSES)):
                guess_cg[c, g] = np.float32(middle + around * _GUESSES[c])
        _count_below(x_qg, guess_cg, count_cg)
        for g in range(LANES):
            for c in range(len(_GUESSES)):
                guess, count = guess_cg[c, g], count_cg[c, g]
                if count <= rank_low and guess > lower_g[g]:
                    lower_g[g], below_g[g] = guess, count
                elif count > rank_high and guess < upper_g[g]:
                    upper_g[g], upto_g[g] = guess, count
    n_near_g = _collect(x_qg, lower_g, upper_g, upto_g - below_g, near_gk)
    for g in range(LANES):
        is_finite = np.isfinite(found_5g[0, g])
        if not is_finite and np.isnan(x_qg[:, g]).any():
            found_5g[1, g] = np.nan
        elif not is_finite or upto_g[g] - below_g[g] > _FEW:
            # Infinite values lie outside of all bounds.
            found_5g[1, g] = np.median(x_qg[:, g].astype(np.float64))
        else:
            near_k = near_gk[g, : n_near_g[g]]
            near_k.sort()
            pair = near_k[rank_low - below_g[g]], near_k[rank_high - below_g[g]]
            found_5g[1, g] = 0.5 * (np.float64(pair[0]) + np.float64(pair[1]))


@part()
def _count_below(x_qg: np.ndarray, guess_cg: np.ndarray, count_cg: np.ndarray) -> None:
    guess0, guess1 = load(guess_cg, 0), load(guess_cg, LANES)
    guess2, guess3 = load(guess_cg, 2 * LANES), load(guess_cg, 3 * LANES)
    count0, count1 = fill(np.int32(0)), fill(np.int32(0))
    count2, count3 = fill(np.int32(0)), fill(np.int32(0))
    for q in range(len(x_qg)):
        x = load(x_qg, q * LANES)
        count0 += ones(x < guess0)
        count1 += ones(x < guess1)
        count2 += ones(x < guess2)
        count3 += ones(x < guess3)
    store(count_cg, 0, count0)
    store(count_cg, LANES, count1)
    store(count_cg, 2 * LANES, count2)
    store(count_cg, 3 * LANES, count3)


@part()
def _collect(
    x_qg: np.ndarray,
    lower_g: np.ndarray,
    upper_g: np.ndarray,
    inside_g: np.ndarray,
    near_gk: np.ndarray,
) -> Any:
    """Put values between the bounds into ``near_gk``, of features that have few; their numbers."""
    n_near_g = np.zeros(LANES, dtype=np.int64)
    for g in range(LANES):
        if inside_g[g] > _FEW:
            lower_g[g] = _INFINITE
    lower, upper = load(lower_g, 0), load(upper_g, 0)
    for q in range(len(x_qg)):
        x = load(x_qg, q * LANES)
        if any_of((x >= lower) & (x < upper)):
            for g in range(LANES):
                # Without a branch: what is not between is written over.
                near_gk[g, n_near_g[g]] = x_qg[q, g]
                is_near = (x_qg[q, g] >= lower_g[g]) & (x_qg[q, g] < upper_g[g])
                n_near_g[g] += np.int64(is_near)
    return n_near_g


@part()
def _find_intervals(x_qg: np.ndarray, level_l: np.ndarray, found: np.ndarray) -> None:
    """Ends of the shortest interval with each share of the values: rows ``[2 l, g]``."""
    if len(level_l) == 0:
        return
    n_pairs = len(x_qg)
    for g in range(LANES):
        sorted_q = np.sort(x_qg[:, g])
        for index in range(len(level_l)):
            inside = int(np.floor(level_l[index] * n_pairs))
            best, width = 0, np.inf
            for q in range(n_pairs - inside):
                if sorted_q[q + inside] - sorted_q[q] < width:
                    best, width = q, sorted_q[q + inside] - sorted_q[q]
            found[2 * index, g] = sorted_q[best]
            found[2 * index + 1, g] = sorted_q[best + inside]


@compiled()
def mean_and_largest(
    x_trg: np.ndarray, rows_r: np.ndarray, start: int, stop: int, found_2f: np.ndarray
) -> None:
    """Mean and largest scale of some draws, of the features of some tiles."""
    sum_g, largest_g = np.empty(LANES), np.empty(LANES, dtype=np.float32)
    for t in range(start, stop):
        at = t * x_trg.shape[1]
        total, largest = fill(0.0), fill(np.float32(0.0))
        for r in rows_r:
            x = load(x_trg, (at + np.int64(r)) * LANES)
            total += widened(x)
            largest = larger(x, largest)
        store(sum_g, 0, total)
        store(largest_g, 0, largest)
        found_2f[0, t * LANES : (t + 1) * LANES] = sum_g / len(rows_r)
        found_2f[1, t * LANES : (t + 1) * LANES] = largest_g
