"""SCVI and scvi-tools' SCVI: the same answers from the same weights."""

from typing import Any

import numpy as np
import pytest
import torch
from scvi_pairs import fails_there, mean_of, quiet, uses_prior

from scvi_dist.analysis.expression import ExpressionOptions
from scvi_dist.analysis.importance import ImportanceOptions, _anchors, importance_weights
from scvi_dist.analysis.laws import parameters_of
from scvi_dist.analysis.streaming import collect
from scvi_dist.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi_dist.model import SCVI

pytestmark = pytest.mark.parity


def test_what_is_not_drawn_is_equal(pair: tuple[SCVI, Any]) -> None:
    ours, theirs = pair
    indices = [70, 3, 3, 0, 99]
    with quiet():
        mean, variance = theirs.get_latent_representation(return_dist=True)
        few = theirs.get_latent_representation(indices=indices, return_dist=True)
    got_mean, got_variance = ours.get_latent_representation(return_dist=True)
    assert (type(got_mean), got_mean.dtype) == (type(mean), mean.dtype)
    np.testing.assert_allclose(got_mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got_variance, variance, rtol=1e-5, atol=1e-7)
    got_few = ours.get_latent_representation(indices=indices, return_dist=True)
    np.testing.assert_allclose(got_few[0], few[0], rtol=1e-5, atol=1e-5)
    if ours.module.latent_distribution == "normal":
        np.testing.assert_array_equal(ours.get_latent_representation(), got_mean)
    if ours.module.use_observed_lib_size:
        expected = theirs.get_latent_library_size(give_mean=False)
        got = ours.get_latent_library_size(give_mean=False)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        with pytest.raises(ValueError, match="give_mean=False"):
            ours.get_latent_library_size()
    else:
        np.testing.assert_allclose(
            ours.get_latent_library_size(), theirs.get_latent_library_size(), rtol=1e-5
        )


def test_registries_and_summaries_are_equal(pair: tuple[SCVI, Any]) -> None:
    ours, theirs = pair
    assert dict(ours.summary_stats) == dict(theirs.summary_stats)
    assert theirs.summary_string.startswith(ours.summary_string)
    assert ours.init_params_ == theirs.init_params_
    assert ours.registry["setup_args"] == theirs.registry["setup_args"]
    assert ours.get_var_names().tolist() == theirs.get_var_names().tolist()
    fields, expected = ours.registry["field_registries"], theirs.registry["field_registries"]
    assert set(fields) == set(expected)
    for key in fields:
        assert fields[key]["summary_stats"] == expected[key]["summary_stats"], key


def test_bounds_and_likelihoods_agree(pair: tuple[SCVI, Any]) -> None:
    ours, theirs = pair
    each = {"return_mean": False, "indices": np.arange(80)}
    with quiet():
        elbo = mean_of(lambda: theirs.get_elbo(**each), 8)
        error = mean_of(lambda: theirs.get_reconstruction_error(**each)["reconstruction_loss"], 8)
        marginal = theirs.get_marginal_ll(n_mc_samples=20, **each).numpy()
        types = [type(theirs.get_elbo()), type(theirs.get_marginal_ll(n_mc_samples=1))]
    got = mean_of(lambda: ours.get_elbo(**each), 8)
    is_noisy = uses_prior(ours) or ours.module.gene_likelihood == "normal"
    near = 0.15 if is_noisy else 1e-2
    np.testing.assert_allclose(got.mean(), elbo.mean(), rtol=near)
    assert np.corrcoef(got, elbo)[0, 1] > 0.9
    got = mean_of(lambda: ours.get_reconstruction_error(**each)["reconstruction_loss"], 8)
    np.testing.assert_allclose(got.mean(), error.mean(), rtol=near)
    got = ours.get_marginal_ll(n_mc_samples=20, n_mc_samples_per_pass=10, **each)
    if ours.module.latent_distribution == "normal":
        # For the other scvi-tools takes densities of z after the softmax, which are not its own.
        rtol = 0.15 if is_noisy else 5e-3
        np.testing.assert_allclose(got.numpy().mean(), marginal.mean(), rtol=rtol)
    assert isinstance(ours.get_elbo(), types[0])
    assert isinstance(ours.get_marginal_ll(n_mc_samples=1), float)
    assert issubclass(types[1], float)


