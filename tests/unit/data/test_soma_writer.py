"""What write_soma writes, tiledbsoma's own readers open; half a copy is never left behind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledbsoma
import tiledbsoma.io

from scvi_dist.batch import CsrRows
from scvi_dist.data import Store, open_store
from scvi_dist.data.memory import MemoryStore
from scvi_dist.data.soma import soma_writer
from scvi_dist.data.soma.soma_writer import write_soma
from scvi_dist.errors import ConfigError, OutputExists
from scvi_dist.testing import dense_of, small_atlas


@pytest.mark.parametrize("block_bytes", [500, 1 << 20])
def test_tiledbsoma_reads_the_source(block_bytes: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(soma_writer, "_BLOCK_BYTES", block_bytes)
    adata = small_atlas()
    heard: list[tuple[int, int]] = []
    write_soma(
        open_store(adata),
        tmp_path / "a.soma",
        layers=("spliced", "raw"),
        on_progress=lambda done, of: heard.append((done, of)),
    )
    assert heard[-1] == (57, 57)
    with tiledbsoma.open(str(tmp_path / "a.soma")) as experiment:
        again = tiledbsoma.io.to_anndata(experiment, "RNA", extra_X_layer_names=["spliced"])
        proteins = tiledbsoma.io.to_anndata(experiment, "proteins")
        raw = tiledbsoma.io.to_anndata(experiment, "raw")
        kept = experiment.obs.get_enumeration_values(["batch"])["batch"].to_pylist()
    assert again.obs_names.tolist() == adata.obs_names.tolist()
    assert again.var_names.tolist() == adata.var_names.tolist()
    np.testing.assert_array_equal(again.X.toarray(), dense_of(adata))
    assert again.X.dtype == adata.X.dtype
    np.testing.assert_array_equal(again.layers["spliced"].toarray(), adata.layers["spliced"])
    np.testing.assert_array_equal(raw.X.toarray(), dense_of(adata, "raw"))
    np.testing.assert_array_equal(again.obsm["pca"], adata.obsm["pca"].astype(np.float32))
    assert proteins.var_names.tolist() == ["CD3", "CD4", "CD8"]
    np.testing.assert_array_equal(proteins.X.toarray(), adata.obsm["proteins"].to_numpy())
    assert kept == ["late", "early", "mid", "never"]
    for name in ("batch", "donor", "plate"):
        assert again.obs[name].astype(str).tolist() == adata.obs[name].astype(str).tolist()
    for name in ("barcode", "depth", "n_reads", "is_doublet"):
        np.testing.assert_array_equal(again.obs[name], adata.obs[name])
    np.testing.assert_array_equal(
        again.obs["age"].to_numpy(float), adata.obs["age"].to_numpy(float, na_value=np.nan)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float64, np.bool_])
def test_counts_keep_their_type(dtype: type[np.generic], tmp_path: Path) -> None:
    adata = small_atlas()
    adata.X = adata.X.astype(dtype)
    write_soma(open_store(adata), tmp_path / "a.soma")
    store = open_store(tmp_path / "a.soma")
    block = store.read_rows([(0, 57)])
    assert block.data.dtype == (np.uint8 if dtype is np.bool_ else dtype)
    np.testing.assert_array_equal(block.to_dense(), dense_of(adata).astype(np.float32))


def test_a_store_of_no_cells(tmp_path: Path) -> None:
    write_soma(open_store(small_atlas()[:0].copy()), tmp_path / "a.soma")
    store = open_store(tmp_path / "a.soma")
    assert store.shape == (0, 23)
    assert store.read_rows([]).n_cells == 0
    assert store.read_obs(["batch"]).shape == (0, 1)
    assert len(store.digest()) == 32


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    source = open_store(small_atlas())
    target = tmp_path / "a.soma"
    write_soma(source, target)
    with pytest.raises(OutputExists, match="overwrite=True"):
        write_soma(source, target)
    write_soma(open_store(small_atlas(n=9)), f"soma://{target}", overwrite=True)
    assert open_store(target).n_obs == 9
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(OutputExists, match="not a SOMA experiment"):
        write_soma(source, tmp_path / "notes", overwrite=True)
    assert (tmp_path / "notes" / "a.txt").exists()


class _Breaking(MemoryStore):
    """A store that fails when its last cells are read."""

    def read_rows(self, ranges: Any, genes: Any = None) -> CsrRows:
        if ranges[-1][1] == self.n_obs:
            raise OSError("no more")
        return super().read_rows(ranges, genes)


def test_a_copy_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(soma_writer, "_BLOCK_BYTES", 500)
    source: Store = _Breaking(small_atlas())
    with pytest.raises(OSError, match="no more"):
        write_soma(source, tmp_path / "a.soma")
    assert list(tmp_path.iterdir()) == []
    write_soma(open_store(small_atlas(n=9)), tmp_path / "a.soma")
    with pytest.raises(OSError, match="no more"):
        write_soma(source, tmp_path / "a.soma", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.soma"]
    assert open_store(tmp_path / "a.soma").n_obs == 9


def test_names_that_soma_keeps_for_itself(tmp_path: Path) -> None:
    for name in ("soma_joinid", "obs_id"):
        adata = small_atlas()
        adata.obs[name] = 1
        with pytest.raises(ConfigError, match=f"'{name}'.*Rename"):
            write_soma(open_store(adata), tmp_path / "a.soma")
    with pytest.raises(ConfigError, match="looks like a secret"):
        write_soma(
            open_store(small_atlas()),
            "s3://bucket/a.soma",
            storage_options={"vfs.s3.aws_secret_access_key": "x"},
        )


def test_what_is_held_does_not_grow_with_the_store(tmp_path: Path, monkeypatch: Any) -> None:
    """Never more than a block of rows is asked of the source."""
    monkeypatch.setattr(soma_writer, "_BLOCK_BYTES", 4000)
    store = open_store(small_atlas(n=300))
    seen: list[int] = []
    read = store.read_rows

    def noted(ranges: Any, genes: Any = None) -> CsrRows:
        seen.append(sum(stop - start for start, stop in ranges))
        return read(ranges, genes)

    monkeypatch.setattr(store, "read_rows", noted)
    write_soma(store, tmp_path / "a.soma")
    assert sum(seen) == 301  # one row more, to learn the type
    assert max(seen) * store.bytes_per_cell <= 4000
