"""Differential expression: the same draws give scvi-tools' table; other draws give one like it."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu, spearmanr
from scvi_pairs import quiet

from scvi_dist.analysis.differential.groups import Comparison
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.pairs import PairedDraws, compared_draws
from scvi_dist.analysis.differential.table import table_of
from scvi_dist.model import SCVI, TOTALVI

pytestmark = pytest.mark.parity

N_DRAWS = 400
CASES: dict[str, dict[str, Any]] = {
    "vanilla": {"mode": "vanilla"},
    "change": {"mode": "change", "pseudocounts": 1e-6},
    "two": {"mode": "change", "pseudocounts": 1e-6, "test_mode": "two"},
    "pseudocounts": {"mode": "change", "pseudocounts": 1e-3, "delta": 0.5},
    "found pseudocounts": {"mode": "change", "pseudocounts": None},
    "found threshold": {"mode": "change", "pseudocounts": None, "threshold_counts": 1.0},
    "found delta": {"mode": "change", "pseudocounts": 1e-6, "delta": None},
    "intervals": {"mode": "change", "pseudocounts": 1e-6, "cred_interval_lvls": [0.5, 0.9, 0.95]},
    "effect": {
        "mode": "change",
        "pseudocounts": 1e-6,
        "change_fn": lambda x, y, c: x - y + c,
        "m1_domain_fn": lambda d: (d > 1e-4, d < -1e-4),
    },
}


def drawn(n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales of two populations, as float32 numbers in float64: both sides can compute exactly."""
    rng = np.random.default_rng(3)
    centre = rng.normal(-9, 2, n_features)
    shift = rng.choice([-1.5, 0.0, 0.0, 1.5], n_features)
    pair = (rng.normal(centre + s, 0.4, (N_DRAWS, n_features)) for s in (shift, 0.0))
    first, second = (np.exp2(x).astype(np.float32).astype(np.float64) for x in pair)
    return first, second


def columns_there(
    manager: Any, draws: tuple[np.ndarray, np.ndarray], is_first: np.ndarray, options: dict
) -> dict[str, Any]:
    """What scvi-tools computes of these draws."""
    from scvi.model.base._differential import DifferentialComputation

    queue = iter(draws)
    computation = DifferentialComputation(lambda *_, **__: next(queue), None, manager)
    arguments = {"delta": 0.25, "use_observed_batches": True, **options}
    if options["mode"] == "vanilla":
        arguments["pseudocounts"] = 1e-6
    with quiet():
        np.random.seed(0)
        return computation.get_bayes_factors(is_first, ~is_first, **arguments)


@pytest.mark.parametrize("case", CASES)
def test_the_same_draws_give_the_same_columns(scvi: Any, adata: anndata.AnnData, case: str) -> None:
    with quiet():
        scvi.model.SCVI.setup_anndata(adata)
        manager = scvi.model.SCVI(adata).adata_manager
    is_first = np.asarray(adata.obs["batch"] == adata.obs["batch"].iloc[0])
    first, second = drawn(adata.n_vars)
    options = CASES[case]
    expected = columns_there(manager, (first, second), is_first, options)
    got = compared_draws(
        PairedDraws.aligned(first.astype(np.float32), second.astype(np.float32)),
        DifferentialOptions(
            **{**options, "cred_interval_lvls": tuple(options.get("cred_interval_lvls", ()))}
        ),
        tuple(np.asarray(adata.X[side].mean(0)).ravel() for side in (is_first, ~is_first)),
    )
    assert list(got) == list(expected)
    for name, value in expected.items():
        if value is not None:
            np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("fdr", [0.05, 0.2])
def test_the_same_columns_give_the_same_calls_and_order(scvi: Any, fdr: float) -> None:
    from scvi.model.base._de_core import _fdr_de_prediction

    rng = np.random.default_rng(0)
    columns = {"proba_de": rng.beta(0.3, 0.3, 500)}
    one = Comparison(group1="a", group2="Rest", first=(0,), second=(1,))
    options = DifferentialOptions(mode="change", fdr_target=fdr)
    names = np.array([f"g{i}" for i in range(500)], dtype=object)
    table = table_of(columns, one, options, names, is_named=True)
    there = pd.DataFrame(columns, index=names).sort_values("proba_de", ascending=False)
    assert table.index.tolist() == there.index.tolist()
    called = table[f"is_de_fdr_{fdr}"]
    assert (called == _fdr_de_prediction(there["proba_de"], fdr)).all()
    assert 0 < called.sum() < 500
    assert table["comparison"].unique().tolist() == ["a vs Rest"]


@pytest.fixture(scope="module")
def mixology(scvi: Any, shared_data: Path) -> tuple[SCVI, Any]:
    """One model of real cells in both packages."""
    folder = shared_data / "scvi_tools_1.4.2_scvi_mixology"
    with quiet():
        theirs = scvi.model.SCVI.load(folder)
    return SCVI.load(folder, adata=folder / "adata.h5ad"), theirs


