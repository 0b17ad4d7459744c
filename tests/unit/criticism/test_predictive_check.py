"""PosteriorPredictiveCheck: the same metrics whatever the parts, the order and the store."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from scvi_dist.analysis.passes.cell_pass import Parts, run_here
from scvi_dist.criticism import DEOptions, PosteriorPredictiveCheck
from scvi_dist.criticism.names import METRICS
from scvi_dist.data import open_store
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.errors import ConfigError, SchemaMismatch
from scvi_dist.model import SCVI, TOTALVI

N, G = 90, 24
SETUP = {"batch_key": "batch", "labels_key": "label"}
HOW: dict[str, Any] = {"n_samples": 5, "seed": 3}
WILCOXON = DEOptions(de_groupby="label", de_method="wilcoxon", n_samples=2)


def make_cells(seed: int = 0, n: int = N) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    group = rng.integers(3, size=n)
    rates = rng.lognormal(-0.3, 1.2, (3, G))[group] * rng.gamma(3.0, 0.4, (n, 1))
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["b0", "b1"], n), categories=["b0", "b1"]),
            "label": pd.Categorical.from_codes(group, ["x", "y", "z"]),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(G)])
    cells = anndata.AnnData(csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=var)
    cells.layers["doubled"] = cells.X * 2
    return cells


def make_model(cells: Any, seed: int = 0, **arguments: Any) -> SCVI:
    SCVI.setup_anndata(cells, **SETUP)
    torch.manual_seed(seed)
    model = SCVI(cells, n_hidden=8, n_latent=3, **arguments)
    model.is_trained = True
    return model


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return make_cells()


@pytest.fixture(scope="module")
def models(cells: anndata.AnnData) -> dict[str, SCVI]:
    return {"zinb": make_model(cells), "nb": make_model(cells, 1, gene_likelihood="nb")}


def tables(check: PosteriorPredictiveCheck) -> dict[str, pd.DataFrame]:
    """All tables of a check."""
    found = {k: v for k, v in check.metrics.items() if k != "diff_exp"}
    if check.coverage is not None:
        found["coverage"] = check.coverage
    if "diff_exp" in check.metrics:
        found["summary"] = check.metrics["diff_exp"]["summary"]
        for name, groups in check.metrics["diff_exp"]["lfc_per_model_per_group"].items():
            found |= {f"{name}, {group}": table for group, table in groups.items()}
    return found


def assert_same(one: Any, other: Any, rtol: float = 1e-9) -> None:
    first, second = tables(one), tables(other)
    assert set(first) == set(second)
    for name, table in first.items():
        pd.testing.assert_frame_equal(table, second[name], rtol=rtol, obj=name)


@pytest.fixture(scope="module")
def whole(cells: anndata.AnnData, models: dict[str, SCVI]) -> PosteriorPredictiveCheck:
    check = PosteriorPredictiveCheck(cells, models, **HOW)
    check.run(METRICS, de=WILCOXON)
    return check


def test_values_are_those_of_dense_arrays(
    cells: anndata.AnnData, models: dict[str, SCVI], whole: PosteriorPredictiveCheck
) -> None:
    raw_nf = cells.X.toarray().astype(float)
    for name, model in models.items():
        draws = model.posterior_predictive_sample(cells, n_samples=5, seed=3)
        x_nfs = np.asarray(draws.todense() if hasattr(draws, "todense") else draws, dtype=float)
        for key, axis in (("cv_gene", 0), ("cv_cell", 1)):
            with np.errstate(invalid="ignore"):
                cv = np.nanmean(x_nfs.std(axis) / x_nfs.mean(axis), axis=-1)
            np.testing.assert_allclose(whole.metrics[key][name], cv, rtol=1e-9)
        zeros = (x_nfs == 0).mean((0, 2))
        np.testing.assert_allclose(whole.metrics["zero_fraction"][name], zeros)
        error = 0.0
        for below in (0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175):
            low, high = np.quantile(x_nfs, [below, 1 - below], axis=-1)
            share = ((raw_nf >= low) & (raw_nf <= high)).mean()
            error += (share - (1 - 2 * below)) ** 2
        np.testing.assert_allclose(whole.metrics["calibration"].loc["features", name], error)
    np.testing.assert_allclose(whole.metrics["zero_fraction"]["Raw"], (raw_nf == 0).mean(0))
    np.testing.assert_allclose(whole.metrics["cv_gene"]["Raw"], raw_nf.std(0) / raw_nf.mean(0))


@pytest.mark.parametrize("parts", [Parts(part_cells=7, block_genes=5), Parts(part_cells=50)])
def test_parts_merge_to_the_whole(
    cells: anndata.AnnData, models: dict[str, SCVI], whole: Any, parts: Parts
) -> None:
    def in_parts(*given: Any) -> Any:
        return run_here(*given, parts)

    check = PosteriorPredictiveCheck(cells, models, **HOW, executor=in_parts, batch_size=4)
    check.run(METRICS, de=WILCOXON)
    assert_same(check, whole, rtol=1e-6)


def test_the_order_of_cells_changes_nothing_but_their_order(
    cells: anndata.AnnData, models: dict[str, SCVI], whole: Any
) -> None:
    order = np.random.default_rng(1).permutation(N)
    check = PosteriorPredictiveCheck(cells, models, indices=order, **HOW)
    check.run(METRICS, de=WILCOXON)
    by_cell = whole.metrics["cv_cell"].loc[check.metrics["cv_cell"].index]
    pd.testing.assert_frame_equal(check.metrics["cv_cell"], by_cell, rtol=1e-6)
    for other in (check, whole):
        assert list(other.metrics["cv_cell"].index) == list(other.obs_names())
    rest = {k: v for k, v in tables(check).items() if k != "cv_cell"}
    for name, table in rest.items():
        pd.testing.assert_frame_equal(table, tables(whole)[name], rtol=1e-6, obj=name)


def test_metrics_that_are_asked_for_one_by_one_see_the_same_draws(
    cells: anndata.AnnData, models: dict[str, SCVI], whole: Any
) -> None:
    passes = []

    def counting(*given: Any) -> Any:
        passes.append(given[0].statistics)
        return run_here(*given)

    check = PosteriorPredictiveCheck(cells, models, **HOW, executor=counting)
    check.coefficient_of_variation("features")
    check.zero_fraction()
    check.coefficient_of_variation()
    assert len(passes) == len(models), "one pass for each model draws for all three"
    check.calibration_error()
    check.differential_expression("label", "wilcoxon", n_samples=2)
    assert len(passes) == 3 * len(models)
    assert_same(check, whole)
    other = PosteriorPredictiveCheck(cells, models, n_samples=5, seed=4)
    other.zero_fraction()
    zeros = other.metrics["zero_fraction"]
    assert not zeros["nb"].equals(check.metrics["zero_fraction"]["nb"])
    assert zeros["Raw"].equals(check.metrics["zero_fraction"]["Raw"])


def test_stores_and_held_out_cells(
    cells: anndata.AnnData, models: dict[str, SCVI], whole: Any, tmp_path: Path
) -> None:
    write_zarr(open_store(cells), tmp_path / "cells.zarr")
    check = PosteriorPredictiveCheck(str(tmp_path / "cells.zarr"), models, **HOW)
    check.run(METRICS, de=WILCOXON)
    assert_same(check, whole, rtol=1e-6)
    others = make_cells(seed=9, n=40)[:, ::-1].copy()
    check = PosteriorPredictiveCheck(others, models, **HOW)
    check.run()
    ordered = others[:, check.features].X.toarray()
    np.testing.assert_allclose(check.metrics["zero_fraction"]["Raw"], (ordered == 0).mean(0))
    assert list(check.metrics["cv_cell"].index) == list(others.obs_names)


def test_nothing_is_written_into_the_data(cells: anndata.AnnData, models: dict[str, Any]) -> None:
    before = cells.copy()
    check = PosteriorPredictiveCheck(cells, models, **HOW)
    check.run(METRICS)
    assert repr(before) == repr(cells)
    np.testing.assert_array_equal(before.X.toarray(), cells.X.toarray())


def test_counts_of_another_layer(cells: anndata.AnnData, models: dict[str, SCVI]) -> None:
    check = PosteriorPredictiveCheck(cells, models, count_layer_key="doubled", **HOW)
    check.run()
    plain = PosteriorPredictiveCheck(cells, models, **HOW)
    plain.run()
    for key in ("cv_gene", "cv_cell", "zero_fraction"):
        pd.testing.assert_frame_equal(check.metrics[key], plain.metrics[key])
    assert not check.coverage.equals(plain.coverage)
    on_layer = cells.copy()
    SCVI.setup_anndata(on_layer, layer="doubled", **SETUP)
    other = SCVI(on_layer)
    other.is_trained = True
    with pytest.raises(ConfigError, match="different layers"):
        PosteriorPredictiveCheck(cells, {**models, "layer": other}, **HOW)


def test_ranks_in_bins_are_nearly_exact(
    cells: anndata.AnnData, models: dict[str, SCVI], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scvi_dist.criticism.check.EXACT_BYTES", 17_000)
    check = PosteriorPredictiveCheck(cells, models, **HOW)
    check.run(["diff_exp"], de=WILCOXON)
    got, exact = tables(check)["summary"], tables(whole)["summary"]
    assert not got.equals(exact)
    np.testing.assert_allclose(got["roc_auc"], exact["roc_auc"], atol=0.05)
    np.testing.assert_allclose(got["lfc_mae"], exact["lfc_mae"], rtol=1e-9)


def test_cells_of_no_group_belong_to_the_rest(
    cells: anndata.AnnData, models: dict[str, SCVI]
) -> None:
    some = cells.copy()
    some.obs["partly"] = some.obs["label"].where(some.obs["label"] != "z")
    some.obs["whole"] = some.obs["label"]
    found = []
    for column in ("partly", "whole"):
        check = PosteriorPredictiveCheck(some, models, **HOW)
        check.differential_expression(column)
        table = check.metrics["diff_exp"]["summary"]
        found.append(table[table["group"] != "z"].reset_index(drop=True))
    pd.testing.assert_frame_equal(*found)
    assert found[0]["group"].tolist() == ["x", "y"] * 2


def test_a_perfect_model_agrees_perfectly() -> None:
    from scvi_dist.analysis.group_tests import GroupSums, welch_tests
    from scvi_dist.criticism.agreement import agreement

    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 0.5, (200, 50)) * rng.choice([1, 3], (1, 50))
    values[:80, :10] *= 2
    values[:80, 10:15] /= 2
    codes = np.repeat([0, 1], [80, 120])
    sums = [np.array([part[codes == c].sum(0) for c in (0, 1)]) for part in (values, values**2)]
    tests = welch_tests(GroupSums(np.array([80, 120]), *sums))
    got = agreement(tests, tests, 0, DEOptions(p_val_thresh=0.01))
    perfect = dict.fromkeys(("gene_f1", "lfc_pearson", "lfc_spearman", "roc_auc", "pr_auc"), 1.0)
    assert got == pytest.approx({**perfect, "lfc_mae": 0.0}, abs=2e-3)


def test_genes_and_proteins_of_totalvi() -> None:
    rng = np.random.default_rng(0)
    cells = make_cells()
    proteins = rng.poisson(20, (N, 4))
    names = [f"CD{i}" for i in range(4)]
    cells.obsm["protein"] = pd.DataFrame(proteins, index=cells.obs_names, columns=names)
    TOTALVI.setup_anndata(cells, protein_expression_obsm_key="protein", batch_key="batch")
    torch.manual_seed(0)
    model = TOTALVI(cells, n_latent=3, n_hidden=8, empirical_protein_background_prior=False)
    model.is_trained = True
    drawn = model.posterior_predictive_sample(cells, n_samples=5, seed=3)
    observed = {"rna": cells.X.toarray(), "protein": proteins}
    for modality, raw_nf in observed.items():
        check = PosteriorPredictiveCheck(cells, {"t": model}, modality=modality, **HOW)
        check.run(METRICS, de=DEOptions(de_groupby="label"))
        zeros = check.metrics["zero_fraction"]
        np.testing.assert_allclose(zeros["t"], (drawn[modality] == 0).mean((0, 2)))
        np.testing.assert_allclose(zeros["Raw"], (raw_nf == 0).mean(0))
        assert len(check.metrics["diff_exp"]["summary"]) == 3
    assert list(check.features) == names
    with pytest.raises(ConfigError, match="modality"):
        PosteriorPredictiveCheck(cells, {"t": model}, modality="atac")
    with pytest.raises(ConfigError, match="layer of genes"):
        PosteriorPredictiveCheck(cells, {"t": model}, "doubled", modality="protein")


def test_what_cannot_be_compared_is_refused(
    cells: anndata.AnnData, models: dict[str, SCVI]
) -> None:
    fewer = cells[:, :10].copy()
    other = make_model(fewer)
    with pytest.raises(SchemaMismatch, match="same features"):
        PosteriorPredictiveCheck(cells, {**models, "fewer": other})
    with pytest.raises(ConfigError, match="Raw"):
        PosteriorPredictiveCheck(cells, {"Raw": models["nb"]})
    check = PosteriorPredictiveCheck(cells, models, **HOW)
    with pytest.raises(ConfigError, match="cv_cell"):
        check.run(["cv_cells"])
    with pytest.raises(ConfigError, match="features"):
        check.coefficient_of_variation("genes")  # type: ignore[arg-type]
    for wrong in ([0.1, 0.5, 0.9], [0.9, 0.1], [-0.1, 0.5], []):
        with pytest.raises(ConfigError, match="even number"):
            check.calibration_error(wrong)
    with pytest.raises(ConfigError, match="n_samples"):
        check.differential_expression("label", n_samples=0)
    with pytest.raises(ConfigError, match="1 … 5"):
        check.differential_expression("label", n_samples=6)
    with pytest.raises(ConfigError, match="wilcoxon"):
        check.differential_expression("label", "wilcox")  # type: ignore[arg-type]
    assert check.metrics == {}


def test_a_width_is_the_central_interval(cells: anndata.AnnData, models: dict[str, SCVI]) -> None:
    check = PosteriorPredictiveCheck(cells, models, **HOW)
    check.calibration_error(0.5)
    by_width = check.metrics["calibration"]
    check.calibration_error([0.25, 0.75])
    pd.testing.assert_frame_equal(by_width, check.metrics["calibration"])
    assert check.coverage is not None
    assert check.coverage.index.tolist() == [0.5]


def test_engines_give_the_same(cells: anndata.AnnData, models: dict[str, SCVI], whole: Any) -> None:
    pytest.importorskip("scvi_dist.analysis.passes.engines")
    check = PosteriorPredictiveCheck(cells, models, **HOW, dask="threads:2")
    check.run(METRICS, de=WILCOXON)
    assert_same(check, whole, rtol=1e-6)
