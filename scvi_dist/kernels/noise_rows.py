"""Compiled loops of noise whose every number is a hash of the place that it is for.

A place is that of an element in a draw for a step's whole minibatch; loops fill the rows that are
asked for and compute no others.

Axis suffixes: ``s`` samples, ``n`` cells, ``k`` columns.

Source
------
Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
Box & Muller 1958, "A note on the generation of random normal deviates".
"""

import numpy as np

from scvi_dist.kernels.compiled import compiled, part
from scvi_dist.kernels.hashing import GAMMA, splitmix64
from scvi_dist.kernels.math import log

_HALF, _LOW = np.uint64(32), np.uint64((1 << 32) - 1)
_UNIT = 2.0**-32


@part()
def _stream(seed: int, step: int, draw: int) -> np.uint64:
    """Where the places of a draw begin."""
    key = splitmix64(splitmix64(np.uint64(seed)) + np.uint64(step))
    return splitmix64(key + np.uint64(draw))


@compiled(inlined=True)
def sine_of_quarter(x: float) -> float:
    """``sin(pi x / 2)`` of float64 between -1 and 1, to 4e-16."""
    # Taylor's series.
    w = x * x
    p = (-4.377065467313742e-14 * w + 6.0669357311061955e-12) * w - 6.688035109811468e-10
    p = ((p * w + 5.692172921967927e-08) * w - 3.598843235212085e-06) * w + 1.604411847873598e-4
    p = ((p * w - 4.681754135318688e-3) * w + 0.07969262624616705) * w - 0.6459640975062463
    return x * (p * w + 1.5707963267948966)


@compiled()
def fill_normal(
    seed: int, step: int, draw: int, start: int, n_global: int, out_snk: np.ndarray
) -> None:
    """Standard normal numbers, the same in float32 as in float64; none is beyond 6.8.

    Parameters
    ----------
    seed, step, draw
        Whose noise this is.
    start
        Place of the first row in the minibatch; a row behind the last one is an early one again.
    n_global
        Rows of the minibatch.
    out_snk
        Written.
    """
    n_samples, n_rows, width = out_snk.shape
    stream = _stream(seed, step, draw)
    for s in range(n_samples):
        for n in range(n_rows):
            row = s * n_global + (start + n) % n_global
            first = stream + np.uint64(row * width) * GAMMA
            out_k = out_snk[s, n]
            for k in range(width):
                bits = splitmix64(first + np.uint64(k) * GAMMA)
                # Neither is 0 or 1. A sine of a quarter either way has the law of one of a turn.
                u = (np.float64(bits >> _HALF) + 0.5) * _UNIT
                v = (np.float64(bits & _LOW) + 0.5) * (2.0 * _UNIT) - 1.0
                out_k[k] = np.sqrt(-2.0 * log(u)) * sine_of_quarter(v)


@compiled()
def fill_kept(
    seed: int,
    step: int,
    draw: int,
    start: int,
    n_global: int,
    least: int,
    out_snk: np.ndarray,
) -> None:
    """0 with a probability of ``least / 2^32``, else 1; other arguments as for fill_normal."""
    n_samples, n_rows, width = out_snk.shape
    stream = _stream(seed, step, draw)
    # A hash is enough for two columns.
    half = (width + 1) // 2
    bound = np.uint64(least)
    zero, one = out_snk.dtype.type(0), out_snk.dtype.type(1)
    for s in range(n_samples):
        for n in range(n_rows):
            row = s * n_global + (start + n) % n_global
            first = stream + np.uint64(row * half) * GAMMA
            left_k, right_k = out_snk[s, n, :half], out_snk[s, n, half:]
            for k in range(width - half):
                bits = splitmix64(first + np.uint64(k) * GAMMA)
                left_k[k] = one if (bits >> _HALF) >= bound else zero
                right_k[k] = one if (bits & _LOW) >= bound else zero
            if half > width - half:
                bits = splitmix64(first + np.uint64(half - 1) * GAMMA)
                left_k[half - 1] = one if (bits >> _HALF) >= bound else zero
