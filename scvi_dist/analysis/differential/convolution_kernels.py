"""Compiled loops over differences of histograms. They release the GIL; compiled code is kept.

Axis suffixes: ``f`` features, ``b`` bins, ``k`` differences of bins, ``z`` batches, ``l`` levels.
"""

import numpy as np

from scvi_dist.kernels.code_cache import cached_njit

NEGLIGIBLE = 1e-4
"""A pseudocount below this share of the smallest scale changes a logarithm by less than 2e-4, and
is left out."""
_ASSOCIATIVE = {"reassoc", "contract", "nsz"}


@cached_njit(nogil=True)
def describe_differences(
    first_zfb: np.ndarray,
    second_zfb: np.ndarray,
    start_f: np.ndarray,
    width_f: np.ndarray,
    low_f: np.ndarray,
    delta: float,
    pseudocount: float,
    described: float,
    level_l: np.ndarray,
    first_feature: int,
    stop_feature: int,
    found: np.ndarray,
) -> None:
    """Fill ``found`` for some features: see ``_over_features``. Mean and standard deviation are
    there already for where the pseudocount is negligible, and the extremes for all."""
    n_bins = first_zfb.shape[2]
    law_k = np.empty(2 * n_bins + 1)
    upto_k = np.empty(2 * n_bins + 1)
    room = np.empty((2, n_bins))
    for f in range(first_feature, stop_feature):
        smallest = NEGLIGIBLE * 2.0 ** low_f[f]
        start, width = start_f[f], width_f[f]
        compared_with = pseudocount if pseudocount > smallest else 0.0
        described_with = described if described > smallest else 0.0
        step = _law(first_zfb[:, f], second_zfb[:, f], start, width, compared_with, room, law_k)
        _distribution(law_k, upto_k)
        found[0, f] = _at(law_k, upto_k, -delta / step)
        found[1, f] = _at(law_k, upto_k, delta / step)
        if described_with != compared_with:
            step = _law(
                first_zfb[:, f], second_zfb[:, f], start, width, described_with, room, law_k
            )
            _distribution(law_k, upto_k)
        if described_with > 0:
            found[2, f], found[4, f] = _moments(law_k, step)
        found[3, f] = _quantile(upto_k, 0.5) * step
        for index in range(len(level_l)):
            low, high = _shortest(upto_k, level_l[index])
            found[7 + 2 * index, f] = low * step
            found[8 + 2 * index, f] = high * step


@cached_njit(nogil=True)
def _law(
    first_zb: np.ndarray,
    second_zb: np.ndarray,
    start: float,
    width: float,
    pseudocount: float,
    room: np.ndarray,
    law_k: np.ndarray,
) -> float:
    """Fill ``law_k`` with the mass of each difference of bins, ``n_bins`` of which is none; what
    is returned is the width of a bin."""
    n_bins = first_zb.shape[1]
    law_k[:] = 0.0
    step = width
    if pseudocount > 0:
        low = np.log2(2.0**start + pseudocount)
        step = (np.log2(2.0 ** (start + n_bins * width) + pseudocount) - low) / n_bins
    for z in range(len(first_zb)):
        if pseudocount > 0:
            _shifted(first_zb[z], start, width, pseudocount, step, room[0])
            _shifted(second_zb[z], start, width, pseudocount, step, room[1])
        else:
            room[0, :] = first_zb[z]
            room[1, :] = second_zb[z]
        _add_differences(room[0], room[1], law_k)
    law_k /= law_k.sum()
    return step


@cached_njit(nogil=True)
def _shifted(
    mass_b: np.ndarray,
    start: float,
    width: float,
    pseudocount: float,
    step: float,
    out_b: np.ndarray,
) -> None:
    """Mass of ``log2(2**x + pseudocount)`` in as many bins of the width ``step``."""
    n_bins = len(mass_b)
    out_b[:] = 0.0
    low = np.log2(2.0**start + pseudocount)
    left = 0.0
    for b in range(n_bins):
        right = (np.log2(2.0 ** (start + (b + 1) * width) + pseudocount) - low) / step
        if mass_b[b] > 0:
            first = min(max(int(left), 0), n_bins - 1)
            last = min(max(int(right), first), n_bins - 1)
            length = max(right - left, 1e-12)
            for target in range(first, last + 1):
                begin = left if target == first else float(target)
                end = right if target == last else float(target + 1)
                out_b[target] += mass_b[b] * max(end - begin, 0.0) / length
        left = right


