"""TOTALVI and scvi-tools' TOTALVI: equal beginnings, equal answers, each other's files."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi_pairs import mean_of, quiet

from scvi_dist.data import synthetic_iid
from scvi_dist.model import TOTALVI

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

N, G, P = 80, 30, 12
KEY = "protein_expression"
ARGUMENTS: dict[str, Any] = {"n_latent": 4, "n_hidden": 8}
SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all measured": ({"batch_key": "batch"}, {}),
    "some missing": ({"batch_key": "batch", "missing": True}, {"gene_likelihood": "zinb"}),
    "missing, overridden": (
        {"batch_key": "batch", "missing": True},
        {"override_missing_proteins": True, "protein_dispersion": "protein-batch"},
    ),
    "panels, latent library": (
        {"batch_key": "batch", "panel_key": "panel", "missing": True},
        {"use_observed_lib_size": False},
    ),
    "covariates, no prior": (
        {"categorical_covariate_keys": ["labels"], "continuous_covariate_keys": ["depth"]},
        {"empirical_protein_background_prior": False, "latent_distribution": "ln"},
    ),
    "size factor": ({"batch_key": "batch", "size_factor_key": "depth"}, {}),
}


def make_cells(missing: bool) -> anndata.AnnData:
    np.random.seed(0)
    cells = synthetic_iid(batch_size=N // 2, n_genes=G, n_proteins=P, n_regions=0)
    cells.obs_names = [f"cell{i}" for i in range(N)]
    names = [f"CD{i}" for i in range(P)]
    cells.obsm[KEY] = pd.DataFrame(cells.obsm[KEY], index=cells.obs_names, columns=names)
    cells.obs["depth"] = np.linspace(0.5, 2.0, N)
    cells.obs["panel"] = pd.Categorical(np.where(np.arange(N) % 4 == 0, "small", "large"))
    if missing:
        of_batch = (cells.obs["batch"] == "batch_1") | (cells.obs["panel"] == "small")
        cells.obsm[KEY].loc[of_batch.to_numpy(), ["CD1", "CD7"]] = 0
    return cells


def seed_all() -> None:
    torch.manual_seed(3)
    np.random.seed(3)


@pytest.fixture(scope="module", params=SETUPS)
def pair(request: pytest.FixtureRequest, scvi: Any) -> tuple[TOTALVI, Any]:
    """Both made of the same cells with the same seeds."""
    setup, arguments = SETUPS[request.param]
    setup = {"protein_expression_obsm_key": KEY, **setup}
    cells = make_cells(setup.pop("missing", False))
    with quiet(), pytest.MonkeyPatch.context() as patch:
        # It takes rows at random to look at, and NumPy's generator on with them.
        patch.setattr(scvi.model._totalvi, "_check_nonnegative_integers", lambda values: True)
        theirs_cells = cells.copy()
        scvi.model.TOTALVI.setup_anndata(theirs_cells, **setup)
        seed_all()
        theirs = scvi.model.TOTALVI(theirs_cells, **ARGUMENTS, **arguments)
        TOTALVI.setup_anndata(cells, **setup)
        seed_all()
        ours = TOTALVI(cells, **ARGUMENTS, **arguments)
    assert_same_state(ours.module, theirs.module)
    torch.manual_seed(4)
    with torch.no_grad():
        for key, value in theirs.module.state_dict().items():
            if key.endswith("running_mean"):
                value.normal_(0.0, 0.3)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
    ours.module.load_state_dict(theirs.module.state_dict(), strict=True)
    theirs.module.eval()
    ours.is_trained = theirs.is_trained_ = True
    return ours, theirs


def assert_same_state(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    got, expected = ours.state_dict(), theirs.state_dict()
    assert list(got) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_what_they_say_of_themselves_is_equal(pair: tuple[TOTALVI, Any]) -> None:
    ours, theirs = pair
    assert dict(ours.summary_stats) == dict(theirs.summary_stats)
    assert ours.init_params_ == theirs.init_params_
    assert ours.registry["setup_args"] == theirs.registry["setup_args"]
    assert ours._use_adversarial_classifier == theirs._use_adversarial_classifier
    expected, got = theirs.module.protein_batch_mask, ours.module.protein_batch_mask
    assert (got is None) == (expected is None)
    for code in expected or {}:
        assert list(got[code]) == list(expected[code])


def test_what_is_not_drawn_is_equal(pair: tuple[TOTALVI, Any]) -> None:
    ours, theirs = pair
    indices = [70, 3, 3, 0, 59]
    with quiet():
        expected = theirs.get_latent_representation(indices=indices, return_dist=True)
    got = ours.get_latent_representation(indices=indices, return_dist=True)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-7)
    give_mean = not ours.module.use_observed_lib_size
    np.testing.assert_allclose(
        ours.get_latent_library_size(give_mean=give_mean),
        theirs.get_latent_library_size(give_mean=give_mean),
        rtol=1e-5,
    )


def test_what_is_drawn_agrees_in_the_mean(pair: tuple[TOTALVI, Any]) -> None:
    ours, theirs = pair
    seed_all()
    with quiet():
        elbo = mean_of(lambda: theirs.get_elbo(return_mean=False), 8)
        error = theirs.get_reconstruction_error(return_mean=False)
        draws = {"n_samples": 25, "transform_batch": None}
        genes, proteins = theirs.get_normalized_expression(**draws)
        foreground = theirs.get_protein_foreground_probability(**draws)
    got = mean_of(lambda: ours.get_elbo(return_mean=False), 8)
    is_noisy = not ours.module.use_observed_lib_size
    near = 0.15 if is_noisy else 2e-2
    np.testing.assert_allclose(got.mean(), elbo.mean(), rtol=near)
    found = ours.get_reconstruction_error(return_mean=False)
    assert set(found) == set(error)
    for name, value in error.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name].mean(), value.mean(), rtol=0.15 if is_noisy else 0.1)
    got_genes, got_proteins = ours.get_normalized_expression(**draws)
    got_foreground = ours.get_protein_foreground_probability(**draws)
    for ours_is, theirs_is in (
        (got_genes, genes),
        (got_proteins, proteins),
        (got_foreground, foreground),
    ):
        assert ours_is.index.equals(theirs_is.index)
        assert ours_is.columns.tolist() == theirs_is.columns.tolist()
    np.testing.assert_allclose(got_genes.mean(), genes.mean(), rtol=0.1)
    np.testing.assert_allclose(got_foreground.mean(), foreground.mean(), rtol=0.1)
    # Rates are log-normal: the mean of their logarithms varies little.
    logs = np.log(got_proteins).mean().mean(), np.log(proteins).mean().mean()
    assert logs[0] == pytest.approx(logs[1], abs=0.1)


def test_each_opens_what_the_other_saved(
    pair: tuple[TOTALVI, Any], scvi: Any, tmp_path: Path
) -> None:
    ours, theirs = pair
    # Of a logistic normal space the mean is estimated; its parameters are not.
    expected, _ = ours.get_latent_representation(return_dist=True)
    with quiet():
        ours.save(tmp_path / "ours", save_anndata=True)
        theirs.save(tmp_path / "theirs", save_anndata=True)
        of_ours = scvi.model.TOTALVI.load(tmp_path / "ours")
        of_theirs = TOTALVI.load(tmp_path / "theirs")
        there, _ = of_ours.get_latent_representation(return_dist=True)
    for back in (of_ours, of_theirs):
        assert back.is_trained
        assert back.init_params_ == theirs.init_params_
        assert_same_state(back.module, theirs.module)
    np.testing.assert_allclose(there, expected, rtol=1e-5, atol=1e-5)
    back, _ = of_theirs.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(back, expected, rtol=1e-5, atol=1e-5)
    mask = of_theirs.module.protein_batch_mask
    assert (mask is None) == (theirs.module.protein_batch_mask is None)


def test_the_reference_fit_is_reproduced(shared_data: Path) -> None:
    folder = shared_data / "scvi_tools_1.4.2_totalvi_pbmc"
    reference = np.load(folder / "reference.npz")
    model = TOTALVI.load(folder, adata=folder / "adata.h5ad")
    assert model.is_trained
    assert model._use_adversarial_classifier
    mean, variance = model.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(mean, reference["qz_m"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(variance, reference["qz_v"], atol=1e-6, rtol=1e-5)
    torch.manual_seed(0)
    bounds = [model.get_elbo(seed=seed).item() for seed in range(4)]
    np.testing.assert_allclose(np.mean(bounds), reference["elbo_sampled"], rtol=6e-3)
    kept = [name for name in model.history if f"history_{name}" in reference]
    assert "elbo_train" in kept
    for name in kept:
        values = model.history[name][name].astype(float)
        np.testing.assert_allclose(values, reference[f"history_{name}"].ravel(), rtol=1e-6)
