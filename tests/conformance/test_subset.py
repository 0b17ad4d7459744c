"""Views pass the suite: what they show is an AnnData hidden in a larger one."""

import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_dist.data import Store, open_store
from scvi_dist.data.views.subset import SubsetStore
from scvi_dist.errors import ConfigError, FieldNotFound, StoreChanged, StoreCorrupt
from scvi_dist.testing import StoreConformance, dense_of, small_atlas, write_atlas


def with_decoys(adata: Any, seed: int = 1) -> tuple[Any, np.ndarray]:
    """A larger AnnData, and the rows at which it holds the cells of this one."""
    rng = np.random.default_rng(seed)
    n = adata.n_obs + 40
    rows = np.sort(rng.choice(n, adata.n_obs, replace=False))
    source = rng.integers(0, adata.n_obs, n)
    source[rows] = np.arange(adata.n_obs)
    with warnings.catch_warnings(), anndata.settings.override(remove_unused_categories=False):
        warnings.filterwarnings("ignore", "Observation names are not unique")
        larger = adata[source].copy()
    larger.obs_names = [f"decoy-{seed}-{i}" for i in range(n)]
    names = larger.obs_names.to_numpy(dtype=object).copy()
    names[rows] = adata.obs_names
    larger.obs_names = names
    larger.obs["barcode"] = [f"decoy-{seed}-{i}" for i in range(n)]
    larger.obs.iloc[rows, larger.obs.columns.get_loc("barcode")] = adata.obs["barcode"]
    return larger, rows


class TestSubsetOfRows(StoreConformance):
    def make_store(self, adata: Any, folder: Path) -> Store:
        larger, rows = with_decoys(adata)
        base = open_store(write_atlas(larger, folder / "larger.h5ad"))
        return SubsetStore(base, rows=rows)