@cached_njit(nogil=True, fastmath=_ASSOCIATIVE)
def _add_differences(first_b: np.ndarray, second_b: np.ndarray, law_k: np.ndarray) -> None:
    n_bins = len(first_b)
    low, high = 0, n_bins
    while low < n_bins - 1 and first_b[low] == 0:
        low += 1
    while high > low + 1 and first_b[high - 1] == 0:
        high -= 1
    for b in range(n_bins):
        mass = second_b[b]
        if mass > 0:
            target_k = law_k[n_bins - b : 2 * n_bins - b]
            for a in range(low, high):
                target_k[a] += first_b[a] * mass


@cached_njit(nogil=True)
def _distribution(law_k: np.ndarray, upto_k: np.ndarray) -> None:
    """Distribution function at the differences of whole bins: half of a triangle is below it."""
    total = 0.0
    for k in range(len(law_k)):
        upto_k[k] = total + 0.5 * law_k[k]
        total += law_k[k]


@cached_njit(nogil=True)
def _at(law_k: np.ndarray, upto_k: np.ndarray, x: float) -> float:
    """Distribution function at any difference, in bins; exact for triangles."""
    middle = (len(law_k) - 1) // 2
    place = x + middle
    if place <= 0:
        return 0.0
    if place >= len(law_k) - 1:
        return 1.0
    k = int(place)
    t = place - k
    below = upto_k[k] - 0.5 * law_k[k]
    return below + law_k[k] * (1.0 - 0.5 * (1.0 - t) ** 2) + law_k[k + 1] * 0.5 * t * t


@cached_njit(nogil=True)
def _moments(law_k: np.ndarray, step: float) -> tuple[float, float]:
    """Mean and standard deviation; a triangle has a variance of its own."""
    middle = (len(law_k) - 1) // 2
    mean, square = 0.0, 0.0
    for k in range(len(law_k)):
        mean += law_k[k] * (k - middle)
        square += law_k[k] * (k - middle) ** 2
    return mean * step, step * np.sqrt(max(square - mean * mean + 1.0 / 6.0, 0.0))


@cached_njit(nogil=True)
def _quantile(upto_k: np.ndarray, share: float) -> float:
    """Difference, in bins, below which is a share of the mass; linear between whole bins."""
    k = np.searchsorted(upto_k, share)
    middle = (len(upto_k) - 1) // 2
    if k <= 0:
        return float(-middle)
    if k >= len(upto_k):
        return float(middle)
    rise = upto_k[k] - upto_k[k - 1]
    return k - 1 - middle + ((share - upto_k[k - 1]) / rise if rise > 0 else 0.5)


@cached_njit(nogil=True)
def _shortest(upto_k: np.ndarray, level: float) -> tuple[float, float]:
    """Ends, in bins, of the shortest interval with a share of the mass that starts or ends at a
    difference of whole bins."""
    middle = (len(upto_k) - 1) // 2
    best_low, best_high = _quantile(upto_k, (1 - level) / 2), _quantile(upto_k, (1 + level) / 2)
    for k in range(len(upto_k)):
        if upto_k[k] + level <= upto_k[-1]:
            high = _quantile(upto_k, upto_k[k] + level)
            if high - (k - middle) < best_high - best_low:
                best_low, best_high = float(k - middle), high
        if upto_k[k] - level >= upto_k[0]:
            low = _quantile(upto_k, upto_k[k] - level)
            if (k - middle) - low < best_high - best_low:
                best_low, best_high = low, float(k - middle)
    return best_low, best_high