LINES: dict[str, Any] = {"groupby": "cell_type", "mode": "change"}


@pytest.mark.parametrize("estimator", ["sample", "full"])
def test_a_cell_line_differs_from_the_rest_as_there(
    mixology: tuple[SCVI, Any], estimator: str
) -> None:
    ours, theirs = mixology
    line = sorted(theirs.adata.obs["cell_type"].unique())[0]
    with quiet():
        torch.manual_seed(0)
        np.random.seed(0)
        expected = theirs.differential_expression(group1=[line], silent=True, **LINES)
    got = ours.differential_expression(group1=[line], estimator=estimator, seed=0, **LINES)
    assert list(got) == list(expected)
    got = got.loc[expected.index]
    assert spearmanr(got["lfc_mean"], expected["lfc_mean"])[0] > 0.99
    assert spearmanr(got["lfc_median"], expected["lfc_median"])[0] > 0.99
    assert np.abs(got["proba_de"] - expected["proba_de"]).mean() < 0.02
    for column in (c for c in expected if c.startswith(("raw", "non_zeros"))):
        np.testing.assert_allclose(got[column], expected[column], rtol=1e-5, err_msg=column)
    # Sanity: genes that rank high are those that a rank test of the counts finds.
    counts = theirs.adata.X.toarray() / theirs.adata.X.sum(1)
    is_in = np.asarray(theirs.adata.obs["cell_type"] == line)
    statistic = mannwhitneyu(counts[is_in], counts[~is_in]).statistic / (
        is_in.sum() * (~is_in).sum()
    )
    by_rank = pd.Series(statistic, index=theirs.adata.var_names).loc[got.index]
    assert spearmanr(got["lfc_mean"], by_rank)[0] > 0.7


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "vanilla"},
        {"mode": "change", "all_stats": False},
        {"mode": "change", "batch_correction": True},
        {"mode": "change", "cred_interval_lvls": [0.9]},
        {"mode": "change", "use_permutation": True, "m_permutation": 500},
    ],
    ids=str,
)
def test_tables_have_the_same_form(mixology: tuple[SCVI, Any], arguments: dict) -> None:
    ours, theirs = mixology
    lines = sorted(theirs.adata.obs["cell_type"].unique())[:2]
    asked = {"groupby": "cell_type", "group1": lines[0], "group2": lines[1], **arguments}
    asked["n_samples_overall"] = 500
    with quiet():
        expected = theirs.differential_expression(silent=True, **asked)
    got = ours.differential_expression(silent=True, **asked)
    assert list(got) == list(expected)
    assert sorted(got.index) == sorted(expected.index)
    for column in ("comparison", "group1", "group2"):
        assert got[column].unique().tolist() == expected[column].unique().tolist()
    assert [d.kind for d in got.dtypes] == [d.kind for d in expected.dtypes]
    value = "proba_de" if "proba_de" in got else "proba_m1"
    assert np.abs(got[value] - expected.loc[got.index, value]).mean() < 0.05


@pytest.fixture(scope="module")
def citeseq(scvi: Any, shared_data: Path) -> tuple[TOTALVI, Any]:
    folder = shared_data / "scvi_tools_1.4.2_totalvi_pbmc"
    with quiet():
        theirs = scvi.model.TOTALVI.load(folder)
    theirs.adata.obs["half"] = ["a", "b"] * (theirs.adata.n_obs // 2) + ["a"] * (
        theirs.adata.n_obs % 2
    )
    return TOTALVI.load(folder, adata=theirs.adata.copy()), theirs


@pytest.mark.parametrize("estimator", ["sample", "full"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"use_field": ["protein"], "scale_protein": True},
        {"use_field": ["rna"], "mode": "vanilla"},
        {"include_protein_background": True, "protein_prior_count": 1.0},
    ],
    ids=str,
)
def test_genes_and_proteins_differ_as_there(
    citeseq: tuple[TOTALVI, Any], arguments: dict, estimator: str
) -> None:
    ours, theirs = citeseq
    cells = theirs.get_latent_representation()[:, 0]
    is_high = cells > np.median(cells)
    with quiet():
        expected = theirs.differential_expression(
            idx1=is_high, idx2=~is_high, silent=True, **arguments
        )
    got = ours.differential_expression(
        idx1=is_high, idx2=~is_high, estimator=estimator, seed=0, **arguments
    )
    assert list(got) == list(expected)
    got = got.loc[expected.index]
    value = "proba_m1" if "proba_m1" in got else "proba_de"
    assert np.abs(got[value] - expected[value]).mean() < 0.02
    np.testing.assert_allclose(got["scale1"], expected["scale1"], rtol=0.3)
    if value == "proba_de":
        assert np.abs(got["lfc_mean"] - expected["lfc_mean"]).mean() < 0.05
    for column in (c for c in expected if c.startswith(("raw", "non_zeros"))):
        np.testing.assert_allclose(got[column], expected[column], rtol=1e-5, err_msg=column)
