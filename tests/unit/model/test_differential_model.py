"""Differential expression as a user asks for it."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi_models import make_adata, make_model, sources_of

from scvi_dist.errors import ConfigError, NotTrained
from scvi_dist.model import SCANVI, SCVI, TOTALVI

FEW = {"n_samples_overall": 100, "seed": 0}
LABELS: dict[str, Any] = {"groupby": "label", "mode": "change", "pseudocounts": 1e-6, **FEW}


@pytest.fixture(scope="module")
def model() -> SCVI:
    return make_model(make_adata())


def test_any_form_of_the_data_gives_the_same_table(model: SCVI, tmp_path: Path) -> None:
    expected = model.differential_expression(**LABELS)
    for name, source in sources_of(make_adata(), tmp_path).items():
        got = model.differential_expression(source, **LABELS)
        pd.testing.assert_frame_equal(
            *(t.set_index("comparison", append=True).sort_index() for t in (got, expected)),
            check_exact=False,
            atol=1e-5,
            obj=name,
        )


def test_a_seed_or_torchs_generator_decides(model: SCVI) -> None:
    asked = {k: v for k, v in LABELS.items() if k != "seed"}
    torch.manual_seed(1)
    first, second = (model.differential_expression(**asked) for _ in range(2))
    torch.manual_seed(1)
    pd.testing.assert_frame_equal(model.differential_expression(**asked), first)
    assert not np.allclose(first["scale1"].sort_index(), second["scale1"].sort_index())


def test_the_users_data_stays_as_it_is(model: SCVI) -> None:
    cells = make_adata()
    before = cells.copy()
    model.differential_expression(cells, idx1="label == 'x'", **FEW)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert cells.uns.keys() == before.uns.keys()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_samples": 3}, "n_samples_overall"),
        ({"weights": "equal"}, "weights"),
        ({"weights": "importance", "importance_weighting_kwargs": {"cells": 3}}, "max_cells"),
        ({"change_fn": "difference"}, "change_fn"),
        ({"dask": 3}, "dask"),
        ({"batch_correction": True, "batchid1": ["b7"]}, "batchid1: 'b7'"),
        ({"batchid1": ["b0"]}, "batch_correction=True"),
        ({"estimator": "full", "weights": "importance"}, "estimator='sample'"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    model: SCVI, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model.differential_expression(**{**LABELS, **wrong})


def test_the_model_has_to_be_trained() -> None:
    untrained = make_model(make_adata())
    untrained.is_trained = False
    with pytest.raises(NotTrained):
        untrained.differential_expression(**LABELS)


def test_minified_data_has_no_statistics_of_counts() -> None:
    model = make_model(make_adata())
    mean, variance = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = mean, variance
    expected = model.differential_expression(**LABELS)
    model.minify_adata()
    for estimator in ("sample", "full"):
        with pytest.warns(UserWarning, match="no statistics of counts"):
            got = model.differential_expression(**LABELS, estimator=estimator)
        assert not [c for c in got if c.startswith("raw")]
        assert len(got) == len(expected)
    got = model.differential_expression(**LABELS, all_stats=False)
    np.testing.assert_allclose(
        *(t["scale1"].groupby(level=0).mean() for t in (got, expected)), rtol=1e-4
    )
    with pytest.raises(ConfigError, match="pseudocounts"):
        model.differential_expression(**{**LABELS, "pseudocounts": None})
    with pytest.raises(ConfigError, match="get_group_statistics"):
        model.get_group_statistics(groupby="label")


def test_scanvi_and_groups_statistics(model: SCVI) -> None:
    cells = make_adata()
    SCANVI.setup_anndata(cells, "label", "z", batch_key="batch")
    scanvi = SCANVI(cells, n_hidden=8, n_latent=3)
    scanvi.is_trained = True
    got = scanvi.differential_expression(groupby="label", **FEW)
    assert set(got["group1"]) == {"x", "y", "z"}
    known = model.get_group_statistics(groupby="label")
    counts = cells[cells.obs["label"] == "y"].X.toarray()
    np.testing.assert_allclose(known.loc["y", "mean"], counts.mean(0, dtype=float), rtol=1e-12)


@pytest.mark.parametrize("estimator", ["sample", "full"])
def test_totalvi_compares_genes_and_proteins(estimator: str) -> None:
    cells: anndata.AnnData = make_adata()
    rng = np.random.default_rng(0)
    cells.obsm["proteins"] = pd.DataFrame(
        rng.poisson(5.0, (cells.n_obs, 3)).astype(float), cells.obs_names, ["CD3", "CD4", "CD8"]
    )
    TOTALVI.setup_anndata(cells, "proteins", batch_key="batch")
    model = TOTALVI(cells, n_latent=3)
    model.is_trained = True
    asked = {"groupby": "label", "estimator": estimator, **FEW}
    both = model.differential_expression(**asked)
    genes, proteins = cells.var_names.tolist(), ["CD3_protein", "CD4_protein", "CD8_protein"]
    assert sorted(set(both.index)) == sorted([*genes, *proteins])
    assert both.loc["CD3_protein", "raw_normalized_mean1"].isna().all()
    is_x = np.asarray(cells.obs["label"] == "x")
    of_x = both[both["group1"] == "x"].loc["CD4_protein"]
    assert of_x["raw_mean1"] == pytest.approx(cells.obsm["proteins"]["CD4"][is_x].mean())
    scaled = model.differential_expression(
        **asked, use_field=["protein"], scale_protein=True, protein_prior_count=0.0
    )
    assert scaled[scaled["group1"] == "x"]["scale1"].sum() == pytest.approx(1.0, abs=1e-4)
    found = model.differential_expression(**{**asked, "pseudocounts": None})
    assert (found["pseudocounts"] > 0).all()
    drawn = model.differential_expression(
        **asked, sample_protein_mixing=True, include_protein_background=True
    )
    assert len(drawn) == len(both)
    with pytest.raises(ConfigError, match="use_field"):
        model.differential_expression(**asked, use_field=["atac"])
