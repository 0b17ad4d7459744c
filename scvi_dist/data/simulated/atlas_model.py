"""The model behind simulated atlases: which cell is what, and how its counts come about.

A cell's expected counts are its library size times a profile: the genes' abundance, the program of
its cell type, effects of batch and donor, and a low-rank variation of its own. Counts are negative
binomial around them. Every block of cells has a generator of its own, keyed by (seed, block): an
atlas does not depend on how it is cut into shards.

Axis suffixes: ``n`` cells, ``g`` genes, ``r`` profiles (one for each cell type and donor).
"""

from dataclasses import dataclass

import numpy as np

from scvi_dist.batch import CsrRows
from scvi_dist.errors import ConfigError

BLOCK_ROWS = 512
"""Cells that are drawn together."""
DONORS_PER_BATCH = 2
NONZERO = 0.08
"""Fraction of the counts that are not zero, about."""

_LIBRARY_SD = 0.4
_N_FACTORS = 4
_MAX_COUNT = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class AtlasSize:
    """What is simulated; equal sizes and seeds give equal atlases."""

    n_cells: int = 20_000
    n_genes: int = 2_000
    n_batches: int = 3
    n_cell_types: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_cells", "n_genes", "n_batches", "n_cell_types"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; seen {getattr(self, name)}.")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative; seen {self.seed}.")


class SimulatedAtlas:
    """The cells of an atlas, made when asked for."""

    def __init__(self, size: AtlasSize) -> None:
        self.size = size
        self._draw_structure(np.random.default_rng([size.seed, 0]))
        self._draw_cells(np.random.default_rng([size.seed, 1]))

    def _draw_structure(self, rng: np.random.Generator) -> None:
        """Profiles, dispersions and depth: all that cells have in common."""
        types, batches, g = self.size.n_cell_types, self.size.n_batches, self.size.n_genes
        abundance_g = rng.normal(0.0, 1.5, g)
        # A cell type raises or lowers a tenth of the genes.
        programs = rng.normal(0.0, 1.5, (types, g)) * (rng.random((types, g)) < 0.1)
        per_batch = rng.normal(0.0, 0.3, (batches, g))
        per_donor = rng.normal(0.0, 0.1, (batches * DONORS_PER_BATCH, g))
        per_donor += np.repeat(per_batch, DONORS_PER_BATCH, axis=0)
        profiles = abundance_g + programs[:, None] + per_donor[None, :]
        self._log_profile_rg = profiles.reshape(-1, g).astype(np.float32)
        self._factors = rng.normal(0.0, 0.2, (_N_FACTORS, g)).astype(np.float32)
        self._theta_g = rng.lognormal(1.0, 0.5, g).astype(np.float32)
        self._depth_per_batch = np.exp(rng.normal(0.0, 0.25, batches))
        self._library = self._library_for(NONZERO)

    def _library_for(self, nonzero: float) -> float:
        """The median library size at which this fraction of the counts is not zero."""
        profile_rg = np.exp(self._log_profile_rg.astype(np.float64))
        profile_rg /= profile_rg.sum(axis=1, keepdims=True)
        low, high = 1e-3, 1e9
        for _ in range(60):
            middle = (low * high) ** 0.5
            zero_rg = np.exp(-self._theta_g * np.log1p(middle * profile_rg / self._theta_g))
            low, high = (middle, high) if 1 - zero_rg.mean() < nonzero else (low, middle)
        return low

    def _draw_cells(self, rng: np.random.Generator) -> None:
        """Batch, donor and cell type of every cell: a few bytes a cell."""
        n, batches, types = self.size.n_cells, self.size.n_batches, self.size.n_cell_types
        # Batches come one after the other, as in an atlas put together from studies.
        self.cells_per_batch = _shares(n, rng.uniform(0.5, 1.5, batches))
        per_donor = [
            _shares(m, rng.uniform(0.5, 1.5, DONORS_PER_BATCH)) for m in self.cells_per_batch
        ]
        self.donor = np.repeat(np.arange(batches * DONORS_PER_BATCH), np.concatenate(per_donor))
        self.donor = self.donor.astype(np.int16)
        common = rng.uniform(0.5, 1.5, types)
        self.cell_type = np.concatenate(
            [
                rng.permutation(
                    np.repeat(
                        np.arange(types, dtype=np.int16),
                        _shares(int(m), common * rng.uniform(0.5, 1.5, types)),
                    )
                )
                for m in self.cells_per_batch
            ]
        )

    @property
    def batch(self) -> np.ndarray:
        """int16 ``[n]``: batch of each cell."""
        return self.donor // np.int16(DONORS_PER_BATCH)

    def block(self, index: int) -> CsrRows:
        """The counts of block ``index`` (512 cells; the last one may have fewer), float32."""
        start = index * BLOCK_ROWS
        cells = slice(start, min(start + BLOCK_ROWS, self.size.n_cells))
        n_donors = self.size.n_batches * DONORS_PER_BATCH
        # The profiles are in order of cell type, then donor.
        profile_n = self.cell_type[cells].astype(np.int64) * n_donors + self.donor[cells]
        rng = np.random.default_rng([self.size.seed, 2, index])
        own = rng.normal(size=(len(profile_n), _N_FACTORS)).astype(np.float32)
        library_n = self._library * rng.lognormal(0.0, _LIBRARY_SD, len(profile_n))
        library_n *= self._depth_per_batch[self.donor[cells] // DONORS_PER_BATCH]
        mean_ng = np.exp(self._log_profile_rg[profile_n] + own @ self._factors)
        mean_ng *= (library_n / mean_ng.sum(axis=1, dtype=np.float64)).astype(np.float32)[:, None]
        return negative_binomial(mean_ng, self._theta_g, rng)


def _shares(total: int, weights: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to the weights that add up to the total."""
    bounds = np.floor(np.cumsum(weights) / weights.sum() * total + 1e-9).astype(np.int64)
    bounds[-1] = total
    return np.diff(bounds, prepend=0)


def negative_binomial(
    mean_ng: np.ndarray, theta_g: np.ndarray, rng: np.random.Generator
) -> CsrRows:
    """Counts with these means and inverse dispersions, by inversion of the distribution function.

    Most counts are zero, and one uniform number with the chance of a zero tells which; only the
    others are looked at again.
    """
    uniform_ng = rng.random(mean_ng.shape, dtype=np.float32)
    zero_ng = np.exp(-theta_g * np.log1p(mean_ng / theta_g))
    row, gene = np.nonzero(uniform_ng > zero_ng)
    mean, theta = mean_ng[row, gene].astype(np.float64), theta_g[gene].astype(np.float64)
    uniform = uniform_ng[row, gene].astype(np.float64)
    chance = zero_ng[row, gene].astype(np.float64)
    counts = np.ones(len(row), dtype=np.float32)
    left = np.arange(len(row))
    ratio = mean / (mean + theta)
    below = chance.copy()
    for count in range(1, _MAX_COUNT):
        chance = chance * ratio * ((count - 1 + theta) / count)
        below = below + chance
        more = uniform > below
        left, chance, below = left[more], chance[more], below[more]
        uniform, ratio, theta = uniform[more], ratio[more], theta[more]
        if not len(left):
            break
        counts[left] = count + 1
    indptr = np.zeros(len(mean_ng) + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=len(mean_ng)), out=indptr[1:])
    return CsrRows(indptr, gene.astype(np.int32), counts, mean_ng.shape[1])
