"""Statistics of groups' counts: those of the whole matrix, however the cells are cut."""

import pickle

import anndata
import numpy as np
import pytest

from scvi_dist.analysis.group_statistics import group_statistics
from scvi_dist.analysis.passes.cell_pass import Parts, merge, part_of, run_here
from scvi_dist.analysis.raw_statistics import RawStatisticsPass, united
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.data import Store
from scvi_dist.dataloaders.source import OpenSource
from tests.unit.analysis.conftest import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_each_groups_cells(
    stores: dict[str, Store], adata: anndata.AnnData, kind: str
) -> None:
    table = group_statistics(stores[kind], "label")
    x_ng = adata.X.toarray().astype(np.float64)
    scaled_ng = 1e4 * x_ng / x_ng.sum(1, keepdims=True)
    for group in ("x", "y"):
        is_in = np.asarray(adata.obs["label"] == group)
        seen, cells = table.loc[group], x_ng[is_in]
        assert (seen["cells"] == is_in.sum()).all()
        assert seen.index.tolist() == adata.var_names.tolist()
        np.testing.assert_allclose(seen["mean"], cells.mean(0), rtol=1e-13)
        np.testing.assert_allclose(seen["variance"], cells.var(0, ddof=1), rtol=1e-11)
        np.testing.assert_array_equal(seen["nonzeros"], (cells > 0).mean(0))
        np.testing.assert_allclose(seen["normalised_mean"], scaled_ng[is_in].mean(0), rtol=1e-6)


def test_without_a_column_all_cells_are_one_group(adata: anndata.AnnData) -> None:
    table = group_statistics(adata)
    assert table.index.get_level_values("group").unique().tolist() == ["all"]
    np.testing.assert_allclose(table["mean"], np.asarray(adata.X.mean(0)).ravel(), rtol=1e-6)


def test_an_empty_cell_counts_and_has_no_normalised_counts() -> None:
    table = group_statistics(anndata.AnnData(np.array([[0, 0], [1, 3]], dtype=np.float32)))
    assert table["mean"].tolist() == [0.5, 1.5]
    assert table["normalised_mean"].tolist() == [1250.0, 3750.0]


def test_parts_add_up_to_the_whole_and_the_order_of_cells_is_nothing(source: OpenSource) -> None:
    rng = np.random.default_rng(0)
    n = source.store.n_obs
    codes_n = rng.integers(-1, 3, n)
    whole = run_here(RawStatisticsPass(codes_n, 3), None, StoreCells(source))
    cells = StoreCells(source)
    the_pass = RawStatisticsPass(codes_n, 3)
    sent = pickle.loads(pickle.dumps(the_pass))
    parts = [
        sent.compute(None, part_of(cells, a, b), the_pass.payload(np.arange(a, b)))
        for a, b in ((0, 7), (7, 40), (40, n))
    ]
    merged = merge(the_pass.rules, merge(the_pass.rules, parts[0], parts[1]), parts[2])
    order = rng.permutation(n)
    shuffled = StoreCells(source, Selection(n, order))
    elsewhere = run_here(RawStatisticsPass(codes_n[order], 3), None, shuffled, Parts(part_cells=11))
    for name, value in whole.items():
        exact = 1e-12 if name == "normalised" else 0
        np.testing.assert_allclose(merged[name], value, rtol=exact)
        np.testing.assert_allclose(elsewhere[name], value, rtol=exact)


def test_the_rest_is_all_without_the_group(source: OpenSource) -> None:
    codes_n = np.arange(source.store.n_obs) % 3
    sums = run_here(RawStatisticsPass(codes_n, 3), None, StoreCells(source))
    as_two = run_here(RawStatisticsPass((codes_n == 1).astype(int), 2), None, StoreCells(source))
    sides = united(sums, np.array([[True, False, True], [False, True, False]]))
    for name, value in as_two.items():
        np.testing.assert_allclose(sides[name], value, rtol=1e-12)
