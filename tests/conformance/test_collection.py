"""Several stores as one pass the suite; what does not fit together is refused by name."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_dist.data import Store, open_store
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch, StoreNotFound
from scvi_dist.testing import StoreConformance, dense_of, small_atlas, write_atlas


def shards_of(adata: Any, cuts: Sequence[int]) -> list[Any]:
    """The cells between the cuts, with all categories."""
    edges = [0, *cuts, adata.n_obs]
    with anndata.settings.override(remove_unused_categories=False):
        return [adata[low:high].copy() for low, high in itertools.pairwise(edges)]


class TestCollectionOfH5ad(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        shards = shards_of(adata, (1, 20, 41))
        return open_store(
            [write_atlas(part, folder / f"{i}.h5ad") for i, part in enumerate(shards)]
        )


class TestCollectionOfEverything(StoreConformance):
    """h5ad, both formats of Zarr and memory, side by side."""

    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        one, two, three, four = shards_of(adata, (7, 20, 53))
        self.in_memory = four
        two.X = two.X.toarray()
        return open_store(
            [
                write_atlas(one, folder / "one.h5ad", compression="gzip"),
                write_atlas(two, folder / "two.zarr"),
                write_atlas(three, folder / "three.zarr", zarr_format=2),
                four,
            ]
        )


class TestCollectionOfOne(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        return open_store([write_atlas(adata, folder / "one.h5ad")])


def two_atlases() -> tuple[Any, Any]:
    return small_atlas(n=20, seed=1), small_atlas(n=11, seed=2)


def test_categories_do_not_depend_on_the_order_of_the_stores() -> None:
    one, two = two_atlases()
    one.obs["tissue"] = pd.Categorical(["lung", "gut"] * 10)
    two.obs["tissue"] = pd.Categorical(["lung"] * 6 + ["eye"] * 5, categories=["lung", "eye"])
    forth, back = open_store([one, two]), open_store([two, one])
    for store in (forth, back):
        column = store.read_obs(["tissue"])["tissue"]
        assert column.cat.categories.tolist() == ["eye", "gut", "lung"]
    values = [*one.obs["tissue"], *two.obs["tissue"]]
    assert forth.read_obs(["tissue"])["tissue"].tolist() == values
    assert forth.read_obs(["tissue"], 18, 23)["tissue"].tolist() == values[18:23]
    assert forth.digest() != back.digest()


def test_text_and_categories_become_text() -> None:
    one, two = two_atlases()
    two.obs["batch"] = two.obs["batch"].astype(str)
    store = open_store([one, two])
    assert store.obs_columns["batch"] == "string"
    assert store.read_obs(["batch"])["batch"].tolist() == [*one.obs["batch"], *two.obs["batch"]]


def test_columns_that_do_not_fit_name_the_store() -> None:
    one, two = two_atlases()
    two.obs["batch"] = 1.5
    two.obs["plate"] = pd.Categorical(["a"] * 11)
    del two.obs["depth"]
    store = open_store([one, two])
    odd = store.locator.parts[1].redacted_url
    assert "batch" not in store.obs_columns
    for column, what in (("batch", "has it as number"), ("depth", "does not have it")):
        with pytest.raises(SchemaMismatch, match=f"{odd} {what}"):
            store.read_obs([column])
    with pytest.raises(SchemaMismatch, match=f"string values in {odd}"):
        store.read_obs(["plate"])
    with pytest.raises(FieldNotFound, match="did you mean 'donor'"):
        store.read_obs(["donors"])


def test_obsm_that_does_not_fit_names_the_store() -> None:
    one, two = two_atlases()
    two.obsm["pca"] = two.obsm["pca"][:, :3]
    two.obsm["proteins"] = two.obsm["proteins"][["CD8", "CD3", "CD4"]]
    store = open_store([one, two])
    odd = store.locator.parts[1].redacted_url
    assert store.obsm_keys == {"proteins": 3}
    for key in ("pca", "proteins"):
        with pytest.raises(SchemaMismatch, match=odd):
            store.read_obsm(key, [(0, 1)])


def test_genes_that_differ_name_the_store() -> None:
    one, two = two_atlases()
    with pytest.raises(SchemaMismatch, match=r"in another order.*genes=") as raised:
        open_store([one, two[:, ::-1].copy()])
    assert "ram://" in str(raised.value)
    with pytest.raises(SchemaMismatch, match=r"1 genes too few.*22 are shared"):
        open_store([one, two[:, 1:].copy()])


def test_given_genes_bring_stores_together(tmp_path: Path) -> None:
    one, two = two_atlases()
    genes = [one.var_names[i] for i in (9, 3, 4)]
    paths = [
        write_atlas(one, tmp_path / "one.h5ad"),
        write_atlas(two[:, ::-1].copy(), tmp_path / "two.zarr"),
    ]
    store = open_store(paths, genes=genes, obs_filter="n_reads > 100")
    assert store.var_names.tolist() == genes
    kept = [adata.obs["n_reads"] > 100 for adata in (one, two)]
    expected = [
        dense_of(adata)[keep][:, [9, 3, 4]] for adata, keep in zip((one, two), kept, strict=True)
    ]
    block = store.locator.open().read_rows([(0, store.n_obs)])
    np.testing.assert_array_equal(block.to_dense(), np.concatenate(expected))


def test_lists_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty"):
        open_store([])
    with pytest.raises(ConfigError, match="got 3"):
        open_store([3])  # type: ignore[list-item]
    path = write_atlas(small_atlas(), tmp_path / "part1.h5ad")
    with pytest.raises(StoreNotFound, match=r"did you mean 'part1.h5ad'"):
        open_store([path, tmp_path / "part2.h5ad"])


def test_the_locator_names_the_folder(tmp_path: Path) -> None:
    one, two = two_atlases()
    paths = [write_atlas(a, tmp_path / f"part{i}.h5ad") for i, a in enumerate((one, two))]
    store = open_store(paths)
    assert store.locator.url == str(tmp_path)
    assert [part.url for part in store.locator.parts] == [str(path) for path in paths]
