"""A simulated atlas has the structure asked for, and depends on its sizes and seed alone."""

import tracemalloc
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_dist.batch import CsrRows
from scvi_dist.data import open_store
from scvi_dist.data.simulated.simulate import (
    AtlasSize,
    SimulatedAtlas,
    SimulatedStore,
    simulate_atlas,
)
from scvi_dist.data.writing import anndata_writer, writer
from scvi_dist.errors import ConfigError, FieldNotFound, OutputExists

SIZES: dict[str, Any] = {"n_cells": 1_301, "n_genes": 120, "n_batches": 2, "n_cell_types": 3}


def equal(a: CsrRows, b: CsrRows) -> bool:
    pairs = ((a.indptr, b.indptr), (a.indices, b.indices), (a.data, b.data))
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_shards_and_zarr_hold_the_same_cells(tmp_path: Path, n_shards: int) -> None:
    heard: list[tuple[int, int]] = []
    files = simulate_atlas(
        tmp_path, **SIZES, n_shards=n_shards, on_progress=lambda *at: heard.append(at)
    )
    whole = anndata.read_zarr(files.zarr)
    shards = [anndata.read_h5ad(path) for path in files.h5ad]
    assert len(shards) == n_shards
    assert max(s.n_obs for s in shards) - min(s.n_obs for s in shards) <= 1
    joined = anndata.concat(shards)
    assert (joined.X != whole.X).nnz == 0
    pd.testing.assert_frame_equal(joined.obs, whole.obs)
    assert whole.obs_names.is_unique
    assert heard[-1] == (2 * SIZES["n_cells"],) * 2
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    expected = SimulatedStore(SimulatedAtlas(files.size))
    with open_store(files.zarr) as store:
        everything = [(0, store.n_obs)]
        assert equal(store.read_rows(everything), expected.read_rows(everything))
    for column, sizes in (
        ("batch", files.cells_per_batch),
        ("cell_type", files.cells_per_cell_type),
    ):
        assert whole.obs[column].value_counts(sort=False).to_dict() == sizes
    assert whole.obs.dtypes.map(lambda t: isinstance(t, pd.CategoricalDtype)).all()


def test_cells_do_not_depend_on_the_ranges_they_are_read_in() -> None:
    atlas = SimulatedAtlas(AtlasSize(**SIZES))
    whole = SimulatedStore(atlas).read_rows([(0, SIZES["n_cells"])])
    for start, stop in ((0, 512), (500, 1_100), (1_300, 1_301), (7, 7)):
        rows = np.arange(start, stop)
        assert equal(SimulatedStore(atlas).read_rows([(start, stop)]), whole.take(rows))
        assert equal(SimulatedStore(atlas, start).read_rows([(0, stop - start)]), whole.take(rows))
    genes = np.array([5, 100, 0])
    np.testing.assert_array_equal(
        SimulatedStore(atlas).read_rows([(3, 9)], genes).to_dense(),
        whole.take(np.arange(3, 9)).to_dense()[:, genes],
    )


def test_the_seed_and_nothing_else_decides() -> None:
    def counts(seed: int) -> CsrRows:
        return SimulatedAtlas(AtlasSize(**SIZES, seed=seed)).block(1)

    assert equal(counts(4), counts(4))
    assert not equal(counts(4), counts(5))
    digests = {
        SimulatedStore(SimulatedAtlas(AtlasSize(**SIZES, seed=s))).digest() for s in (4, 4, 5)
    }
    assert len(digests) == 2


@pytest.mark.parametrize("n_genes", [50, 2_000])
def test_about_eight_percent_of_counts_are_not_zero(n_genes: int) -> None:
    atlas = SimulatedAtlas(AtlasSize(n_cells=2_048, n_genes=n_genes))
    blocks = [atlas.block(i) for i in range(4)]
    fraction = sum(len(b.data) for b in blocks) / (2_048 * n_genes)
    assert 0.05 < fraction < 0.12
    values = np.concatenate([b.data for b in blocks])
    assert values.min() >= 1
    assert np.array_equal(values, np.floor(values))


