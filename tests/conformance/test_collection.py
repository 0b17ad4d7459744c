"""Several stores as one pass the suite; what does not fit together is refused by name."""

import itertools
import pickle
import shutil
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import fsspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.data import Store, open_store
from scvi_dist.data.alignment import ColumnPlan, source_columns
from scvi_dist.data.collection import CollectionStore, collect
from scvi_dist.data.matrix import csr_of_dense
from scvi_dist.data.open import locate
from scvi_dist.data.parts import LazyParts, open_limit
from scvi_dist.errors import (
    ConfigError,
    FieldNotFound,
    SchemaMismatch,
    StoreChanged,
    StoreError,
    StoreNotFound,
    UnsupportedStore,
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


def test_genes_that_differ_name_the_store_the_genes_and_the_remedy() -> None:
    one, two = two_atlases()
    gone, extra = one.var_names[0], two.var_names[4]
    with pytest.raises(SchemaMismatch) as raised:
        open_store([one[:, np.arange(23) != 4].copy(), two[:, 1:].copy()])
    message = str(raised.value)
    for part in ("ram://", f"1 genes more ('{extra}')", f"1 genes too few ('{gone}')"):
        assert part in message
    for remedy in ("join='inner' keeps the 21", "join='outer'", "genes=..."):
        assert remedy in message


def test_the_order_of_genes_may_differ() -> None:
    one, two = two_atlases()
    order = np.random.default_rng(0).permutation(two.n_vars)
    store = open_store([one, two[:, order].copy()])
    assert store.var_names.tolist() == one.var_names.tolist()
    expected = np.concatenate([dense_of(one), dense_of(two)])
    np.testing.assert_array_equal(store.read_rows([(0, 31)]).to_dense(), expected)


def differing() -> tuple[list[Any], pd.DataFrame]:
    """Three stores with overlapping genes in differing orders, and all they hold."""
    rng = np.random.default_rng(4)
    stores, frames = [], []
    for seed, n in ((1, 9), (2, 14), (3, 5)):
        adata = small_atlas(n=n, g=30, seed=seed)
        chosen = rng.permutation(30)[: 18 + seed]
        stores.append(adata[:, chosen].copy())
        frames.append(stores[-1].to_df())
    return stores, pd.concat(frames)


@pytest.mark.parametrize("join", ["inner", "outer"])
@pytest.mark.parametrize("form", ["memory", "h5ad", "mixed"])
def test_genes_are_joined_as_pandas_joins_columns(join: Any, form: str, tmp_path: Path) -> None:
    stores, everything = differing()
    sources: list[Any] = stores
    if form != "memory":
        suffix = ["h5ad"] * 3 if form == "h5ad" else ["zarr", "h5ad", "zarr"]
        sources = [
            write_atlas(a, tmp_path / f"{i}.{s}")
            for i, (a, s) in enumerate(zip(stores, suffix, strict=True))
        ]
    expected = everything.fillna(0)
    if join == "inner":
        expected = everything.loc[:, everything.notna().all()]
    with open_store(sources, join=join) as store:
        assert set(store.var_names) == set(expected.columns)
        assert open_store(sources, genes=join).locator == store.locator
        expected = expected[store.var_names]
        rows = [(2, 12), (20, 28), (11, 13)]
        block = store.read_rows(rows)
        assert block.n_genes == store.n_vars
        np.testing.assert_array_equal(block.to_dense(), expected.to_numpy()[rows_of(rows)])
        genes = np.random.default_rng(0).permutation(store.n_vars)
        for chosen in (genes, genes[:7], genes[:0]):
            found = store.read_rows(rows, chosen).to_dense()
            np.testing.assert_array_equal(found, expected.to_numpy()[rows_of(rows)][:, chosen])
        assert store.read_rows([], genes[:3]).n_genes == 3


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_plan_places_every_column(data: st.DataObject) -> None:
    """Reading what a plan says and placing it is choosing columns by name, missing ones 0."""
    pool = [f"g{i}" for i in range(9)]
    stored = np.array(data.draw(st.permutations(pool)), dtype=object)[
        : data.draw(st.integers(0, 9))
    ]
    wanted = np.array(data.draw(st.permutations(pool)), dtype=object)[
        : data.draw(st.integers(0, 9))
    ]
    values = np.random.default_rng(len(stored)).integers(0, 4, (5, len(stored))).astype(np.float32)
    plan = ColumnPlan.of(source_columns(stored, wanted), len(stored))
    expected = pd.DataFrame(values, columns=stored).reindex(columns=wanted, fill_value=0)
    read = values if plan.read is None else values[:, plan.read]
    placed = plan.place(csr_of_dense(read))
    assert placed.n_genes == len(wanted)
    np.testing.assert_array_equal(placed.to_dense(), expected.to_numpy(np.float32))
    np.testing.assert_array_equal(plan.place_dense(values), expected.to_numpy(np.float32))


def test_given_genes_and_joins() -> None:
    stores, everything = differing()
    common = everything.columns[everything.notna().all()]
    missing = next(name for name in everything.columns if name not in common)
    genes = [common[3], common[0]]
    for join in (None, "inner", "outer"):
        store = open_store(stores, genes=genes, join=join)
        expected = everything[genes].fillna(0).to_numpy()
        np.testing.assert_array_equal(store.read_rows([(0, 28)]).to_dense(), expected)
    with pytest.raises(FieldNotFound, match=rf"ram://.*1 of 3 genes.*'{missing}'.*join='outer'"):
        open_store(stores, genes=[*genes, missing])
    store = open_store(stores, genes=[missing, *genes], join="outer")
    expected = everything[[missing, *genes]].fillna(0).to_numpy()
    np.testing.assert_array_equal(store.read_rows([(0, 28)]).to_dense(), expected)
    with pytest.raises(FieldNotFound, match=r"1 of 2 genes.*did you mean"):
        open_store(stores, genes=[genes[0], genes[1] + "x"], join="outer")
    with pytest.raises(ConfigError, match=rf"asked for twice: '{genes[0]}'"):
        open_store(stores, genes=[*genes, genes[0]])


def test_joins_that_make_no_sense() -> None:
    one, two = two_atlases()
    two.var_names = [f"other{i}" for i in range(23)]
    with pytest.raises(SchemaMismatch, match=r"no genes in common.*Ensembl"):
        open_store([one, two], join="inner")
    assert open_store([one, two], join="outer").n_vars == 46
    with pytest.raises(ConfigError, match="did you mean 'outer'"):
        open_store([one, two], join="outr")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="contradict"):
        open_store([one, two], genes="inner", join="outer")


