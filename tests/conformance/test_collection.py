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
from scvi_dist.data.joined.collection import collect
from scvi_dist.errors import (
    ConfigError,
    FieldNotFound,
    SchemaMismatch,
    StoreNotFound,
)
from scvi_dist.testing import StoreConformance, dense_of, rows_of, small_atlas, write_atlas


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


class TestCollectionFromAPattern(StoreConformance):
    """Genes in another order in every shard but the first."""

    def make_store(self, adata: Any, folder: Path) -> Store:
        rng = np.random.default_rng(0)
        for i, part in enumerate(shards_of(adata, (7, 20, 53))):
            order = rng.permutation(adata.n_vars) if i else np.arange(adata.n_vars)
            write_atlas(reordered(part, order), folder / f"shard{i}.h5ad")
        return open_store(folder / "shard*.h5ad")

    def test_raw_has_its_own_genes(self, store: Store, adata: Any) -> None:
        with open_store(store, layer="raw") as raw:
            assert raw.var_names.tolist() == adata.raw.var_names.tolist()


class TestCollectionFromAFolder(StoreConformance):
    """Opened again from its locator, with two handles for many stores."""

    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        (folder / "atlas").mkdir()
        (folder / "atlas" / "README.md").write_text("cells")
        for i, part in enumerate(shards_of(adata, (1, 2, 3, 20, 41))):
            path = folder / "atlas" / f"{i}.{'zarr' if i % 2 else 'h5ad'}"
            write_atlas(part, path, zarr_format=2 if i == 3 else 3)
        locators = open_store(folder / "atlas").locator.parts
        return collect(locators, max_open=2).locator.open()


class TestOuterJoin(StoreConformance):
    """Each store lacks the genes that none of its cells has."""

    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        sources = []
        for i, part in enumerate(shards_of(adata, (30, 45))):
            expressed = np.asarray((part.layers["counts"] != 0).sum(axis=0)).ravel() > 0
            expressed |= np.asarray((part.X != 0).sum(axis=0)).ravel() > 0
            expressed |= (part.layers["spliced"] != 0).any(axis=0)
            keep = np.flatnonzero(expressed)[::-1] if i == 1 else np.flatnonzero(expressed)
            sources.append(write_atlas(reordered(part, keep), folder / f"{i}.h5ad"))
        return open_store(sources, join="outer", genes=adata.var_names.tolist())

    def test_raw_has_its_own_genes(self, store: Store, adata: Any) -> None:
        with open_store(store, layer="raw") as raw:
            assert raw.var_names.tolist() == adata.var_names.tolist()


def reordered(adata: Any, order: np.ndarray) -> Any:
    """The same cells, with all categories, and some genes in another order."""
    with anndata.settings.override(remove_unused_categories=False):
        other = adata[:, order].copy()
    other.obs = adata.obs
    return other


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
    two.obsm["proteins"] = two.obsm["proteins"].rename(columns={"CD8": "CD19"})
    one.obsm["only_here"] = one.obsm["pca"]
    store = open_store([one, two])
    odd = store.locator.parts[1].redacted_url
    assert store.obsm_keys == {}
    for key in ("pca", "proteins", "only_here"):
        with pytest.raises(SchemaMismatch, match=odd):
            store.read_obsm(key, [(0, 1)])
    with pytest.raises(FieldNotFound, match="obsm has no 'pcas'"):
        store.read_obsm("pcas", [(0, 1)])


def test_named_obsm_columns_are_joined_by_name() -> None:
    one, two = two_atlases()
    table = two.obsm["proteins"].copy()
    two.obsm["proteins"] = table[["CD8", "CD3"]].assign(CD19=7)
    store = open_store([one, two], join="outer")
    assert store.obsm_columns("proteins") == ("CD3", "CD4", "CD8", "CD19")
    rows = [(18, 20), (20, 23), (0, 1)]
    values = store.read_obsm("proteins", rows)
    expected = pd.concat([one.obsm["proteins"], two.obsm["proteins"]]).fillna(0)
    np.testing.assert_array_equal(values, expected.iloc[rows_of(rows)].to_numpy(np.float32))
    inner = open_store([one, two], join="inner")
    assert inner.obsm_columns("proteins") == ("CD3", "CD8")
    kept = expected[["CD3", "CD8"]].to_numpy(np.float32)
    np.testing.assert_array_equal(inner.read_obsm("proteins", rows), kept[rows_of(rows)])
    reordered = open_store([one, small_atlas(n=11, seed=2)])
    assert reordered.obsm_columns("proteins") == ("CD3", "CD4", "CD8")


def test_stores_without_proteins_have_none_under_an_outer_join() -> None:
    one, two = two_atlases()
    del one.obsm["proteins"]
    store = open_store([one, two], join="outer")
    assert store.obsm_keys == {"pca": 5, "proteins": 3}
    values = store.read_obsm("proteins", [(0, store.n_obs)])
    assert (values[:20] == 0).all()
    np.testing.assert_array_equal(values[20:], two.obsm["proteins"].to_numpy(np.float32))
    with pytest.raises(SchemaMismatch, match=r"ram://.*join='outer'"):
        open_store([one, two]).read_obsm("proteins", [(0, 1)])


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
    with pytest.raises(ConfigError, match="got int: 3"):
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


def test_empty_stores_among_others() -> None:
    one, two = two_atlases()
    empty = small_atlas(n=3)[:0].copy()
    empty.obs["batch"] = pd.Categorical([])
    store = open_store([empty, one, empty.copy(), two])
    assert store.n_obs == 31
    expected = np.concatenate([dense_of(one), dense_of(two)])
    np.testing.assert_array_equal(store.read_rows([(0, 31)]).to_dense(), expected)
    np.testing.assert_array_equal(store.read_rows([(19, 21)]).to_dense(), expected[19:21])
    values = [*one.obs["batch"], *two.obs["batch"]]
    assert store.read_obs(["batch"])["batch"].tolist() == values


def test_values_of_differing_types_are_kept() -> None:
    parts = [small_atlas(n=4, seed=i) for i in range(3)]
    types = (np.uint8, np.int64, np.float32)
    for part, dtype in zip(parts, types, strict=True):
        part.X = part.X.astype(dtype)
    parts[1].X.data[0] = 2**40
    parts[0].obs["n_reads"] = parts[0].obs["n_reads"].astype(np.float32)
    store = open_store(parts)
    expected = np.concatenate([dense_of(part).astype(np.float64) for part in parts])
    np.testing.assert_array_equal(store.read_rows([(0, 12)]).to_dense(np.float64), expected)
    assert store.storage_facts().dtype is None
    reads = pd.concat([part.obs["n_reads"] for part in parts], ignore_index=True)
    assert store.read_obs(["n_reads"])["n_reads"].tolist() == reads.tolist()


def test_equal_keys_mean_equal_collections() -> None:
    one, two = two_atlases()
    digests = [
        open_store(sources, join=join, genes=genes).digest()
        for sources in ([one, two], [two, one])
        for join, genes in ((None, None), ("outer", None), (None, one.var_names[:3].tolist()))
    ]
    assert len(set(digests)) == len(digests)
