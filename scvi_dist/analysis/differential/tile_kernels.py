"""Compiled loops that write draws into tiles, of as many features as a vector has lanes.

A tile has the draws of its features one after the other. Some draws are written together, so that
what is written next to each other is more than a line of the processor's cache.

Axis suffixes: ``t`` tiles, ``r`` draws, ``g`` features of a tile, ``f`` all features.
"""

from typing import Any

import numpy as np

from scvi_dist.kernels.compiled import compiled, part
from scvi_dist.kernels.lanes import LANES, exp, fill, larger, load, store, widened
from scvi_dist.kernels.math import exp as exp_of_one

TOGETHER = 16
"""Draws that are written together: those of 10,000 features fit into the second-level cache."""


@compiled()
def put_scales(
    scale_rf: np.ndarray, first: int, stop: int, start: int, out_trg: np.ndarray
) -> None:
    """Write some draws into tiles, from draw ``start`` on; features beyond the last one are 1."""
    factor_r = np.ones(TOGETHER, dtype=np.float32)
    for begin in range(first, stop, TOGETHER):
        end = min(begin + TOGETHER, stop)
        _put(scale_rf, begin, end, factor_r, start + begin - first, out_trg)


@compiled()
def put_proportions(
    logits_rf: np.ndarray, first: int, stop: int, start: int, out_trg: np.ndarray
) -> None:
    """As :func:`put_scales`, of the softmax of the logits; these are written over."""
    factor_r = np.empty(TOGETHER, dtype=np.float32)
    for begin in range(first, stop, TOGETHER):
        end = min(begin + TOGETHER, stop)
        for r in range(begin, end):
            factor_r[r - begin] = np.float32(1.0 / _exponentiate(logits_rf, r))
        _put(logits_rf, begin, end, factor_r, start + begin - first, out_trg)


@part()
def _exponentiate(logits_rf: np.ndarray, r: int) -> Any:
    """Take a row's exponentials, but for a factor that keeps them finite; their sum."""
    n_features = logits_rf.shape[1]
    begin, n_whole = r * n_features, n_features // LANES * LANES
    most_g = np.empty(LANES, dtype=np.float32)
    most = fill(np.float32(-np.inf))
    for f in range(0, n_whole, LANES):
        most = larger(load(logits_rf, begin + f), most)
    store(most_g, 0, most)
    largest = most_g.max()
    for f in range(n_whole, n_features):
        largest = max(largest, logits_rf[r, f])
    shift, total = fill(largest), fill(0.0)
    for f in range(0, n_whole, LANES):
        power = exp(load(logits_rf, begin + f) - shift)
        store(logits_rf, begin + f, power)
        total += widened(power)
    sum_g = np.empty(LANES)
    store(sum_g, 0, total)
    whole = sum_g.sum()
    for f in range(n_whole, n_features):
        logits_rf[r, f] = exp_of_one(logits_rf[r, f] - largest)
        whole += np.float64(logits_rf[r, f])
    return whole


@part()
def _put(
    value_rf: np.ndarray,
    begin: int,
    end: int,
    factor_r: np.ndarray,
    start: int,
    out_trg: np.ndarray,
) -> None:
    """Write rows ``begin … end``, each times its factor."""
    n_features, (n_tiles, n_draws, _) = value_rf.shape[1], out_trg.shape
    n_whole = n_features // LANES
    for t in range(n_whole):
        at, value_at = (t * n_draws + start - begin) * LANES, t * LANES
        for r in range(begin, end):
            value = load(value_rf, r * n_features + value_at) * factor_r[r - begin]
            store(out_trg, at + r * LANES, value)
    for t in range(n_whole, n_tiles):
        for r in range(begin, end):
            for g in range(LANES):
                f = t * LANES + g
                value = value_rf[r, f] * factor_r[r - begin] if f < n_features else np.float32(1.0)
                out_trg[t, start + r - begin, g] = value
