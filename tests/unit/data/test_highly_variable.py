"""Highly variable genes by streaming are those that scanpy finds in memory."""

import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_dist.data import Store, open_store
from scvi_dist.data.gene_moments import BatchColumn, BlockReading, GeneMoments, blocks_of
from scvi_dist.data.highly_variable import highly_variable_genes
from scvi_dist.errors import BadCounts, ConfigError, MissingDependency, SchemaMismatch
from scvi_dist.testing import write_atlas

SMALL_BLOCKS = BlockReading(n_threads=3, block_bytes=20_000)


def atlas(n: int = 600, g: int = 400, seed: int = 0) -> Any:
    """Over-dispersed counts in three batches of differing depth; some genes constant, some loud."""
    rng = np.random.default_rng(seed)
    batch = rng.choice(["b", "a", "c"], n, p=[0.5, 0.3, 0.2])
    depth = np.array([{"a": 1.0, "b": 2.0, "c": 0.6}[b] for b in batch])
    rate = rng.gamma(0.4, 3.0, g)
    noise = rng.gamma(1 / rng.uniform(0.05, 2.0, g), rng.uniform(0.05, 2.0, g), (n, g))
    x = rng.poisson(depth[:, None] * rate * noise).astype(np.float32)
    x[:, 5], x[:, 6] = 0, 1
    x[0, 7], x[3, 8] = 4000, 900  # clipped
    obs = pd.DataFrame({"batch": batch}, index=[f"c{i}" for i in range(n)])
    obs["batch"] = pd.Categorical(batch, categories=["c", "unused", "b", "a"])
    var = pd.DataFrame(index=[f"g{i}" for i in range(g)])
    return anndata.AnnData(sparse.csr_matrix(x), obs=obs, var=var)


@pytest.fixture(scope="module")
def adata() -> Any:
    return atlas()


def scanpys(adata: Any, **arguments: Any) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy

        return scanpy.pp.highly_variable_genes(adata, inplace=False, **arguments)


@pytest.mark.parametrize("flavor", ["seurat_v3", "seurat_v3_paper"])
@pytest.mark.parametrize("batch_key", [None, "batch"])
@pytest.mark.parametrize(("n_top_genes", "span"), [(20, 0.3), (150, 0.5), (1000, 0.3)])
def test_equal_to_scanpy(
    adata: Any, flavor: Any, batch_key: str | None, n_top_genes: int, span: float
) -> None:
    arguments = {
        "flavor": flavor,
        "batch_key": batch_key,
        "n_top_genes": n_top_genes,
        "span": span,
    }
    expected = scanpys(adata, **arguments)
    found = highly_variable_genes(adata, **arguments, reading=SMALL_BLOCKS)
    assert found.columns.tolist() == expected.columns.tolist()
    assert found["highly_variable"].sum() == min(n_top_genes, adata.n_vars)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9, atol=1e-9)


def test_values_that_are_clipped_matter(adata: Any) -> None:
    """The loud genes of this atlas are clipped, so that both passes are under test."""
    table = highly_variable_genes(adata)
    unclipped = table["variances"] / table["variances_norm"]
    assert table["variances_norm"]["g7"] < 2 * np.sqrt(adata.n_obs)
    assert unclipped["g7"] > 50 * unclipped.drop(["g7", "g8"]).median()


@pytest.mark.parametrize("form", ["h5ad", "zarr", "dense", "shards"])
def test_the_same_bits_whatever_the_store(adata: Any, form: str, tmp_path: Path) -> None:
    expected = highly_variable_genes(adata, n_top_genes=50, batch_key="batch")
    source: Any
    if form == "dense":
        source = adata.copy()
        source.X = source.X.toarray()
    elif form == "shards":
        order = np.random.default_rng(1).permutation(adata.n_obs)
        source = [adata[rows].copy() for rows in np.array_split(order, 4)]
    else:
        source = write_atlas(adata, tmp_path / f"a.{form}")
    for reading in (None, SMALL_BLOCKS):
        found = highly_variable_genes(source, n_top_genes=50, batch_key="batch", reading=reading)
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_only_the_cells_and_genes_of_the_store_count(adata: Any) -> None:
    genes = adata.var_names[::-2].tolist()
    store = open_store(adata, obs_filter="batch != 'b'", genes=genes)
    expected = scanpys(
        adata[adata.obs["batch"] != "b", genes].copy(), flavor="seurat_v3", n_top_genes=30
    )
    found = highly_variable_genes(store, n_top_genes=30)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9, atol=1e-9)


