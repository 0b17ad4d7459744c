"""What is asked of an SCVI model, as a user asks it."""

from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from scipy import stats
from scvi_models import G, make_adata, make_model

from scvi_dist.errors import (
    ConfigError,
    FieldNotFound,
    NotTrained,
)
from scvi_dist.model import SCVI


def test_expression_comes_with_names(model: SCVI, adata: anndata.AnnData) -> None:
    table = model.get_normalized_expression(indices=[7, 2], gene_list=["gene5", "gene1"])
    assert table.index.tolist() == ["cell7", "cell2"]
    assert table.columns.tolist() == ["gene1", "gene5"]
    drawn = model.get_normalized_expression(indices=[7, 2], n_samples_overall=30)
    assert set(drawn.index) == {"cell7", "cell2"}
    loader = [{"X": torch.ones(4, G), "batch": torch.zeros(4, 1, dtype=torch.long)}]
    assert model.get_normalized_expression(dataloader=loader).shape == (4, G)
    with pytest.raises(ConfigError, match="either"):
        model.get_elbo(adata, dataloader=loader)


def test_arguments_that_make_no_sense(model: SCVI) -> None:
    with pytest.raises(ConfigError, match="did you mean 'b1'"):
        model.get_normalized_expression(transform_batch="b11")
    with pytest.raises(FieldNotFound, match="none of the genes"):
        model.get_normalized_expression(gene_list=["GENE1"])
    with pytest.warns(UserWarning, match="1 of 2 genes.*nothere"):
        table = model.get_normalized_expression(gene_list=["gene1", "nothere"])
    assert table.columns.tolist() == ["gene1"]
    with pytest.raises(ConfigError, match="uniform"):
        model.get_normalized_expression(n_samples_overall=4, weights="importnace")
    with pytest.raises(ConfigError, match="needs n_samples_overall"):
        model.get_normalized_expression(weights="importance")
    with pytest.raises(ConfigError, match="did you mean 'n_mc_samples'"):
        model.get_normalized_expression(n_samples_overall=4, n_mc_sample=3)
    chosen = model.get_normalized_expression(
        n_samples_overall=4, weights="importance", n_mc_samples=5
    )
    assert chosen.shape == (4, G)


def test_draws_follow_torchs_seed_or_their_own(model: SCVI) -> None:
    torch.manual_seed(3)
    one = model.get_latent_representation(give_mean=False)
    two = model.get_latent_representation(give_mean=False)
    torch.manual_seed(3)
    np.testing.assert_array_equal(model.get_latent_representation(give_mean=False), one)
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(
        model.get_latent_representation(give_mean=False, seed=5, batch_size=7),
        model.get_latent_representation(give_mean=False, seed=5, batch_size=7),
    )


def test_results_can_go_to_a_store(model: SCVI, tmp_path: Path) -> None:
    url = model.get_latent_representation(out=tmp_path / "z.zarr", indices=[5, 1])
    written = anndata.read_zarr(url)
    assert written.obs_names.tolist() == ["cell5", "cell1"]
    expected = model.get_latent_representation(indices=[5, 1])
    np.testing.assert_allclose(written.obsm["X_latent"], expected, rtol=1e-5)
    url = model.get_normalized_expression(out=tmp_path / "x.zarr", gene_list=["gene2"])
    assert anndata.read_zarr(url).var_names.tolist() == ["gene2"]
    url = model.posterior_predictive_sample(out=tmp_path / "p.zarr")
    expected = model.posterior_predictive_sample(seed=0).todense()
    np.testing.assert_array_equal(anndata.read_zarr(url).X.toarray(), expected)


def test_an_untrained_model_does_not_answer(adata: anndata.AnnData) -> None:
    model = make_model(adata)
    model.is_trained = False
    with pytest.raises(NotTrained, match=r"train\(\)"):
        model.get_latent_representation()
    assert "Not Trained" in repr(model)
    assert model.history is None
    assert model.train_indices is None


@pytest.mark.parametrize("dof", [None, 3.0])
def test_the_aggregated_posterior_is_the_mixture_of_all(model: SCVI, dof: float | None) -> None:
    indices = [3, 3, 8]
    mixture = model.get_aggregated_posterior(indices=indices, dof=dof)
    mean, variance = model.get_latent_representation(indices=indices, return_dist=True)
    z = torch.linspace(-1, 1, 15).view(5, 3)
    law = stats.norm if dof is None else partial(stats.t, df=dof)
    density = np.mean(
        [
            law(loc=m, scale=np.sqrt(v)).pdf(z.numpy()).prod(1)
            for m, v in zip(mean, variance, strict=True)
        ],
        axis=0,
    )
    np.testing.assert_allclose(mixture.log_prob(z).exp().numpy(), density, rtol=1e-4)
    assert mixture.sample((4,)).shape == (4, 3)
    with pytest.raises(ConfigError, match="dof"):
        model.get_aggregated_posterior(dof=0)


def test_batches_as_learned_vectors(model: SCVI, adata: anndata.AnnData) -> None:
    embedded = make_model(make_adata(), batch_representation="embedding")
    vectors = embedded.get_batch_representation(indices=[5, 0])
    codes = adata.obs["batch"].cat.codes.to_numpy()[[5, 0]]
    table = embedded.module.batch_embedding.weight.detach().numpy()
    np.testing.assert_array_equal(vectors, table[codes])
    with pytest.raises(ConfigError, match="batch_representation='embedding'"):
        model.get_batch_representation()


def test_arguments_about_torchs_loaders_change_nothing_or_are_refused(model: SCVI) -> None:
    plain = model.get_latent_representation()
    kwargs = {"num_workers": 3, "pin_memory": True, "shuffle": False}
    np.testing.assert_array_equal(model.get_latent_representation(**kwargs), plain)
    assert model.get_elbo(data_loader_kwargs=kwargs).isfinite()
    with pytest.raises(ConfigError, match="shuffle=True"):
        model.get_latent_representation(shuffle=True)
    with pytest.raises(ConfigError, match="did you mean 'num_workers'"):
        model.get_likelihood_parameters(n_workers=2)
