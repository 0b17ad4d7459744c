"""Genes of many stores are joined by name, and every read puts them where they belong."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.data import open_store
from scvi_dist.data.joined.alignment import ColumnPlan, source_columns
from scvi_dist.data.on_disk.matrix import csr_of_dense
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch
from scvi_dist.testing import dense_of, rows_of, small_atlas, write_atlas


def two_atlases() -> tuple[Any, Any]:
    return small_atlas(n=20, seed=1), small_atlas(n=11, seed=2)


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
