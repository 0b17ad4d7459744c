"""An AnnData in memory passes the suite."""

import gc
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from scipy import sparse

from scvi_dist.data import Store, open_store
from scvi_dist.errors import FieldNotFound, StoreError, UnsupportedStore
from scvi_dist.testing import StoreConformance, dense_of, small_atlas, write_atlas


class TestMemory(StoreConformance):
    in_other_processes = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        return open_store(adata)


class TestMemoryDense(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        adata.X = adata.X.toarray()
        return open_store(adata)


class TestMemoryFortranOrder(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        adata.X = np.asfortranarray(adata.X.toarray())
        return open_store(adata)


class TestMemoryCsrArray(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        adata.X = sparse.csr_array(adata.X)
        return open_store(adata)


class TestMemoryColumns(StoreConformance):
    """A matrix by columns is converted."""

    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        adata.X = sparse.csc_matrix(adata.X)
        return open_store(adata)


class TestMemoryView(StoreConformance):
    """A view of an AnnData that was not copied."""

    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        with anndata.settings.override(remove_unused_categories=False):
            return open_store(adata[:, :])


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array])
def test_csr_in_memory_is_not_copied(kind: Any) -> None:
    adata = small_atlas()
    adata.X = kind(adata.X)
    rows = open_store(adata).rows_in_memory()
    assert rows is not None
    assert np.shares_memory(rows.data, adata.X.data)
    assert np.shares_memory(rows.indices, adata.X.indices)


def test_columns_in_memory_are_converted_once() -> None:
    adata = small_atlas()
    adata.X = sparse.csc_matrix(adata.X)
    store = open_store(adata)
    one, other = store.rows_in_memory(), store.rows_in_memory()
    assert one is not None
    assert other is not None
    assert np.shares_memory(one.data, other.data)


def test_dense_rows_in_memory_are_no_csr() -> None:
    adata = small_atlas()
    adata.X = adata.X.toarray()
    assert open_store(adata).rows_in_memory() is None


def test_one_anndata_has_one_locator() -> None:
    adata, other = small_atlas(), small_atlas()
    assert open_store(adata).locator == open_store(adata).locator
    assert open_store(adata).locator != open_store(other).locator


def test_a_deleted_anndata_cannot_be_opened_again() -> None:
    locator = open_store(small_atlas()).locator
    gc.collect()
    with pytest.raises(StoreError, match="write_zarr"):
        locator.open()


def test_a_store_keeps_its_anndata_alive() -> None:
    store = open_store(small_atlas())
    gc.collect()
    assert store.locator.open().digest() == store.digest()


def test_no_x_and_odd_x_are_refused() -> None:
    adata = small_atlas()
    adata.X = None
    with pytest.raises(FieldNotFound, match="counts, spliced, raw"):
        open_store(adata)
    assert open_store(adata, layer="counts").shape == adata.shape
    import dask.array

    adata.X = dask.array.zeros(adata.shape)
    with pytest.raises(UnsupportedStore, match="dask"):
        open_store(adata)


def test_a_backed_anndata_is_read_from_its_file(tmp_path: Path) -> None:
    adata = small_atlas()
    path = write_atlas(adata, tmp_path / "atlas.h5ad")
    backed = anndata.read_h5ad(path, backed="r")
    with open_store(backed) as store:
        assert store.locator.kind == "h5ad"
        np.testing.assert_array_equal(store.read_rows([(0, 57)]).to_dense(), dense_of(adata))
    with pytest.raises(UnsupportedStore, match="view"):
        open_store(backed[:9])
    backed.obs["added"] = 1
    with pytest.raises(StoreError, match="'added'"):
        open_store(backed)
    backed.file.close()
