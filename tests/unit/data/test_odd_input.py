"""What looks bad and is not: it is read as it is."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from scvi_dist.data import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.testing import dense_of, small_atlas, write_atlas


def test_a_csc_matrix_in_memory_is_read() -> None:
    adata = small_atlas()
    expected = dense_of(adata)
    adata.X = adata.X.tocsc()
    np.testing.assert_array_equal(open_store(adata).read_rows([(0, 57)]).to_dense(), expected)


def test_a_column_that_cannot_be_read_does_no_harm_to_others() -> None:
    adata = small_atlas()
    adata.obs["mixed"] = [1, "two", *range(55)]
    store = open_store(adata)
    assert "mixed" not in store.obs_columns
    fit_schema(store, SetupArgs(batch_key="batch"))


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr"])
def test_unused_categories_have_a_code(kind: str, tmp_path: Path) -> None:
    source = (
        small_atlas() if kind == "memory" else write_atlas(small_atlas(), tmp_path / f"a.{kind}")
    )
    schema = fit_schema(open_store(source), SetupArgs(batch_key="batch"))
    assert schema.categories["batch"] == ("late", "early", "mid", "never")


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_more_entries_than_32_bits_can_count(kind: str, tmp_path: Path) -> None:
    """Three small rows behind one of three thousand million entries that nobody wrote or reads."""
    path = write_atlas(small_atlas(n=4, g=7), tmp_path / f"huge.{kind}")
    n, first = 3_000_000_000, 3_000_000_000 - 6
    indptr = np.array([0, first, first + 1, first + 4, n], dtype=np.int64)
    root: Any = (
        h5py.File(path, "r+")
        if kind == "h5ad"
        else zarr.open_group(path, mode="r+", use_consolidated=False)
    )
    for name in ("indptr", "indices", "data"):
        del root[f"X/{name}"]
    tail = {"indices": np.array([3, 0, 2, 6, 1, 5]), "data": np.arange(1.0, 7.0)}
    if kind == "h5ad":
        root["X/indptr"] = indptr
    else:
        root["X"].create_array("indptr", data=indptr)
    for name, values in tail.items():
        options = {"dtype": "i4" if name == "indices" else "f4", "chunks": (1 << 20,)}
        array = (
            root.create_dataset(f"X/{name}", (n,), compression="gzip", **options)
            if kind == "h5ad"
            else root["X"].create_array(name, shape=(n,), **options)
        )
        array[first:] = values
    root.close() if kind == "h5ad" else root.update_attributes({})
    with open_store(path) as store:
        block = store.read_rows([(1, 4)])
        assert block.indptr.tolist() == [0, 1, 4, 6]
        assert block.indices.tolist() == [3, 0, 2, 6, 1, 5]
        assert block.data.tolist() == [1, 2, 3, 4, 5, 6]
        assert store.storage_facts().n_stored == n
        chosen = store.read_rows([(3, 4), (1, 2)], np.array([5, 3]))
        assert chosen.to_dense().tolist() == [[6, 0], [0, 1]]
        assert len(store.digest()) == 32
