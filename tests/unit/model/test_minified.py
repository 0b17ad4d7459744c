"""Minified data: the same answers from posteriors alone, and no answer where counts are needed."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from scvi_models import G, N, make_adata, make_model

from scvi_dist.data import open_store
from scvi_dist.data.minified import ADATA_MINIFY_TYPE, UNS_KEY
from scvi_dist.errors import ConfigError, FieldNotFound
from scvi_dist.model import SCVI, CellAssign

WITH_COUNTS = ADATA_MINIFY_TYPE.LATENT_POSTERIOR_WITH_COUNTS


def with_posteriors(**arguments: Any) -> SCVI:
    """A model whose AnnData holds its cells' posteriors."""
    adata = make_adata()
    model = make_model(adata, **arguments)
    mean, variance = model.get_latent_representation(return_dist=True)
    adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = mean, variance
    return model


def answers(model: SCVI) -> dict[str, np.ndarray]:
    """What a model says of its cells without looking at their counts again."""
    indices = [7, 2, 2, 40]
    mean, variance = model.get_latent_representation(return_dist=True)
    return {
        "mean": mean,
        "variance": variance,
        "some": model.get_latent_representation(indices=indices),
        "drawn": model.get_latent_representation(give_mean=False, seed=1),
        "expression": model.get_normalized_expression(seed=2, return_numpy=True),
        "expression, many": model.get_normalized_expression(
            seed=2, n_samples=3, library_size="latent", transform_batch="b1", return_numpy=True
        ),
        "predictive": model.posterior_predictive_sample(seed=3).todense(),
        "parameters": model.get_likelihood_parameters(seed=4)["mean"],
        "library": model.get_latent_library_size(give_mean=False),
    }


@pytest.mark.parametrize("kind", ADATA_MINIFY_TYPE)
@pytest.mark.parametrize("gene_likelihood", ["zinb", "poisson"])
def test_the_answers_stay_the_same(kind: str, gene_likelihood: str) -> None:
    model = with_posteriors(gene_likelihood=gene_likelihood)
    before, whole = answers(model), model.adata
    assert model.minified_data_type is None
    model.minify_adata(kind)
    assert model.minified_data_type == kind
    assert repr(model).endswith("minified?: True")
    for name, expected in before.items():
        got = answers(model)[name]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    small = model.adata
    assert small is not whole
    assert small.uns[UNS_KEY] == kind
    n_stored = 0 if kind == ADATA_MINIFY_TYPE.LATENT_POSTERIOR else whole.X.nnz
    assert small.X.nnz == small.layers["counts"].nnz == n_stored
    assert whole.X.nnz > 0
    assert UNS_KEY not in whole.uns
    np.testing.assert_array_equal(small.obs["observed_lib_size"], np.ravel(whole.X.sum(1)))


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = with_posteriors()
    before = answers(model)
    model.minify_adata()
    model.save(tmp_path / "m", save_anndata=True)
    model.adata.write_h5ad(tmp_path / "small.h5ad")
    # A store has no mark in uns: it is known by the posteriors that it has and the counts it lacks.
    for cells in (None, tmp_path / "small.h5ad", anndata.read_h5ad(tmp_path / "small.h5ad")):
        back = SCVI.load(tmp_path / "m", adata=cells)
        assert back.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR
        for name, expected in answers(back).items():
            np.testing.assert_allclose(before[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    bare = SCVI.load(tmp_path / "m", adata=False)
    assert bare.minified_data_type is None
    np.testing.assert_allclose(
        bare.get_latent_representation(make_adata()), before["mean"], rtol=1e-5
    )


def test_other_cells_may_have_counts_or_not() -> None:
    model = with_posteriors()
    expected = model.get_latent_representation()
    model.minify_adata()
    np.testing.assert_allclose(model.get_latent_representation(make_adata()), expected, rtol=1e-5)
    assert model.get_elbo(make_adata()).isfinite()
    other = with_posteriors()
    np.testing.assert_allclose(other.get_latent_representation(model.adata), expected, rtol=1e-5)
    fields = [model.adata_manager.get_from_registry(k) for k in ("latent_qzm", "minify_type")]
    np.testing.assert_array_equal(fields[0], expected)
    assert fields[1] == ADATA_MINIFY_TYPE.LATENT_POSTERIOR
    assert model.adata_manager.get_from_registry("observed_lib_size").shape == (N, 1)


def test_a_model_can_begin_with_minified_data() -> None:
    model = with_posteriors()
    model.minify_adata()
    SCVI.setup_anndata(model.adata, batch_key="batch")
    again = SCVI(model.adata, n_latent=3)
    assert again.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR
    again.is_trained = True
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.get_elbo(),
        lambda model: model.get_reconstruction_error(),
        lambda model: model.get_marginal_ll(n_mc_samples=2),
        lambda model: model.train(1),
    ],
)
def test_what_needs_counts_is_refused_without_them(ask: Any) -> None:
    model = with_posteriors()
    model.minify_adata()
    with pytest.raises(ConfigError, match="does not support minified data"):
        ask(model)
    model = with_posteriors()
    model.minify_adata(WITH_COUNTS)
    ask(model)


def test_what_cannot_be_minified_is_told(tmp_path: Path) -> None:
    model = with_posteriors()
    with pytest.raises(ConfigError, match="did you mean 'latent_posterior_parameters'"):
        model.minify_adata("latent_posterior_parameter")
    with pytest.raises(FieldNotFound, match="return_dist=True"):
        model.minify_adata(use_latent_qzm_key="X_pca")
    learned = with_posteriors(use_observed_lib_size=False)
    with pytest.raises(ConfigError, match="observed library size"):
        learned.minify_adata()
    make_adata().write_h5ad(tmp_path / "a.h5ad")
    stored = make_model(open_store(tmp_path / "a.h5ad"))
    with pytest.raises(ConfigError, match="take no memory"):
        stored.minify_adata()


def test_data_minified_for_another_model_is_refused() -> None:
    model = with_posteriors()
    model.minify_adata()
    small = model.adata
    with pytest.raises(ConfigError, match="minified"):
        CellAssign.setup_anndata(small)
    del small.obsm["scvi_latent_qzv"]
    with pytest.raises(ConfigError, match="scvi_latent_qzv"):
        SCVI.setup_anndata(small)
    strange = make_adata()
    strange.uns[UNS_KEY] = "by hand"
    with pytest.raises(ConfigError, match="by hand"):
        SCVI.setup_anndata(strange)
    assert small.n_vars == G
