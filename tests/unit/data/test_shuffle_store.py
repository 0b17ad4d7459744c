"""A shuffled copy: every cell once, in an order that the seed alone decides, whoever made it."""

import threading
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.data import open_store
from scvi_dist.data.writing import anndata_writer, external_shuffle, writer
from scvi_dist.data.writing.content import Content
from scvi_dist.data.writing.convert import CopyConfig
from scvi_dist.data.writing.external_shuffle import Shuffle, row_keys
from scvi_dist.data.writing.shuffle_store import shuffle_store
from scvi_dist.errors import ConfigError, OutputExists
from scvi_dist.testing import dense_of, small_atlas, write_atlas

N, G = 300, 40
SMALL = 60_000


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    adata = small_atlas(n=N, g=G)
    # Cells without entries have a place too, also the first and the last in the new order.
    empty = np.r_[np.argsort(row_keys(np.arange(N), 3))[[0, 1, 50, -1]], 17, 18]
    dense_ng = np.asarray(dense_of(adata)).copy()
    dense_ng[empty] = 0
    return anndata.AnnData(
        anndata.AnnData(dense_ng).X, obs=adata.obs, var=adata.var, obsm=dict(adata.obsm)
    )


@pytest.fixture(scope="module")
def path(adata: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_atlas(adata, tmp_path_factory.mktemp("source") / "a.h5ad")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a small store as many pieces as a large one has."""
    monkeypatch.setattr(anndata_writer, "_SHARD_ENTRIES", 256)
    monkeypatch.setattr(writer, "_MIN_CHUNK_ENTRIES", 64)


def shuffle(path: Path, out: Path, seed: int = 3, **options: Any) -> Any:
    with open_store(path) as store:
        return shuffle_store(store, out, seed=seed, **{"memory_bytes": SMALL, **options})


def files(folder: Path) -> dict[str, bytes]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def test_a_shuffled_store_says_so_and_so_do_its_views(path: Path, tmp_path: Path) -> None:
    shuffle(path, tmp_path / "a.zarr")
    with open_store(tmp_path / "a.zarr") as store:
        assert store.is_shuffled
    with open_store(tmp_path / "a.zarr", obs_filter="batch != 'none'") as view:
        assert view.is_shuffled
    with open_store(path) as store, open_store([path, tmp_path / "a.zarr"]) as both:
        assert not store.is_shuffled
        assert not both.is_shuffled


def test_a_shuffled_copy_has_every_cell_in_the_order_of_the_keys(
    adata: Any, path: Path, tmp_path: Path
) -> None:
    heard: list[tuple[int, int]] = []
    done = shuffle(path, tmp_path / "a.zarr", on_progress=lambda *at: heard.append(at))
    order = np.argsort(row_keys(np.arange(N), 3))
    found = anndata.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(dense_of(found), dense_of(adata)[order])
    assert found.obs_names.tolist() == adata.obs_names[order].tolist()
    for column in adata.obs:
        assert found.obs[column].tolist() == adata.obs[column].iloc[order].tolist()
    assert found.obs["batch"].cat.categories.equals(adata.obs["batch"].cat.categories)
    np.testing.assert_array_equal(found.obsm["pca"], adata.obsm["pca"][order].astype("f4"))
    np.testing.assert_allclose(found.obsm["proteins"], adata.obsm["proteins"].iloc[order])
    assert heard[-1] == (2 * N, 2 * N)
    assert not (tmp_path / "a.zarr" / ".scvi_dist").exists()
    with open_store(path) as store:
        assert done.content["X"] == Content.of(store.read_rows([(0, N)]))


def test_memory_workers_and_engine_make_no_difference(path: Path, tmp_path: Path) -> None:
    shuffle(path, tmp_path / "a.zarr")
    expected = files(tmp_path / "a.zarr")
    for i, options in enumerate(
        ({"memory_bytes": 1 << 30}, {"workers": 5}, {"workers": 1, "memory_bytes": 9_000})
    ):
        shuffle(path, tmp_path / f"{i}.zarr", **options)
        assert files(tmp_path / f"{i}.zarr") == expected
    shuffle(path, tmp_path / "other.zarr", seed=4)
    assert files(tmp_path / "other.zarr") != expected


@pytest.mark.parametrize("calls", [0, 2, 5, 7, 8])
def test_an_interrupted_shuffle_goes_on_to_the_same_end(
    calls: int, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffle(path, tmp_path / "whole.zarr")
    left = [calls]
    lock = threading.Lock()

    def dying(work: Any) -> Any:
        def call(self: Shuffle, task: Any) -> Any:
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError("the disk is full")
            return work(self, task)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Shuffle, "spill", dying(Shuffle.spill))
        patch.setattr(Shuffle, "gather", dying(Shuffle.gather))
        with pytest.raises(OSError, match="disk is full"):
            shuffle(path, tmp_path / "a.zarr")
    done_before = len(list((tmp_path / "a.zarr").rglob("*.npz")))
    written = []
    monkeypatch.setattr(
        Shuffle,
        "_put",
        _recording(Shuffle._put, written),
    )
    # What it was begun with stays, whatever memory there is now.
    shuffle(path, tmp_path / "a.zarr", memory_bytes=1 << 30)
    assert files(tmp_path / "a.zarr") == files(tmp_path / "whole.zarr")
    n_stretches = len({name for name in written if name.endswith(".npz")}) + done_before
    assert n_stretches == 5


def _recording(put: Any, written: list[str]) -> Any:
    def record(self: Shuffle, name: str, content: bytes) -> None:
        written.append(name)
        put(self, name, content)

    return record


def test_a_finished_shuffle_is_left_alone_and_another_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.zarr"
    first = shuffle(path, out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    assert shuffle(path, out).content == first.content
    assert {file: file.stat().st_mtime_ns for file in before} == before
    with pytest.raises(OutputExists):
        shuffle(path, out, seed=4)
    shuffle(path, out, seed=4, overwrite=True)
    assert len(anndata.read_zarr(out)) == N
    with monkeypatch.context() as patch:
        patch.setattr(Shuffle, "gather", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shuffle(path, tmp_path / "b.zarr")
    with pytest.raises(OutputExists, match="seed: there 3, here 4"):
        shuffle(path, tmp_path / "b.zarr", seed=4)


@pytest.mark.parametrize("config", [CopyConfig(), CopyConfig(layout="training", codec="zstd")])
def test_layouts_and_layers(config: CopyConfig, tmp_path: Path) -> None:
    atlas = small_atlas(n=90, g=20)
    with open_store(atlas, layer="counts") as store:
        shuffle_store(store, tmp_path / "a.zarr", config=config, memory_bytes=SMALL)
    order = np.argsort(row_keys(np.arange(90), 0))
    found = anndata.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(dense_of(found), dense_of(atlas, "counts")[order])
    assert found.X.dtype == (np.uint8 if config.layout == "training" else dense_of(atlas).dtype)


def test_unknown_engines_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'threads'"):
        shuffle(path, tmp_path / "a.zarr", engine="thread")


@given(st.integers(1, 2000), st.integers(0, 2**31))
def test_keys_differ_and_so_do_orders_of_seeds(n: int, seed: int) -> None:
    keys = row_keys(np.arange(n), seed)
    assert len(np.unique(keys)) == n
    if n > 20:
        other = np.argsort(row_keys(np.arange(n), seed + 1))
        assert (np.argsort(keys) == other).mean() < 0.5


def test_orders_are_uniform() -> None:
    n, draws = 6, 3000
    orders = np.stack([np.argsort(row_keys(np.arange(n), seed)) for seed in range(draws)])
    seen = np.stack([(orders == row).mean(axis=0) for row in range(n)])
    assert np.abs(seen - 1 / n).max() < 5 * np.sqrt(1 / n / draws)


def test_a_task_stays_within_its_memory(path: Path) -> None:
    with open_store(path) as store:
        for memory in (9_000, SMALL, 10**6):
            sizes = external_shuffle.Sizes.within(store, memory, 2, 64)
            cells = sizes.stretch_rows * store.bytes_per_cell
            assert cells <= max(memory / 2 / 6, store.bytes_per_cell * store.chunk_rows)
            assert 8 * sizes.range_entries <= max(memory / 2 / 6, 8 * 64)