def moments_of(store: Store, rows: range) -> GeneMoments:
    batches = BatchColumn.of(store, "batch")
    moments = GeneMoments.zeros(len(batches.categories), store.n_vars)
    codes = batches.codes(store, 0, store.n_obs)[rows.start : rows.stop]
    moments.add(store.read_rows([(rows.start, rows.stop)]), codes)
    return moments


def test_moments_add_up_exactly(adata: Any) -> None:
    store = open_store(adata)
    n = store.n_obs
    whole = moments_of(store, range(n))
    parts = [moments_of(store, range(a, b)) for a, b in ((400, n), (0, 13), (13, 400))]
    summed = parts[0] + parts[1] + parts[2]
    for name in ("cells_b", "sums_bg", "squares_bg", "largest_bg"):
        np.testing.assert_array_equal(getattr(summed, name), getattr(whole, name))
    x = adata.X.toarray().astype(np.float64)
    np.testing.assert_allclose(whole.over_all().means_bg[0], x.mean(axis=0), rtol=1e-14)
    variances = x.var(axis=0, ddof=1)
    np.testing.assert_allclose(whole.over_all().variances_bg[0], variances, rtol=1e-9, atol=1e-9)


def test_blocks_cover_every_cell_once(adata: Any) -> None:
    store = open_store(adata)
    bounds = [(start, stop) for start, stop, _ in blocks_of(store, SMALL_BLOCKS)]
    assert len(bounds) > 10
    assert bounds[0][0] == 0
    assert bounds[-1][1] == store.n_obs
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))


def test_progress_reaches_the_end(adata: Any) -> None:
    seen: list[tuple[int, int]] = []
    reading = BlockReading(on_progress=lambda done, total: seen.append((done, total)))
    highly_variable_genes(adata, reading=reading)
    assert seen[-1] == (adata.n_obs, adata.n_obs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"flavor": "seurat"}, ConfigError, "did you mean 'seurat_v3'"),
        ({"n_top_genes": 0}, ConfigError, "1 or more"),
        ({"span": 0.0}, ConfigError, "share above 0"),
        ({"batch_key": "btach"}, KeyError, "did you mean 'batch'"),
    ],
)
def test_arguments_that_make_no_sense(
    adata: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        highly_variable_genes(adata, **arguments)


def test_a_batch_too_small_is_named(adata: Any) -> None:
    few = adata[adata.obs["batch"] != "c"].copy()
    few.obs["batch"] = ["a", *["b"] * (few.n_obs - 1)]
    with pytest.raises(ConfigError, match=r"batch 'a' \(1 cells\).*Leave so small a batch out"):
        highly_variable_genes(few, batch_key="batch")


def test_what_is_not_a_count_is_refused(adata: Any) -> None:
    bad = adata.copy()
    bad.X = bad.X.toarray()
    bad.X[4, 7] = -2
    with pytest.raises(BadCounts, match=r"negative, first row 4, gene 7 \(g7\)"):
        highly_variable_genes(bad)
    bad.X[4, 7] = 2.5
    with pytest.warns(UserWarning, match="not whole"):
        highly_variable_genes(bad)
    highly_variable_genes(bad, check_values=False)


def test_stores_without_cells_or_with_repeated_genes(adata: Any) -> None:
    with pytest.raises(SchemaMismatch, match="0 cells x 400 genes"):
        highly_variable_genes(adata[:0].copy())
    twice = adata.copy()
    twice.var_names = ["g1", *adata.var_names[1:]]
    with pytest.raises(SchemaMismatch, match=r"'g1' \(the first one in columns 0 and 1\)"):
        highly_variable_genes(twice)


def test_without_scikit_misc(adata: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skmisc", None)
    monkeypatch.setitem(sys.modules, "skmisc.loess", None)
    with pytest.raises(MissingDependency, match="hvg"):
        highly_variable_genes(adata)
