"""PosteriorPredictiveCheck and scvi-tools': the same metrics from the same draws.

Where scvi-tools 1.4.2 is wrong, the reference is a plain computation on dense arrays.
"""

from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi_pairs import quiet
from sklearn.metrics import average_precision_score, roc_auc_score

from scvi_dist.criticism import PosteriorPredictiveCheck
from scvi_dist.model import SCVI

pytestmark = pytest.mark.parity

N_SAMPLES, SEED = 6, 5
LFC = ["gene_f1", "lfc_mae", "lfc_pearson", "lfc_spearman"]


@pytest.fixture(scope="module")
def cells(adata: anndata.AnnData) -> anndata.AnnData:
    cells = adata.copy()
    # scvi-tools fails on counts that are stored as floats.
    cells.X = cells.X.astype(np.int64)
    return cells


@pytest.fixture(scope="module")
def models(cells: anndata.AnnData) -> dict[str, SCVI]:
    made = {}
    for number, likelihood in enumerate(("zinb", "poisson")):
        SCVI.setup_anndata(cells, batch_key="batch", labels_key="cell_type")
        torch.manual_seed(number)
        model = SCVI(cells, gene_likelihood=likelihood, n_hidden=16)
        model.is_trained = True
        made[likelihood] = model
    return made


@pytest.fixture(scope="module")
def ours(cells: anndata.AnnData, models: dict[str, SCVI]) -> PosteriorPredictiveCheck:
    check = PosteriorPredictiveCheck(cells, models, n_samples=N_SAMPLES, seed=SEED)
    check.run()
    return check


def _theirs(cells: anndata.AnnData, models: dict[str, Any]) -> Any:
    """scvi-tools' check of the draws that these models make."""
    from scvi.criticism import PosteriorPredictiveCheck as Check

    def drawn_by(model: SCVI) -> Any:
        def posterior_predictive_sample(*_: Any, n_samples: int, **__: Any) -> Any:
            return model.posterior_predictive_sample(cells, n_samples=n_samples, seed=SEED)

        return SimpleNamespace(adata=cells, posterior_predictive_sample=posterior_predictive_sample)

    named = {name: drawn_by(model) for name, model in models.items()}
    with quiet():
        return Check(cells, named, n_samples=N_SAMPLES)


@pytest.fixture(scope="module")
def theirs(scvi: Any, cells: anndata.AnnData, models: dict[str, SCVI]) -> Any:
    return _theirs(cells, models)


def _equal(got: pd.DataFrame, expected: pd.DataFrame, **how: Any) -> None:
    assert list(got.columns) == list(expected.columns)
    assert list(got.index) == list(expected.index)
    assert got.index.name == expected.index.name
    np.testing.assert_allclose(got.to_numpy(), expected.to_numpy(), rtol=1e-6, **how)


def test_coefficients_of_variation_are_equal(ours: Any, theirs: Any) -> None:
    with quiet():
        theirs.coefficient_of_variation("cells")
        theirs.coefficient_of_variation("features")
    for key in ("cv_gene", "cv_cell"):
        _equal(ours.metrics[key], theirs.metrics[key])


def test_fractions_of_zeros_are_of_zeros(
    ours: Any, theirs: Any, cells: anndata.AnnData, models: dict[str, SCVI]
) -> None:
    with quiet():
        theirs.zero_fraction()
    _equal(ours.metrics["zero_fraction"], 1 - theirs.metrics["zero_fraction"], atol=1e-12)
    got = ours.metrics["zero_fraction"]
    np.testing.assert_allclose(got["Raw"], (cells.X.toarray() == 0).mean(0))
    drawn = models["zinb"].posterior_predictive_sample(cells, n_samples=N_SAMPLES, seed=SEED)
    np.testing.assert_allclose(got["zinb"], (drawn.todense() == 0).mean((0, 2)))


@pytest.mark.parametrize("quantiles", [None, [0.05, 0.2, 0.31, 0.5, 0.9, 1.0]])
def test_each_model_is_calibrated_by_itself(
    scvi: Any, cells: anndata.AnnData, models: dict[str, SCVI], quantiles: Any
) -> None:
    check = PosteriorPredictiveCheck(cells, models, n_samples=N_SAMPLES, seed=SEED)
    check.calibration_error(quantiles)
    for name, model in models.items():
        one = _theirs(cells, {"model1": model})
        with quiet():
            one.calibration_error(quantiles)
        got = check.metrics["calibration"][[name]].set_axis(["model1"], axis=1)
        _equal(got, one.metrics["calibration"])
    assert check.metrics["calibration"].iloc[0].nunique() == len(models)


