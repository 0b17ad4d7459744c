"""An atlas that never was: counts with known cell types and batches, of any size, on disk.

Cells are drawn while they are written; no more than a few blocks are in memory.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.simulated.atlas_model import (
    BLOCK_ROWS,
    DONORS_PER_BATCH,
    NONZERO,
    AtlasSize,
    SimulatedAtlas,
)
from scvi_dist.data.store import Range, Store, StoreLocator
from scvi_dist.data.writing.output import make_way
from scvi_dist.data.writing.writer import OnProgress, write_h5ad, write_zarr
from scvi_dist.errors import ConfigError, FieldNotFound, did_you_mean

__all__ = ["AtlasFiles", "AtlasSize", "SimulatedAtlas", "SimulatedStore", "simulate_atlas"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AtlasFiles:
    """A simulated atlas on disk, and the truth about it."""

    h5ad: tuple[Path, ...]
    """Shards: consecutive cells, the same genes."""
    zarr: Path
    """The same cells in one store."""
    size: AtlasSize
    cells_per_batch: dict[str, int]
    cells_per_cell_type: dict[str, int]


class SimulatedStore(Store):
    """Some consecutive cells of a simulated atlas, as a store. Lives in this process only."""

    def __init__(self, atlas: SimulatedAtlas, start: int = 0, stop: int | None = None) -> None:
        self._atlas = atlas
        self._start = start
        self._stop = atlas.size.n_cells if stop is None else stop
        self.locator = StoreLocator(kind="simulated", url=f"simulated://seed-{atlas.size.seed}")

    @property
    def n_obs(self) -> int:
        return self._stop - self._start

    @property
    def n_vars(self) -> int:
        return self._atlas.size.n_genes

    @property
    def var_names(self) -> np.ndarray:
        return np.array([f"gene_{i:05d}" for i in range(self.n_vars)], dtype=object)

    @property
    def obs_columns(self) -> dict[str, str]:
        return {"batch": "category", "cell_type": "category", "donor": "category"}

    @property
    def layers(self) -> tuple[str, ...]:
        return ()

    @property
    def obsm_keys(self) -> dict[str, int]:
        return {}

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        rows = range(self._start + start, self._start + (self.n_obs if stop is None else stop))
        return np.array([f"cell_{i:09d}" for i in rows], dtype=object)

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        stop = self.n_obs if stop is None else stop
        cells = slice(self._start + start, self._start + stop)
        size = self._atlas.size
        known = {
            "batch": (self._atlas.batch, size.n_batches),
            "cell_type": (self._atlas.cell_type, size.n_cell_types),
            "donor": (self._atlas.donor, size.n_batches * DONORS_PER_BATCH),
        }
        frame = {}
        for column in columns:
            if column not in known:
                raise FieldNotFound(f"no column {column!r} in obs; {did_you_mean(column, known)}")
            codes, n = known[column]
            frame[column] = pd.Categorical.from_codes(codes[cells], _level_names(column, n))
        return pd.DataFrame(frame, index=pd.RangeIndex(stop - start))

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        parts = [
            CsrRows(
                np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), self.n_vars
            )
        ]
        for start, stop in ranges:
            if not 0 <= start <= stop <= self.n_obs:
                raise IndexError(f"rows 0 to {self.n_obs} exist; asked for {start} to {stop}.")
            at, end = self._start + start, self._start + stop
            while at < end:
                index = at // BLOCK_ROWS
                block, first = self._atlas.block(index), index * BLOCK_ROWS
                upto = min(end, first + block.n_cells)
                whole = upto - at == block.n_cells
                parts.append(block if whole else block.take(np.arange(at - first, upto - first)))
                at = upto
        rows = CsrRows.concatenate(parts)
        return rows if genes is None else _select(rows, genes)

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        raise FieldNotFound(f"no {key!r} in obsm; {did_you_mean(key, ())}")

    @property
    def chunk_rows(self) -> int:
        return BLOCK_ROWS

    @property
    def bytes_per_cell(self) -> float:
        return 8 * (1 + NONZERO * self.n_vars)

    def digest(self) -> str:
        facts = f"{asdict(self._atlas.size)} {self._start} {self._stop}"
        return blake2b(facts.encode(), digest_size=16).hexdigest()


def _select(rows: CsrRows, genes: np.ndarray) -> CsrRows:
    chosen = rows.to_scipy()[:, genes]
    return CsrRows(chosen.indptr.astype(np.int64), chosen.indices, chosen.data, len(genes))


def _level_names(column: str, n: int) -> list[str]:
    return [f"{column}_{i:0{len(str(n - 1))}d}" for i in range(n)]


def simulate_atlas(
    dir: str | PathLike[str],
    n_cells: int = 20_000,
    n_genes: int = 2_000,
    n_batches: int = 3,
    n_cell_types: int = 8,
    n_shards: int = 4,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    overwrite: bool = False,
) -> AtlasFiles:
    """Write a simulated atlas: as several h5ad shards, and once more as one Zarr store.

    About 8 % of the counts are not zero. obs has the categorical columns ``batch``, ``cell_type``
    and ``donor``. Cells are in order of batch and donor; within a batch the types are mixed.

    Parameters
    ----------
    dir
        Local folder; made if it is not there.
    n_cells, n_genes, n_batches, n_cell_types, n_shards
        Sizes.
    seed
        The same sizes and seed give the same cells, whatever ``n_shards`` is.
    on_progress
        Called with the cells written so far and in all; each cell is written twice.
    overwrite
        Replace files of the same names.

    Raises
    ------
    OutputExists
        Such files are there, and ``overwrite`` is False. Nothing is written then.
    ConfigError
        A size is impossible.
    """
    size = AtlasSize(
        n_cells=n_cells, n_genes=n_genes, n_batches=n_batches, n_cell_types=n_cell_types, seed=seed
    )
    if not 1 <= n_shards <= n_cells:
        raise ConfigError(f"n_shards must be 1 to n_cells ({n_cells}); seen {n_shards}.")
    folder = Path(dir)
    width = len(str(n_shards - 1))
    shards = tuple(folder / f"atlas_{i:0{width}d}.h5ad" for i in range(n_shards))
    zarr = folder / "atlas.zarr"
    for path in () if overwrite else (*shards, zarr):
        make_way(path, overwrite=False)
    atlas = SimulatedAtlas(size)
    bounds = [n_cells * i // n_shards for i in range(n_shards + 1)]
    for path, start, stop in zip(shards, bounds[:-1], bounds[1:], strict=True):
        part = SimulatedStore(atlas, start, stop)
        write_h5ad(part, path, overwrite=overwrite, on_progress=_shifted(on_progress, start, size))
    whole = SimulatedStore(atlas)
    write_zarr(whole, zarr, overwrite=overwrite, on_progress=_shifted(on_progress, n_cells, size))
    counted = [
        dict(zip(_level_names(column, n), np.bincount(codes, minlength=n).tolist(), strict=True))
        for column, codes, n in (
            ("batch", atlas.batch, n_batches),
            ("cell_type", atlas.cell_type, n_cell_types),
        )
    ]
    return AtlasFiles(
        h5ad=shards,
        zarr=zarr,
        size=size,
        cells_per_batch=counted[0],
        cells_per_cell_type=counted[1],
    )


def _shifted(on_progress: OnProgress | None, before: int, size: AtlasSize) -> OnProgress | None:
    """The same callback, for a part that begins when ``before`` cells are written."""
    if on_progress is None:
        return None
    return lambda done, _: on_progress(before + done, 2 * size.n_cells)