def test_counts_have_the_mean_and_variance_of_a_negative_binomial() -> None:
    from scvi_dist.data.simulated.atlas_model import negative_binomial

    rng = np.random.default_rng(0)
    means = np.array([0.05, 1.0, 30.0], dtype=np.float32)
    theta = np.array([0.5, 2.0, 10.0], dtype=np.float32)
    n = 40_000
    dense_ng = negative_binomial(np.tile(means, (n, 1)), theta, rng).to_dense(np.float64)
    variance = means + means**2 / theta
    error = dense_ng.mean(axis=0) - means
    assert (np.abs(error) < 5 * np.sqrt(variance / n)).all()
    np.testing.assert_allclose(dense_ng.var(axis=0), variance, rtol=0.1)


def test_cell_types_differ_more_than_batches_and_batches_more_than_halves() -> None:
    atlas = SimulatedAtlas(AtlasSize(n_cells=6_000, n_genes=300, n_batches=2, n_cell_types=2))
    store = SimulatedStore(atlas)
    dense_ng = store.read_rows([(0, store.n_obs)]).to_dense(np.float64)
    share_ng = dense_ng / np.maximum(dense_ng.sum(axis=1, keepdims=True), 1)
    half = np.arange(len(share_ng)) % 2

    def profile(batch: int, cell_type: int, halves: tuple[int, ...] = (0, 1)) -> np.ndarray:
        cells = (atlas.batch == batch) & (atlas.cell_type == cell_type) & np.isin(half, halves)
        return np.log(share_ng[cells].mean(axis=0) + 1e-4)

    between_types = np.abs(profile(0, 0) - profile(0, 1)).mean()
    between_batches = np.abs(profile(0, 0) - profile(1, 0)).mean()
    between_halves = np.abs(profile(0, 0, (0,)) - profile(0, 0, (1,))).mean()
    assert between_types > between_halves * 2
    assert between_batches > between_halves * 1.5


def test_library_sizes_vary_and_every_group_has_cells() -> None:
    atlas = SimulatedAtlas(AtlasSize(n_cells=2_000))
    assert (atlas.cells_per_batch > 100).all()
    assert (np.bincount(atlas.cell_type, minlength=8) > 20).all()
    # Cells are in order of batch, and types are mixed within a batch.
    assert (np.diff(atlas.batch) >= 0).all()
    assert (np.diff(atlas.cell_type) != 0).mean() > 0.5
    libraries = np.add.reduceat(atlas.block(0).data, atlas.block(0).indptr[:-1])
    assert libraries.std() / libraries.mean() > 0.2


def test_existing_files_are_kept_unless_asked(tmp_path: Path) -> None:
    files = simulate_atlas(tmp_path, **SIZES, n_shards=2)
    files.h5ad[0].unlink()
    with pytest.raises(OutputExists, match=r"atlas_1\.h5ad"):
        simulate_atlas(tmp_path, **SIZES, n_shards=2)
    assert not files.h5ad[0].exists()
    simulate_atlas(tmp_path, **SIZES, n_shards=2, overwrite=True)
    assert files.h5ad[0].exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_cells": 0},
        {"n_genes": 0},
        {"n_batches": 0},
        {"n_cell_types": 0},
        {"seed": -1},
        {"n_shards": 0},
        {"n_cells": 3, "n_shards": 4},
    ],
)
def test_impossible_sizes_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=str(next(reversed(wrong)))):
        simulate_atlas(tmp_path, **{**SIZES, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_the_store_answers_wrong_questions_as_stores_do() -> None:
    store = SimulatedStore(SimulatedAtlas(AtlasSize(**SIZES)))
    with pytest.raises(FieldNotFound, match="did you mean 'batch'"):
        store.read_obs(["bach"])
    with pytest.raises(FieldNotFound):
        store.read_obsm("pca", [(0, 1)])
    with pytest.raises(IndexError, match="1302"):
        store.read_rows([(0, 1_302)])


def test_memory_does_not_grow_with_the_atlas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With buffers this small, both atlases are many times larger than all of them.
    monkeypatch.setattr(writer, "_BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(anndata_writer, "_SHARD_ENTRIES", 1 << 14)
    monkeypatch.setattr(anndata_writer, "_FRAME_CHUNK_ROWS", 1 << 10)
    peaks = []
    for n_cells in (100, 10_000, 40_000):  # the first one imports what is needed
        store = SimulatedStore(SimulatedAtlas(AtlasSize(n_cells=n_cells, n_genes=200)))
        tracemalloc.start()
        writer.write_zarr(store, tmp_path / f"{n_cells}.zarr")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]
