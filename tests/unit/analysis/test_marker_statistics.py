"""Facts of marker genes do not depend on how cells are read."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scvi_dist.analysis.marker_statistics import library_totals, marker_statistics, size_factors
from scvi_dist.analysis.streaming import StoreCells, StreamConfig
from scvi_dist.data import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.source import OpenSource


@pytest.fixture(scope="module")
def counts_ng() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.poisson(rng.gamma(0.5, 4.0, (90, 7))).astype(np.float32)


def opened(source: Any, budget_bytes: int, batch_size: int = 4) -> StoreCells:
    store = open_store(source)
    config = StreamConfig(batch_size=batch_size, budget_bytes=budget_bytes)
    return StoreCells(OpenSource(store, fit_schema(store, SetupArgs())), config=config)


@pytest.mark.parametrize("budget_bytes", [1, 4_000, 1 << 20])
@pytest.mark.parametrize("kind", ["sparse", "dense", "shards"])
def test_they_are_those_of_the_whole_matrix(
    counts_ng: np.ndarray, tmp_path: Path, kind: str, budget_bytes: int
) -> None:
    source: Any = anndata.AnnData(counts_ng if kind == "dense" else csr_matrix(counts_ng))
    if kind == "shards":
        for i, part in enumerate((source[:31], source[31:])):
            part.copy().write_h5ad(tmp_path / f"{i}.h5ad")
        source = [tmp_path / "0.h5ad", tmp_path / "1.h5ad"]
    cells = opened(source, budget_bytes)
    columns, totals_n = np.array([5, 1, 2]), np.empty(90)
    seen = marker_statistics(cells, columns, totals_n)
    expected = counts_ng[:, columns]
    np.testing.assert_allclose(seen.mean_g, expected.mean(0, dtype=np.float64), rtol=1e-12)
    assert (seen.smallest, seen.largest) == (expected.min(), expected.max())
    np.testing.assert_array_equal(totals_n, counts_ng.sum(1))
    np.testing.assert_array_equal(library_totals(cells), counts_ng.sum(1))
    all_genes = marker_statistics(cells)
    np.testing.assert_allclose(all_genes.mean_g, counts_ng.mean(0, dtype=np.float64), rtol=1e-12)


def test_no_count_of_zero_means_a_smallest_count_above_it(counts_ng: np.ndarray) -> None:
    cells = opened(anndata.AnnData(csr_matrix(counts_ng + 3)), 1 << 20)
    assert marker_statistics(cells).smallest == counts_ng.min() + 3


def test_size_factors_have_mean_one_unless_measured_otherwise() -> None:
    totals_n = np.array([2.0, 4.0, 6.0])
    np.testing.assert_allclose(size_factors(totals_n, "here"), [0.5, 1.0, 1.5])
    np.testing.assert_allclose(size_factors(totals_n, "here", 2.0), [1.0, 2.0, 3.0])
    with pytest.warns(UserWarning, match="here: 1 of 2 cells"):
        factors = size_factors(np.array([0.0, 2.0]), "here")
    np.testing.assert_allclose(factors, [1.0, 2.0])
