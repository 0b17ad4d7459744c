"""A view with genes brought to an order passes the suite; missing genes are zeros."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from scvi_dist.data import Store, open_store
from scvi_dist.data.joined.padded import PaddedStore
from scvi_dist.errors import ConfigError, FieldNotFound
from scvi_dist.testing import StoreConformance, dense_of, small_atlas, write_atlas


class TestPadded(StoreConformance):
    """The atlas, hidden in a file with other genes in another order."""

    def make_store(self, adata: Any, folder: Path) -> Store:
        order = np.random.default_rng(5).permutation(adata.n_vars)
        shuffled = adata[:, order].copy()
        shuffled.obs = adata.obs
        base = open_store(write_atlas(shuffled, folder / "shuffled.zarr"))
        return PaddedStore(base, adata.var_names.tolist())

    def test_raw_has_its_own_genes(self, store: Store, adata: Any) -> None:
        """The view's genes, by name, with raw's values."""
        with open_store(store, layer="raw") as raw:
            assert raw.var_names.tolist() == adata.var_names.tolist()
            places = adata.raw.var_names.get_indexer(adata.var_names)
            block = raw.read_rows([(0, store.n_obs)])
            np.testing.assert_array_equal(block.to_dense(), dense_of(adata, "raw")[:, places])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("padded")
    return open_store(write_atlas(small_atlas(), folder / "atlas.zarr"))


def test_genes_that_are_missing_are_zeros(base: Store) -> None:
    kept = base.var_names[[7, 2]].tolist()
    view = PaddedStore(base, ["absent", kept[0], "also absent", kept[1]])
    dense = dense_of(small_atlas())
    expected = np.zeros((base.n_obs, 4), dense.dtype)
    expected[:, 1], expected[:, 3] = dense[:, 7], dense[:, 2]
    rows = [(3, 20), (0, 5)]
    got = view.read_rows(rows).to_dense(dense.dtype)
    np.testing.assert_array_equal(got, np.concatenate([expected[3:20], expected[:5]]))
    some = view.read_rows([(0, 9)], genes=np.array([3, 0]))
    np.testing.assert_array_equal(some.to_dense(dense.dtype), expected[:9, [3, 0]])
    assert view.missing_genes.tolist() == ["absent", "also absent"]
    assert view.layers == base.layers
    with view.on(open_store(base, layer="raw")) as raw:
        assert raw.var_names.tolist() == view.var_names.tolist()


def test_a_column_that_is_missing_has_one_value(base: Store) -> None:
    view = PaddedStore(base, base.var_names.tolist(), {"label": "Unknown", "size": 1.5})
    known = next(iter(base.obs_columns))
    obs = view.read_obs(["label", known, "size"], 4, 9)
    assert obs.columns.tolist() == ["label", known, "size"]
    assert obs["label"].tolist() == ["Unknown"] * 5
    assert obs["size"].tolist() == [1.5] * 5
    assert obs[known].tolist() == base.read_obs([known], 4, 9)[known].tolist()
    assert view.read_obs(["label"], 0, 0).shape == (0, 1)
    assert view.obs_columns["label"] == "category"
    with pytest.raises(FieldNotFound, match="did you mean 'label'"):
        view.read_obs(["labels"])
    with pytest.raises(ConfigError, match="already"):
        PaddedStore(base, base.var_names.tolist(), {known: "x"})


def test_it_is_opened_again_from_its_locator(base: Store) -> None:
    view = PaddedStore(base, ["absent", *base.var_names[:3].tolist()], {"label": "Unknown"})
    locator = pickle.loads(pickle.dumps(view.locator))
    assert hash(locator) == hash(view.locator)
    with locator.open() as again:
        assert again.digest() == view.digest()
        assert again.var_names.tolist() == view.var_names.tolist()
        assert again.read_obs(["label"])["label"].unique().tolist() == ["Unknown"]
    other = PaddedStore(base, view.var_names.tolist(), {"label": "unknown"})
    assert other.digest() != view.digest()


def test_names_that_are_not_one_gene_are_refused(base: Store) -> None:
    with pytest.raises(ConfigError, match="asked for twice"):
        PaddedStore(base, ["a", "b", "a"])


def test_places_beyond_what_stored_indices_can_count_to(tmp_path: Path) -> None:
    """Genes of a store may be stored as 8 bits; their places in the view need 17."""
    adata = small_atlas()
    path = write_atlas(adata, tmp_path / "a.zarr")
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    stored = root["X/indices"][:].astype(np.uint8)
    del root["X/indices"]
    root["X"].create_array("indices", data=stored)
    (path / ".zmetadata").unlink(missing_ok=True)
    root.update_attributes({})
    strangers = [f"stranger-{i}" for i in range(70_000)]
    with open_store(path) as base, PaddedStore(base, [*strangers, *adata.var_names]) as view:
        assert base.read_rows([(0, 9)]).indices.dtype == np.uint8
        rows = view.read_rows([(0, 9)])
        assert rows.indices.min() >= 70_000
        np.testing.assert_array_equal(rows.to_dense()[:, 70_000:], dense_of(adata)[:9])
