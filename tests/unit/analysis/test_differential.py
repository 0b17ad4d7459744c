"""Differential expression of small atlases: every store, both estimators, any way of cutting."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from scvi_dist.analysis.differential.decode import DecodeOptions, PosteriorPass, scales
from scvi_dist.analysis.differential.full import HistogramPass
from scvi_dist.analysis.differential.groups import grouping_of
from scvi_dist.analysis.differential.histograms import Grid
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.run import differential_expression
from scvi_dist.analysis.expression import ExpressionOptions, normalized_expression
from scvi_dist.analysis.importance import ImportanceOptions
from scvi_dist.analysis.passes.cell_pass import CellPass, Parts, merge, part_of, run_here
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells, StreamConfig
from scvi_dist.data import Store
from scvi_dist.data.schema import fit_schema
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import ConfigError
from scvi_dist.module import VAE
from tests.unit.analysis.conftest import KINDS, SETUP, make_module

ESTIMATORS = ("sample", "full")
FEW = {"mode": "change", "pseudocounts": 1e-6, "n_samples_overall": 200, "seed": 3}


def cells_of(source: OpenSource, batch_size: int = 16) -> StoreCells:
    return StoreCells(source, config=StreamConfig(batch_size=batch_size, seed=3))


def table(
    module: VAE, source: OpenSource, by: dict[str, Any] | None = None, **options: Any
) -> pd.DataFrame:
    grouping = grouping_of(source.store, **(by or {"groupby": "label"}))
    whole = DifferentialOptions(**{**FEW, **options})
    return differential_expression(module, cells_of(source), grouping, whole)


def assert_near(got: pd.DataFrame, expected: pd.DataFrame, atol: float) -> None:
    """Tables of the same comparisons; genes may be in another order."""
    keys = ["comparison"] if "comparison" in expected else []
    first, second = (t.set_index(keys, append=True).sort_index() for t in (got, expected))
    assert first.index.equals(second.index)
    for name in second.select_dtypes("number"):
        np.testing.assert_allclose(first[name], second[name], atol=atol, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_store_gives_the_same_table(
    stores: dict[str, Store], module: VAE, source: OpenSource, kind: str, estimator: str
) -> None:
    there = OpenSource(stores[kind], fit_schema(stores[kind], SETUP))
    assert_near(
        table(module, there, estimator=estimator),
        table(module, source, estimator=estimator),
        atol=1e-5,
    )


def test_decoded_scales_are_the_expression(module: VAE, source: OpenSource) -> None:
    cells = cells_of(source)
    known = PosteriorPass().compute(module, cells, None)
    known = {**known, "scale": np.zeros_like(known["scale"])}
    keys = np.arange(cells.n_cells, dtype=np.uint64)
    for batch in (None, 2):
        seen = np.concatenate(list(scales(module, known, keys, batch, DecodeOptions())))
        tensors = next(iter(cells.groups())).tensors
        expected = module.decode_mean(tensors, transform_batch=batch).get_normalized("scale")
        n = len(expected)
        np.testing.assert_allclose(seen[:n], expected.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "poisson", "normal"])
@pytest.mark.parametrize("latent", ["normal", "ln"])
def test_estimators_agree_with_means_of_expression(
    source: OpenSource, likelihood: str, latent: str
) -> None:
    module = make_module(gene_likelihood=likelihood, latent_distribution=latent)
    options = ExpressionOptions(n_samples=100)
    whole_ng = normalized_expression(module, cells_of(source), options)
    is_x = (source.store.read_obs(["label"])["label"] == "x").to_numpy()
    for estimator in ESTIMATORS:
        got = table(module, source, estimator=estimator, n_samples_overall=4_000)
        got = got[got["group1"] == "x"].loc[list(source.schema.var_names)]
        np.testing.assert_allclose(got["scale1"], whole_ng[is_x].mean(0), rtol=0.05)
        np.testing.assert_allclose(got["scale2"], whole_ng[~is_x].mean(0), rtol=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "vanilla"},
        {},
        {"batch_correction": True},
        {"batch_correction": True, "batchid1": (0, 2), "batchid2": (0, 2)},
        {"batch_correction": True, "batchid1": (0,), "batchid2": (1,)},
        {"delta": None, "cred_interval_lvls": (0.9,)},
        {"pseudocounts": None},
        {"filter_outlier_cells": True},
    ],
    ids=str,
)
def test_both_estimators_say_the_same(
    module: VAE, source: OpenSource, options: dict[str, Any]
) -> None:
    sampled, full = (
        table(module, source, estimator=e, n_samples_overall=6_000, **options) for e in ESTIMATORS
    )
    assert list(sampled) == list(full)
    drawn = ["lfc_min", "lfc_max", "bayes_factor", "pseudocounts"]
    assert_near(*(t.drop(columns=drawn, errors="ignore") for t in (full, sampled)), atol=0.12)
    assert full.attrs["estimator"] == "full"
    assert 0 < full.attrs["lfc_error_bound"] < 0.2
    assert 0 <= full.attrs["outside_histograms"] < 0.02


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_seed_gives_one_table_whatever_the_batch_size(
    module: VAE, source: OpenSource, estimator: str
) -> None:
    grouping = grouping_of(source.store, groupby="donor")
    options = DifferentialOptions(**FEW, estimator=estimator)
    one, other = (
        differential_expression(module, cells_of(source, size), grouping, options)
        for size in (7, 60)
    )
    assert_near(one, other, atol=2e-3)
    again = differential_expression(module, cells_of(source, 7), grouping, options)
    pd.testing.assert_frame_equal(one, again)
    different = DifferentialOptions(**{**FEW, "seed": 4}, estimator="sample")
    changed = differential_expression(module, cells_of(source, 7), grouping, different)
    assert not np.allclose(one["lfc_mean"], changed["lfc_mean"])


def test_parts_of_a_histogram_pass_add_up(module: VAE, source: OpenSource) -> None:
    codes_n = np.arange(60) % 3
    grid = Grid(np.full(12, -12, np.float32), np.full(12, 0.25, np.float32), 64)
    draws_s = np.array([1, 2, 3])
    the_pass = HistogramPass(codes_n, draws_s, grid, (None, 1), DecodeOptions(), True)
    whole = the_pass.compute(module, cells_of(source), the_pass.payload(np.arange(60)))
    total: Any = None
    for start, stop in Parts(part_cells=13).cells(60):
        payload = the_pass.payload(np.arange(start, stop))
        part = the_pass.compute(module, part_of(cells_of(source, 5), start, stop), payload)
        total = part if total is None else merge(the_pass.rules, total, part)
    assert set(whole) == set(the_pass.rules)
    for name, value in whole.items():
        if name == "histogram":
            # A draw may cross the edge of a bin by rounding.
            assert np.abs(total[name].astype(int) - value.astype(int)).sum() <= 4
        else:
            np.testing.assert_allclose(total[name], value, rtol=1e-5, err_msg=name)
    assert (whole["histogram"].sum(axis=1) == np.tile(20 * draws_s, 2)[:, None]).all()


def test_the_order_of_cells_changes_nothing(module: VAE, source: OpenSource) -> None:
    grid = Grid(np.full(12, -12, np.float32), np.full(12, 0.25, np.float32), 64)
    codes_n, order = np.arange(60) % 3, np.random.default_rng(0).permutation(60)
    found = []
    for rows in (np.arange(60), order):
        the_pass = HistogramPass(
            codes_n[rows], np.ones(3, dtype=int), grid, (None,), DecodeOptions(), True
        )
        cells = StoreCells(source, Selection(60, rows), StreamConfig(seed=3))
        found.append(the_pass.compute(module, cells, the_pass.payload(np.arange(60))))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_passes_can_be_run_by_others(module: VAE, source: OpenSource, estimator: str) -> None:
    seen = []

    def run(cell_pass: CellPass, *arguments: Any) -> dict[str, np.ndarray]:
        seen.append(cell_pass)
        module, cells, _ = arguments
        return run_here(cell_pass, module, cells, Parts(part_cells=9, block_genes=5))

    grouping = grouping_of(source.store, groupby="label")
    options = DifferentialOptions(**FEW, estimator=estimator)
    got = differential_expression(module, cells_of(source), grouping, options, None, run)
    expected = differential_expression(module, cells_of(source), grouping, options)
    assert_near(got, expected, atol=2e-3)
    assert seen
    assert len({str(dict(p.facts)) for p in seen}) == len(seen)


def test_importance_weighted_draws_have_a_table_of_the_same_form(
    module: VAE, source: OpenSource
) -> None:
    importance = ImportanceOptions(max_cells=10, n_mc_samples=10, n_mc_samples_per_pass=5)
    by = {"groupby": "label", "group1": "x"}
    got = table(module, source, by, importance=importance)
    assert list(got) == list(table(module, source, by))
    assert got["proba_de"].between(0, 1).all()
    with pytest.raises(ConfigError, match="estimator='sample'"):
        DifferentialOptions(estimator="full", importance=importance)


def test_outliers_take_no_part_but_are_counted(module: VAE, source: OpenSource) -> None:
    kept = table(module, source, filter_outlier_cells=True)
    every = table(module, source)
    for name in (c for c in every if c.startswith(("raw", "non_zeros"))):
        first, second = (t.set_index("comparison", append=True)[name] for t in (kept, every))
        np.testing.assert_allclose(first.sort_index(), second.sort_index())
    assert not np.allclose(kept["scale1"].sort_index(), every["scale1"].sort_index())


@pytest.mark.filterwarnings("ignore:The covariance matrix:UserWarning")
@pytest.mark.filterwarnings("ignore:Determinant has increased:RuntimeWarning")
def test_too_few_cells_have_no_outliers(module: VAE, source: OpenSource) -> None:
    with pytest.warns(UserWarning, match="no outliers are left out"):
        table(module, source, {"idx1": [0], "idx2": [2]}, filter_outlier_cells=True)


def test_identical_populations_do_not_differ(module: VAE, source: OpenSource) -> None:
    everyone = list(range(60))
    for estimator in ESTIMATORS:
        got = table(
            module,
            source,
            {"idx1": everyone, "idx2": everyone},
            estimator=estimator,
            n_samples_overall=6_000,
        )
        assert np.abs(got["lfc_mean"]).max() < 0.05
        np.testing.assert_allclose(got["scale1"], got["scale2"], rtol=0.03)
        assert "comparison" not in got


def test_large_draws_go_to_a_file(
    module: VAE, source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = table(module, source)
    monkeypatch.setattr("scvi_dist.analysis.differential.pairs.IN_MEMORY_BYTES", 100)
    pd.testing.assert_frame_equal(table(module, source), expected)
