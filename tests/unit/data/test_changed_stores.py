"""A store that is written to while it is read is refused, not read as a mixture."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from scvi_dist.data import open_store
from scvi_dist.errors import StoreChanged
from scvi_dist.testing import small_atlas, write_atlas


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_an_h5ad_that_is_replaced_is_noticed(compression: Any, tmp_path: Path) -> None:
    path = write_atlas(small_atlas(), tmp_path / "a.h5ad", compression=compression)
    other = write_atlas(small_atlas(n=60, seed=5), tmp_path / "b.h5ad", compression=compression)
    with open_store(path) as store:
        digest = store.digest()
        store.read_rows([(0, 9)])
        shutil.copy(other, path)
        with pytest.raises(StoreChanged, match=r"a\.h5ad was changed while it was read"):
            store.read_rows([(0, 57)])
    # HDF5 goes on with what it knows of a file until its last handle is closed.
    with store.locator.open() as again:
        assert again.digest() != digest
        assert again.read_rows([(0, 60)]).n_cells == 60


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zarr_store_that_is_replaced_is_noticed(zarr_format: int, tmp_path: Path) -> None:
    path = write_atlas(small_atlas(), tmp_path / "a.zarr", zarr_format=zarr_format)
    with open_store(path) as store:
        digest = store.digest()
        store.read_rows([(0, 9)])
        shutil.rmtree(path)
        write_atlas(small_atlas(n=57, seed=5), path, zarr_format=zarr_format)
        with pytest.raises(
            StoreChanged, match=r"a\.zarr: X/\w+ was written anew while it was read"
        ):
            store.read_rows([(0, 57)])
        with store.locator.open() as again:
            assert again.digest() != digest


def test_a_shard_that_is_replaced_is_named(tmp_path: Path) -> None:
    paths = [write_atlas(small_atlas(), tmp_path / f"{i}.h5ad") for i in range(3)]
    with open_store(paths) as store:
        digest = store.digest()
        paths[1].unlink()
        write_atlas(small_atlas(seed=5), paths[1])
        store.read_rows([(0, 57)])
        with pytest.raises(StoreChanged, match=r"1\.h5ad was changed"):
            store.read_rows([(60, 70)])
        with store.locator.open() as again:
            assert again.digest() != digest
