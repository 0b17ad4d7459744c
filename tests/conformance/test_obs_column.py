"""A view with one more column of obs passes the suite: the column is one that the AnnData has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scvi_dist.data import Store, open_store
from scvi_dist.data.views.obs_column import with_obs_column
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.errors import ConfigError, StoreError
from scvi_dist.testing import StoreConformance, small_atlas, write_atlas

COLUMN = "n_reads"


class TestObsColumn(StoreConformance):
    in_other_processes = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        values_n = adata.obs[COLUMN].to_numpy()
        without = adata.copy()
        del without.obs[COLUMN]
        base = open_store(write_atlas(without, folder / "without.h5ad"))
        return with_obs_column(base, COLUMN, values_n)


def test_a_written_copy_has_the_column(tmp_path: Path) -> None:
    adata = small_atlas()
    values_n = np.linspace(1, 2, adata.n_obs, dtype=np.float32)
    view = with_obs_column(open_store(adata), "weight", values_n)
    write_zarr(view, tmp_path / "copy.zarr")
    copy = open_store(tmp_path / "copy.zarr")
    np.testing.assert_array_equal(copy.read_obs(["weight"])["weight"], values_n)
    assert view.digest() != with_obs_column(open_store(adata), "weight", values_n + 1).digest()


def test_a_column_that_does_not_fit() -> None:
    store = open_store(small_atlas())
    with pytest.raises(ConfigError, match="already"):
        with_obs_column(store, COLUMN, np.zeros(store.n_obs))
    with pytest.raises(ConfigError, match="for each of"):
        with_obs_column(store, "other", np.zeros(3))


def test_a_locator_says_where_it_works() -> None:
    store = open_store(small_atlas())
    locator = with_obs_column(store, "other", np.zeros(store.n_obs)).locator
    with pytest.raises(StoreError, match="write_zarr"):
        locator.open()