@pytest.mark.parametrize("join", [None, "inner", "outer"])
def test_repeated_genes_are_refused_with_their_names(join: Any, tmp_path: Path) -> None:
    one, two = two_atlases()
    names = two.var_names.tolist()
    two.var_names = [*names[:-1], names[3]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_atlas(two, tmp_path / "twice.h5ad")
    with pytest.raises(SchemaMismatch, match=rf"twice\.h5ad: 1 names of genes .*: '{names[3]}'"):
        open_store([one, path], join=join)


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


# patterns and folders


def test_patterns_and_folders_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = small_atlas(n=5)
    (tmp_path / "atlas").mkdir()
    for name in ("b.h5ad", "a10.h5ad", "c.zarr", "a9.h5ad"):
        write_atlas(adata, tmp_path / "atlas" / name)
    (tmp_path / "atlas" / ".hidden.h5ad").write_text("")
    (tmp_path / "atlas" / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)

    def names(source: Any) -> list[str]:
        return [Path(part.url).name for part in open_store(source).locator.parts]

    assert names("atlas/*.h5ad") == ["a10.h5ad", "a9.h5ad", "b.h5ad"]
    assert names("atlas/a?.h5ad") == ["a9.h5ad"]
    assert names("**/[bc].*") == ["b.h5ad", "c.zarr"]
    assert (
        names("atlas") == names(tmp_path / "atlas") == ["a10.h5ad", "a9.h5ad", "b.h5ad", "c.zarr"]
    )
    assert names(["atlas/c.zarr", "atlas/a*"]) == ["c.zarr", "a10.h5ad", "a9.h5ad"]


def test_patterns_of_remote_stores(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    adata = small_atlas(n=5)
    try:
        path = write_atlas(adata, tmp_path / "a.h5ad")
        for name in ("2", "1"):
            files.pipe(f"/atlas/{name}.h5ad", path.read_bytes())
        for source in ("memory://atlas/*.h5ad", "memory://atlas"):
            with open_store(source) as store:
                assert [part.url[-6:] for part in store.locator.parts] == ["1.h5ad", "2.h5ad"]
                assert store.n_obs == 10
        with pytest.raises(StoreNotFound, match=r"nothing matches memory://atlas/\*\.zarr"):
            open_store("memory://atlas/*.zarr")
    finally:
        files.store.clear()


def test_patterns_that_match_nothing_or_no_store(tmp_path: Path) -> None:
    (tmp_path / "part.h5ad").mkdir()
    with pytest.raises(StoreNotFound, match=r"nothing matches .*parts\*\.h5ad; did you mean"):
        open_store(tmp_path / "parts*.h5ad")
    with pytest.raises(StoreNotFound, match="nowhere does not exist"):
        open_store(tmp_path / "nowhere" / "*.h5ad")
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(UnsupportedStore, match=r"table\.csv is neither"):
        open_store(tmp_path / "t*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedStore, match="empty is neither"):
        open_store(tmp_path / "empty")


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    path = write_atlas(small_atlas(n=5), tmp_path / "a[1].h5ad")
    with open_store(path) as store:
        assert store.locator.kind == "h5ad"


# many stores


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("forty")
    first = write_atlas(small_atlas(n=3, g=5), folder / "00.h5ad")
    return [first, *(Path(shutil.copy(first, folder / f"{i:02}.h5ad")) for i in range(1, 40))]


def test_few_stores_are_open_at_a_time(forty: list[Path]) -> None:
    with collect([locate(path) for path in forty], max_open=4) as store:
        assert store.n_open <= 4
        expected = dense_of(small_atlas(n=3, g=5))
        np.testing.assert_array_equal(
            store.read_rows([(0, 120)]).to_dense(), np.tile(expected, (40, 1))
        )
        store.digest()
        store.read_obs(["batch", "depth"])
        assert store.n_open <= 4
    assert store.n_open == 0
    with pytest.raises(StoreError, match="was closed"):
        store.read_rows([(0, 1)])


def test_threads_share_few_stores(forty: list[Path]) -> None:
    expected = np.tile(dense_of(small_atlas(n=3, g=5)), (40, 1))
    with collect([locate(path) for path in forty], max_open=3) as store:

        def read(seed: int) -> bool:
            rows = np.random.default_rng(seed).integers(0, 120, 17)
            return np.array_equal(store.read_rows_at(rows).to_dense(), expected[rows])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(40)))
        assert store.n_open <= 3


def test_a_store_in_use_is_not_closed(forty: list[Path]) -> None:
    parts = LazyParts([locate(path) for path in forty[:5]], max_open=1)
    with parts.lease(0) as store:
        for other in range(1, 5):
            with parts.lease(other):
                assert store.obs_names(0, 1).tolist() == ["cell-0"]
        parts.close()
        assert store.obs_names(0, 1).tolist() == ["cell-0"]
    assert parts.n_open == 0
    with pytest.raises(StoreError, match="closed"):
        store.obs_names()
    assert 2 <= open_limit() <= 256


def test_a_store_is_opened_once_for_all_who_wait(forty: list[Path]) -> None:
    opened: list[int] = []
    gate = threading.Barrier(6)
    parts = LazyParts([locate(forty[0])], check=lambda part, _: bool(opened.append(part)))

    def use(_: int) -> int:
        gate.wait(timeout=30)
        with parts.lease(0) as store:
            return store.n_obs

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(use, range(6))) == [3] * 6
    assert opened == [0]
    parts.close()


