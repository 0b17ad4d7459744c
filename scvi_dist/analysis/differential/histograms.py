"""Histograms of log2 scales of every feature, with bins of each feature's own.

Axis suffixes: ``r`` draws, ``f`` features, ``t`` strata, ``b`` bins.
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from scvi_dist.analysis.passes.cell_pass import Partial
from scvi_dist.kernels.code_cache import cached_njit

_TILE = 256
"""Features whose bins are in the processor's cache while the draws of a stratum are counted."""
SMALLEST_LOG = -126.0
"""Of a scale of 0, which a number of 32 bits may come to."""
_MARGIN_SHARE, _MARGIN = 0.2, 0.5
MOMENTS = ("scale_sum", "log_sum", "log_squares")


@dataclass(frozen=True, slots=True)
class Grid:
    """Equal bins of log2 scales."""

    start_f: np.ndarray
    """float32: lower end of the first bin."""
    width_f: np.ndarray
    """float32: width of a bin."""
    n_bins: int

    @staticmethod
    def around(low_f: np.ndarray, high_f: np.ndarray, n_bins: int) -> "Grid":
        """Bins from below ``low_f`` to above ``high_f``."""
        margin_f = _MARGIN_SHARE * (high_f - low_f) + _MARGIN
        width_f = (high_f - low_f + 2 * margin_f) / n_bins
        return Grid((low_f - margin_f).astype(np.float32), width_f.astype(np.float32), n_bins)

    def digest(self) -> str:
        """32 hex digits."""
        content = self.start_f.tobytes() + self.width_f.tobytes() + bytes([self.n_bins])
        return blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Histograms:
    """What was counted of each stratum and feature."""

    grid: Grid
    counts_tbf: np.ndarray
    """uint32: draws in each bin; those beyond either end are in the last one there."""
    moments_mtf: np.ndarray
    """float64: sums by :data:`MOMENTS`."""
    extremes_mtf: np.ndarray
    """float64: smallest and largest log2 scale."""
    outside_1f: np.ndarray
    """float64: draws beyond either end."""

    @staticmethod
    def empty(n_strata: int, grid: Grid) -> "Histograms":
        """Of no draws."""
        n_features = len(grid.start_f)
        extremes = np.empty((2, n_strata, n_features))
        extremes[0], extremes[1] = np.inf, -np.inf
        return Histograms(
            grid,
            np.zeros((n_strata, grid.n_bins, n_features), dtype=np.uint32),
            np.zeros((len(MOMENTS), n_strata, n_features)),
            extremes,
            np.zeros((1, n_features)),
        )

    @staticmethod
    def of(merged: Partial, grid: Grid) -> "Histograms":
        """From what :meth:`partial` gave, merged."""
        return Histograms(
            grid,
            merged["histogram"],
            np.stack([merged[name] for name in MOMENTS]),
            np.stack([merged["log_min"], merged["log_max"]]),
            merged["outside"],
        )

    def partial(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {
            "histogram": self.counts_tbf,
            **dict(zip(MOMENTS, self.moments_mtf, strict=True)),
            "log_min": self.extremes_mtf[0],
            "log_max": self.extremes_mtf[1],
            "outside": self.outside_1f,
        }

    def add(self, scale_rf: Tensor, strata_r: np.ndarray) -> None:
        """Count draws in; those of a stratum should be together."""
        logs_rf = torch.log2(scale_rf).clamp_(min=SMALLEST_LOG)
        _add(
            scale_rf.numpy(),
            logs_rf.numpy(),
            strata_r.astype(np.int64),
            self.grid.start_f,
            1 / self.grid.width_f,
            self.counts_tbf,
            self.moments_mtf,
            self.extremes_mtf,
            self.outside_1f,
        )


@cached_njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _add(
    scale_rf: np.ndarray,
    logs_rf: np.ndarray,
    strata_r: np.ndarray,
    start_f: np.ndarray,
    per_unit_f: np.ndarray,
    counts_tbf: np.ndarray,
    moments_mtf: np.ndarray,
    extremes_mtf: np.ndarray,
    outside_1f: np.ndarray,
) -> None:
    n_draws, n_features = logs_rf.shape
    last = counts_tbf.shape[1] - 1
    place_i = np.empty(_TILE, dtype=np.int32)
    for tile in range(0, n_features, _TILE):
        stop = min(tile + _TILE, n_features)
        for r in range(n_draws):
            t = strata_r[r]
            x_i, u_i = logs_rf[r, tile:stop], scale_rf[r, tile:stop]
            start_i, per_unit_i = start_f[tile:stop], per_unit_f[tile:stop]
            for i in range(stop - tile):
                place_i[i] = np.int32(np.floor((x_i[i] - start_i[i]) * per_unit_i[i]))
            sums_i, logs_i = moments_mtf[0, t, tile:stop], moments_mtf[1, t, tile:stop]
            squares_i = moments_mtf[2, t, tile:stop]
            low_i, high_i = extremes_mtf[0, t, tile:stop], extremes_mtf[1, t, tile:stop]
            for i in range(stop - tile):
                x = np.float64(x_i[i])
                sums_i[i] += np.float64(u_i[i])
                logs_i[i] += x
                squares_i[i] += x * x
                low_i[i] = min(low_i[i], x)
                high_i[i] = max(high_i[i], x)
            for i in range(stop - tile):
                place = place_i[i]
                if place < 0 or place > last:
                    outside_1f[0, tile + i] += 1
                    place = 0 if place < 0 else last
                counts_tbf[t, place, tile + i] += np.uint32(1)
