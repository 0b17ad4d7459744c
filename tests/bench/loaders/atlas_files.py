"""The atlas of the loader benchmarks, made once into a folder: h5ad, Zarr, and shuffled Zarr.

Cells x genes with multinomial counts: 8 batches, 66 donors in runs, 30 cell types, half the donors
sorted by type; about 6 % of the entries of 20,000 genes are not zero, most of them 1.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from scvi_dist.data import open_store
from scvi_dist.data.writing.convert import CopyConfig, convert_store
from scvi_dist.data.writing.shuffle_store import shuffle_store
from scvi_dist.data.writing.writer import write_zarr

N_BATCHES, N_DONORS, N_TYPES = 8, 66, 30
MEAN_UMI = 2_969
BLOCK_CELLS = 2_000
TYPES = {"data": np.float32, "indices": np.int32}


@dataclass(frozen=True)
class AtlasFiles:
    """The same cells in several forms."""

    h5ad: Path
    """Uncompressed CSR, float32 and int32, in the order of donors."""
    zarr: Path
    """What ``write_zarr`` writes of it."""
    training: Path
    """The training layout, in the order of donors."""
    shuffled: Path
    """What ``store shuffle`` writes."""


def atlas_files(folder: Path, n_cells: int, n_genes: int) -> AtlasFiles:
    """The files; what is missing is made."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{n_cells}x{n_genes}"
    files = AtlasFiles(
        folder / f"{name}.h5ad",
        folder / f"{name}.zarr",
        folder / f"{name}-training.zarr",
        folder / f"{name}-shuffled.zarr",
    )
    if not files.h5ad.exists():
        write_h5ad(files.h5ad, n_cells, n_genes)
    with open_store(files.h5ad) as store:
        if not files.zarr.exists():
            write_zarr(store, files.zarr)
        if not files.training.exists():
            layout = CopyConfig(layout="training", chunk_rows=32)
            convert_store(store, files.training, config=layout)
        shuffle_store(store, files.shuffled)
    return files


def obs_of(n_cells: int) -> pd.DataFrame:
    """Donors in runs; within every second donor cells are sorted by type."""
    rng = np.random.default_rng(0)
    donor = np.sort(rng.integers(0, N_DONORS, n_cells))
    shares = rng.dirichlet(np.full(N_TYPES, 2.0), N_DONORS)
    types = np.concatenate(
        [
            np.sort(drawn) if d % 2 else drawn
            for d, n in enumerate(np.bincount(donor, minlength=N_DONORS))
            for drawn in [rng.choice(N_TYPES, n, p=shares[d])]
        ]
    )
    return pd.DataFrame(
        {
            "batch": pd.Categorical.from_codes(
                donor * N_BATCHES // N_DONORS, [f"batch{i}" for i in range(N_BATCHES)]
            ),
            "donor": pd.Categorical.from_codes(donor, [f"donor{i:02d}" for i in range(N_DONORS)]),
            "cell_type": pd.Categorical.from_codes(types, [f"type{i:02d}" for i in range(N_TYPES)]),
        },
        index=[f"cell{i:07d}" for i in range(n_cells)],
    )


def counts_of(types: np.ndarray, n_genes: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Lengths of rows, genes and counts, block of cells by block of cells."""
    rng = np.random.default_rng(1)
    base = rng.normal(0.0, 1.7, n_genes)
    profiles = np.exp(base + rng.normal(0.0, 0.6, (N_TYPES, n_genes)))
    cumulative = np.cumsum(profiles / profiles.sum(axis=1, keepdims=True), axis=1)
    for start in range(0, len(types), BLOCK_CELLS):
        kinds = types[start : start + BLOCK_CELLS]
        umi = np.maximum(rng.lognormal(np.log(MEAN_UMI) - 0.08, 0.4, len(kinds)), 50).astype(int)
        keys = []
        for kind in np.unique(kinds):
            cells = np.flatnonzero(kinds == kind)
            owner = np.repeat(cells, umi[cells])
            genes = np.searchsorted(cumulative[kind], rng.random(len(owner)))
            keys.append(owner * n_genes + np.minimum(genes, n_genes - 1))
        found, counts = np.unique(np.concatenate(keys), return_counts=True)
        lengths = np.bincount(found // n_genes, minlength=len(kinds))
        yield lengths, (found % n_genes).astype(np.int32), counts.astype(np.float32)


def write_h5ad(path: Path, n_cells: int, n_genes: int) -> None:
    """As anndata writes it, but without ever holding the matrix."""
    obs = obs_of(n_cells)
    raw = {name: path.with_suffix(f".{name}.raw") for name in TYPES}
    lengths = []
    with open(raw["data"], "wb") as data, open(raw["indices"], "wb") as indices:
        for length, gene, count in counts_of(obs["cell_type"].cat.codes.to_numpy(), n_genes):
            lengths.append(length)
            count.tofile(data)
            gene.tofile(indices)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    partial = path.with_suffix(".partial")
    var = pd.DataFrame(index=[f"gene{i:05d}" for i in range(n_genes)])
    ad.AnnData(obs=obs, var=var).write_h5ad(partial)
    with h5py.File(partial, "r+") as file:
        if "X" in file:
            del file["X"]
        group = file.create_group("X")
        group.attrs.update(
            {
                "encoding-type": "csr_matrix",
                "encoding-version": "0.1.0",
                "shape": (n_cells, n_genes),
            }
        )
        group["indptr"] = indptr
        for name, dtype in TYPES.items():
            values = np.memmap(raw[name], dtype=dtype, mode="r")
            # Chunks, as h5py chooses them for arrays that may grow: so does anndata.
            array = group.create_dataset(name, values.shape, dtype, maxshape=(None,))
            for start in range(0, len(values), 1 << 24):
                array[start : start + (1 << 24)] = values[start : start + (1 << 24)]
    for scratch in raw.values():
        scratch.unlink()
    os.replace(partial, path)