def test_a_store_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "late.h5ad"
    parts = LazyParts([locate(path)])
    with pytest.raises(StoreNotFound), parts.lease(0):
        pass
    write_atlas(small_atlas(n=5), path)
    with parts.lease(0) as store:
        assert store.n_obs == 5
    parts.close()


def test_opening_by_locator_touches_no_store(forty: list[Path]) -> None:
    with open_store(forty, join="outer") as store:
        locator = pickle.loads(pickle.dumps(store.locator))
    assert len(pickle.dumps(locator)) < 400 * len(forty)
    again = locator.open()
    assert isinstance(again, CollectionStore)
    assert again.shape == (120, 5)
    assert again.n_open == 0
    again.read_rows([(50, 51)])
    assert again.n_open == 1
    again.close()


def test_a_part_that_changed_is_named(tmp_path: Path) -> None:
    paths = [write_atlas(small_atlas(n=4, seed=i), tmp_path / f"{i}.h5ad") for i in range(3)]
    with open_store(paths) as store:
        locator = store.locator
    for changed, message in (
        (small_atlas(n=5), r"1\.h5ad was changed: it has 5 cells .* had 4 cells"),
        (
            small_atlas(n=4, g=9),
            r"1\.h5ad was changed: it has 4 cells and 9 genes, and it had other",
        ),
    ):
        paths[1].unlink()
        write_atlas(changed, paths[1])
        with locator.open() as again:
            assert again.read_rows([(0, 4)]).n_cells == 4
            with pytest.raises(StoreChanged, match=message):
                again.read_rows([(4, 8)])
    paths[1].unlink()
    with locator.open() as again, pytest.raises(StoreNotFound, match=r"1\.h5ad"):
        again.read_rows([(4, 8)])


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