@pytest.mark.parametrize(("method", "n_samples"), [("t-test", 3), ("wilcoxon", 1)])
def test_agreement_of_differential_expression(
    scvi: Any, cells: anndata.AnnData, models: dict[str, SCVI], method: Any, n_samples: int
) -> None:
    pytest.importorskip("scanpy")
    how = {"de_groupby": "cell_type", "de_method": method, "n_samples": n_samples}
    check = PosteriorPredictiveCheck(cells, models, n_samples=N_SAMPLES, seed=SEED)
    check.differential_expression(**how)
    summary = check.metrics["diff_exp"]["summary"]
    groups = cells.obs["cell_type"].cat.categories
    assert len(summary) == len(models) * len(groups)
    for name, model in models.items():
        one = _theirs(cells, {name: model})
        compute = type(one).differential_expression
        while hasattr(compute, "__wrapped__"):
            # It asks for leidenalg although the groups are given.
            compute = compute.__wrapped__
        with quiet():
            compute(one, **how, n_top_genes_fallback=8)
        expected = one.metrics["diff_exp"]["summary"].set_index("group")
        got = summary[summary["model"] == name].set_index("group")
        assert list(summary.columns) == list(one.metrics["diff_exp"]["summary"].columns)
        assert list(got.index) == list(expected.index)
        for column in (*LFC, "n_cells"):
            wanted = expected[column].to_numpy(float)
            # scanpy keeps fold changes in single precision, and genes with equal sums of ranks in
            # any order, so that either of two may be the last of the eight with highest scores.
            near = 1 / 8 if (method, column) == ("wilcoxon", "gene_f1") else 1e-6
            np.testing.assert_allclose(got[column].to_numpy(float), wanted, rtol=1e-6, atol=near)
        changes = check.metrics["diff_exp"]["lfc_per_model_per_group"][name]
        for group, table in one.metrics["diff_exp"]["lfc_per_model_per_group"][name].items():
            here = changes[group].loc[table.index]
            np.testing.assert_allclose(here, table, rtol=1e-5, atol=1e-5)


def _tests(counts: Any, obs: pd.DataFrame, var: pd.DataFrame, method: str) -> anndata.AnnData:
    import scanpy as sc

    cells = anndata.AnnData(counts.astype(np.float32), obs=obs, var=var)
    with quiet():
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
        sc.tl.rank_genes_groups(cells, "cell_type", use_raw=False, method=method)
    return cells


def test_areas_count_a_gene_in_the_direction_that_it_has(
    cells: anndata.AnnData, models: dict[str, SCVI], ours: Any
) -> None:
    sc = pytest.importorskip("scanpy")
    model = models["poisson"]
    drawn = model.posterior_predictive_sample(cells, n_samples=N_SAMPLES, seed=SEED)
    check = PosteriorPredictiveCheck(cells, {"p": model}, n_samples=N_SAMPLES, seed=SEED)
    check.differential_expression("cell_type", p_val_thresh=0.05)
    raw = _tests(cells.X.toarray(), cells.obs, cells.var, "t-test")
    approx = _tests(drawn[:, :, 0].todense(), cells.obs, cells.var, "t-test")
    n_used = 0
    for row in check.metrics["diff_exp"]["summary"].itertuples():
        there = sc.get.rank_genes_groups_df(raw, row.group).set_index("names")
        here = sc.get.rank_genes_groups_df(approx, row.group).set_index("names")
        wanted = there["pvals_adj"] < 0.05
        if not 0 < wanted.sum() <= 0.5 * len(wanted):
            continue
        n_used += 1
        predicted = here["scores"].reindex(there.index) * np.where(there["scores"] < 0, -1, 1)
        np.testing.assert_allclose(row.roc_auc, roc_auc_score(wanted, predicted), rtol=1e-6)
        np.testing.assert_allclose(
            row.pr_auc, average_precision_score(wanted, predicted), rtol=1e-6
        )
    assert n_used > 0