class TestSubsetByFilter(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        larger, _ = with_decoys(adata)
        path = write_atlas(larger, folder / "larger.zarr")
        return open_store(path, obs_filter="not barcode.str.startswith('decoy')")


class TestSubsetOfGenes(StoreConformance):
    """Genes moved to other columns, and more of them; raw keeps its own."""

    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        order = np.random.default_rng(5).permutation(adata.n_vars)
        names = adata.var_names.tolist()
        shuffled = adata[:, order].copy()
        shuffled.obs = adata.obs
        return open_store(write_atlas(shuffled, folder / "shuffled.h5ad"), genes=names)

    def test_raw_has_its_own_genes(self, store: Store, adata: Any) -> None:
        with open_store(store, layer="raw") as raw:
            assert raw.var_names.tolist() == adata.var_names.tolist()
            places = adata.raw.var_names.get_indexer(adata.var_names)
            block = raw.read_rows([(0, store.n_obs)])
            np.testing.assert_array_equal(block.to_dense(), dense_of(adata, "raw")[:, places])


class TestSubsetOfSubset(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        middle, rows = with_decoys(adata)
        larger, more = with_decoys(middle, seed=2)
        base = open_store(write_atlas(larger, folder / "larger.h5ad"))
        return SubsetStore(SubsetStore(base, rows=more), rows=rows)


def test_base_rows_ascend_and_carry_the_same_cells() -> None:
    larger, _ = with_decoys(small_atlas())
    view = open_store(larger, obs_filter="n_reads > 300 and batch != 'mid'")
    base = view.base_rows(np.arange(view.n_obs))
    assert base.dtype == np.int64
    assert (np.diff(base) > 0).all()
    keep = (larger.obs["n_reads"] > 300) & (larger.obs["batch"] != "mid")
    assert base.tolist() == np.flatnonzero(keep).tolist()
    assert view.obs_names().tolist() == larger.obs_names[base].tolist()


def test_missing_values_do_not_match() -> None:
    adata = small_atlas()
    young = open_store(adata, obs_filter="age < 30")
    old = open_store(adata, obs_filter="age >= 30")
    assert young.n_obs + old.n_obs == int(adata.obs["age"].notna().sum())


@pytest.mark.parametrize(
    ("expression", "error", "message"),
    [
        ("btach == 'mid'", FieldNotFound, "did you mean 'batch'"),
        ("batch ==", ConfigError, "not an expression"),
        ("n_reads + 1", ConfigError, "true or false"),
        ("n_reads = 1", ConfigError, "true or false"),
        ("1 == 1", ConfigError, "true or false"),
        ("n_reads < -5", ConfigError, "leaves none"),
        ("n_reads > @limit", ConfigError, "'@'"),
        ("", ConfigError, "expression"),
    ],
)
def test_bad_filters(expression: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_store(small_atlas(), obs_filter=expression)


def test_bad_genes() -> None:
    adata = small_atlas()
    first = adata.var_names[0]
    with pytest.raises(FieldNotFound, match=rf"1 of 2 genes.*did you mean '{first}'"):
        open_store(adata, genes=[adata.var_names[1], first + "x"])
    with pytest.raises(ConfigError, match="twice"):
        open_store(adata, genes=[first, first])
    with pytest.raises(ConfigError, match="empty"):
        open_store(adata, genes=[])


def test_ambiguous_genes_are_refused_and_others_found() -> None:
    obs = pd.DataFrame(index=["a", "b"])
    var = pd.DataFrame(index=["x", "y", "x", "z"])
    with pytest.warns(UserWarning, match="not unique"):
        adata = anndata.AnnData(sparse.csr_matrix(np.arange(8.0).reshape(2, 4)), obs=obs, var=var)
    with pytest.raises(ConfigError, match="more than one gene"):
        open_store(adata, genes=["y", "x"])
    chosen = open_store(adata, genes=["z", "y"]).read_rows([(0, 2)])
    assert chosen.to_dense().tolist() == [[3, 1], [7, 5]]


@pytest.mark.parametrize("rows", [[3, 2], [1, 1], [0, 57]], ids=str)
def test_rows_have_to_ascend_and_exist(rows: list[int]) -> None:
    with pytest.raises((ValueError, IndexError)):
        SubsetStore(open_store(small_atlas()), rows=np.array(rows))


def test_a_changed_store_is_noticed(tmp_path: Path) -> None:
    adata = small_atlas()
    path = write_atlas(adata, tmp_path / "atlas.h5ad")
    filtered = open_store(path, obs_filter="n_reads > 500").locator
    chosen = open_store(path, genes=adata.var_names[:3].tolist()).locator
    adata.obs["n_reads"] = 600
    adata.var_names = adata.var_names[::-1]
    path.unlink()
    write_atlas(adata, path)
    for locator in (filtered, chosen):
        with pytest.raises(StoreChanged, match="changed since"):
            locator.open()


def test_locators_of_many_rows_stay_small() -> None:
    base = open_store(small_atlas(n=5000, g=3))
    rows = np.flatnonzero(np.random.default_rng(0).random(5000) < 0.5)
    view = SubsetStore(base, rows=rows)
    assert len(pickle.dumps(view.locator)) < 3 * len(rows)
    assert replace(view.locator) == view.locator
    again = view.locator.open()
    assert isinstance(again, SubsetStore)
    np.testing.assert_array_equal(again.base_rows(np.arange(again.n_obs)), rows)


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_filters_and_genes_are_chosen_without_reading_counts(many: bool, tmp_path: Path) -> None:
    """The counts are gone, and nobody notices until they are read."""
    adata = small_atlas()
    path = write_atlas(adata, tmp_path / "atlas.zarr")
    shutil.rmtree(path / "X" / "data" / "c")
    shutil.rmtree(path / "X" / "indices" / "c")
    source = [path, path] if many else path
    genes = adata.var_names[:3].tolist()
    with open_store(source, obs_filter="n_reads > 300 and batch != 'mid'", genes=genes) as view:
        keep = ((adata.obs["n_reads"] > 300) & (adata.obs["batch"] != "mid")).sum()
        assert view.shape == ((1 + many) * keep, 3)
        assert view.locator.open().shape == view.shape
        assert len(view.digest()) == 32
        assert view.read_obs(["batch"])["batch"].ne("mid").all()
        with pytest.raises(StoreCorrupt, match=r"X/\w+"):
            view.read_rows([(0, view.n_obs)])