def test_likelihood_parameters_agree(pair: tuple[SCVI, Any]) -> None:
    ours, theirs = pair
    if ours.module.gene_likelihood in ("poisson", "normal"):
        # scvi-tools fails here.
        assert ours.get_likelihood_parameters(indices=[1])["mean"].shape == (1, 80)
        return
    if fails_there(theirs):
        pytest.skip("scvi-tools cannot decode several draws with a batch embedding")
    indices = np.arange(30)[::-1]
    with quiet():
        expected = theirs.get_likelihood_parameters(indices=indices, n_samples=50)
        single = theirs.get_likelihood_parameters(indices=indices)
    got = ours.get_likelihood_parameters(indices=indices, n_samples=50)
    got_single = ours.get_likelihood_parameters(indices=indices)
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert got_single[name].shape == single[name].shape
        if name == "dispersions":
            np.testing.assert_allclose(got_single[name], single[name], rtol=1e-4)
        else:
            assert got[name].shape == value.shape
            near = 0.5 if uses_prior(ours) else 0.05
            np.testing.assert_allclose(got[name].mean(), value.mean(), rtol=near)


def test_importance_weights_are_equal(
    pair: tuple[SCVI, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the same draws, and the same marginal likelihoods, which both estimate."""
    ours, theirs = pair
    if fails_there(theirs) or ours.module.gene_likelihood not in ("zinb", "nb"):
        pytest.skip("scvi-tools cannot weigh these, or weighs them with the wrong mean")
    indices = np.arange(25)
    cells = ours._cells_of(None, indices, 9, None, seed=4)
    options, settings = ExpressionOptions(), ImportanceOptions(n_mc_samples=20, max_cells=25)
    got = importance_weights(ours.module, cells, settings, options, n_samples=3)

    def draws(group: Any) -> dict[str, torch.Tensor]:
        inputs = ours.module._get_inference_input(group.tensors)
        inferred = ours.module.inference(**inputs, n_samples=3)
        given = ours.module._get_generative_input(group.tensors, inferred)
        law = ours.module.generative(**given)["px"]
        values = {**parameters_of(law), "scale": law.get_normalized("scale"), "z": inferred["z"]}
        return {name: value.movedim(1, 0) for name, value in values.items()}

    drawn = {
        name: torch.from_numpy(value).movedim(0, 1)
        for name, value in collect(ours.module, cells, draws).items()
    }
    zs = drawn.pop("z")
    with quiet():
        from scvi import distributions

        law = getattr(distributions, type(_law_of(ours)).__name__)(**drawn)
        mean, variance = ours.get_latent_representation(indices=indices, return_dist=True)
        qz = torch.distributions.Normal(torch.tensor(mean), torch.tensor(variance).sqrt())
        anchors = _anchors(ours.module, cells, settings)
        monkeypatch.setattr(theirs, "get_marginal_ll", lambda *a, **k: anchors.log_px_a)
        expected = theirs.get_importance_weights(theirs.adata, indices, qz=qz, px=law, zs=zs)
    assert got.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(got.T.ravel(), expected, rtol=2e-3, atol=1e-6)


def _law_of(model: SCVI) -> Any:
    kinds = {"zinb": ZeroInflatedNegativeBinomial, "nb": NegativeBinomial}
    one = torch.ones(1, 1)
    given = {"mu": one, "theta": one} | (
        {"zi_logits": one} if model.module.gene_likelihood == "zinb" else {}
    )
    return kinds[model.module.gene_likelihood](**given)
