"""SCVI and scvi-tools' SCVI: the same answers from the same weights, and each other's files."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

from scvi_dist.analysis.expression import ExpressionOptions
from scvi_dist.analysis.importance import ImportanceOptions, _anchors, importance_weights
from scvi_dist.analysis.laws import parameters_of
from scvi_dist.analysis.streaming import collect
from scvi_dist.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi_dist.model import SCVI
from scvi_dist.model.file_format import SavedModel, read_model_file, write_model_file

pytestmark = pytest.mark.parity

BATCHES = ["celseq2", "dropseq"]
SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({"batch_key": "batch"}, {}),
    "nb, two layers, by batch": (
        {"batch_key": "batch", "labels_key": "label_20pct"},
        {"gene_likelihood": "nb", "n_layers": 2, "dispersion": "gene-batch", "n_hidden": 32},
    ),
    "poisson, ln": ({}, {"gene_likelihood": "poisson", "latent_distribution": "ln"}),
    "normal, by cell": (
        {"batch_key": "batch", "layer": "counts"},
        {"gene_likelihood": "normal", "dispersion": "gene-cell"},
    ),
    "covariates": (
        {
            "batch_key": "batch",
            "categorical_covariate_keys": ["cell_type"],
            "continuous_covariate_keys": ["depth"],
        },
        {"encode_covariates": True, "batch_representation": "embedding"},
    ),
    "latent library": ({"batch_key": "batch"}, {"use_observed_lib_size": False}),
    "size factor": (
        {"batch_key": "batch", "size_factor_key": "size"},
        {"dispersion": "gene-label", "labels_key": None},
    ),
}


@contextmanager
def quiet() -> Iterator[None]:
    """scvi-tools and its dependencies warn of many things."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def scvi() -> Any:
    with quiet():
        return pytest.importorskip("scvi")


@pytest.fixture(scope="module")
def adata(shared_data: Path) -> anndata.AnnData:
    whole = anndata.read_h5ad(shared_data / "scvi_tools_1.4.2_scvi_mixology" / "adata.h5ad")
    rng = np.random.default_rng(0)
    cells = whole[rng.permutation(whole.n_obs)[:150], rng.permutation(whole.n_vars)[:80]].copy()
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
    cells.layers["counts"] = cells.X.copy()
    cells.obs["depth"] = np.log1p(np.asarray(cells.X.sum(1)).ravel())
    cells.obs["size"] = cells.obs["depth"] / cells.obs["depth"].mean()
    return cells


def _theirs(scvi: Any, adata: anndata.AnnData, name: str) -> Any:
    """A model of scvi-tools with weights that are far from their initial values."""
    setup, arguments = SETUPS[name]
    setup = {**setup, **{k: v for k, v in arguments.items() if k == "labels_key"}}
    arguments = {k: v for k, v in arguments.items() if k != "labels_key"}
    with quiet():
        cells = adata.copy()
        scvi.model.SCVI.setup_anndata(cells, **setup)
        torch.manual_seed(1)
        model = scvi.model.SCVI(cells, **arguments)
    with torch.no_grad():
        for key, value in model.module.state_dict().items():
            if key.endswith("running_mean"):
                value.normal_(0.0, 0.3)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
    model.module.eval()
    model.is_trained_ = True
    return model


@pytest.fixture(scope="module", params=SETUPS)
def pair(
    request: pytest.FixtureRequest,
    scvi: Any,
    adata: anndata.AnnData,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[SCVI, Any]:
    """Ours, read from the file that theirs wrote."""
    theirs = _theirs(scvi, adata, request.param)
    folder = tmp_path_factory.mktemp("theirs") / "model"
    theirs.save(folder, save_anndata=True)
    return SCVI.load(folder), theirs


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


def uses_prior(model: SCVI) -> bool:
    """Whether library sizes are drawn too, so that estimates vary more."""
    return not model.module.use_observed_lib_size


def fails_there(model: Any) -> bool:
    """scvi-tools cannot decode several draws with a batch embedding."""
    return model.module.batch_representation == "embedding"


def _mean_of(draw: Callable[[], Any], n: int) -> np.ndarray:
    return np.mean([np.asarray(draw()) for _ in range(n)], axis=0)


def test_bounds_and_likelihoods_agree(pair: tuple[SCVI, Any]) -> None:
    ours, theirs = pair
    each = {"return_mean": False, "indices": np.arange(80)}
    with quiet():
        elbo = _mean_of(lambda: theirs.get_elbo(**each), 8)
        error = _mean_of(lambda: theirs.get_reconstruction_error(**each)["reconstruction_loss"], 8)
        marginal = theirs.get_marginal_ll(n_mc_samples=20, **each).numpy()
        types = [type(theirs.get_elbo()), type(theirs.get_marginal_ll(n_mc_samples=1))]
    got = _mean_of(lambda: ours.get_elbo(**each), 8)
    is_noisy = uses_prior(ours) or ours.module.gene_likelihood == "normal"
    near = 0.15 if is_noisy else 1e-2
    np.testing.assert_allclose(got.mean(), elbo.mean(), rtol=near)
    assert np.corrcoef(got, elbo)[0, 1] > 0.9
    got = _mean_of(lambda: ours.get_reconstruction_error(**each)["reconstruction_loss"], 8)
    np.testing.assert_allclose(got.mean(), error.mean(), rtol=near)
    got = ours.get_marginal_ll(n_mc_samples=20, n_mc_samples_per_pass=10, **each)
    if ours.module.latent_distribution == "normal":
        # For the other scvi-tools takes densities of z after the softmax, which are not its own.
        rtol = 0.15 if is_noisy else 5e-3
        np.testing.assert_allclose(got.numpy().mean(), marginal.mean(), rtol=rtol)
    assert isinstance(ours.get_elbo(), types[0])
    assert isinstance(ours.get_marginal_ll(n_mc_samples=1), float)
    assert issubclass(types[1], float)


@pytest.mark.parametrize("library_size", [1, 1e4, "latent"])
def test_expression_agrees(pair: tuple[SCVI, Any], library_size: Any) -> None:
    ours, theirs = pair
    if fails_there(theirs):
        assert ours.get_normalized_expression(indices=[1], n_samples=2).shape == (1, 80)
        return
    genes = theirs.adata.var_names[::-2].tolist()
    batches = BATCHES if theirs.summary_stats.n_batch > 1 else None
    arguments = {
        "indices": np.arange(40)[::-1],
        "gene_list": genes,
        "library_size": library_size,
        "transform_batch": batches,
        "n_samples": 100,
    }
    with quiet():
        expected = theirs.get_normalized_expression(**arguments)
    got = ours.get_normalized_expression(**arguments)
    assert got.index.tolist() == expected.index.tolist()
    assert got.columns.tolist() == expected.columns.tolist()
    if library_size == "latent" and uses_prior(ours):
        # Draws of a log-normal size with a large variance: there is no telling from 150 of them.
        return
    np.testing.assert_allclose(got.mean(0), expected.mean(0), rtol=0.05)
    assert np.corrcoef(got.to_numpy().ravel(), expected.to_numpy().ravel())[0, 1] > 0.98


def test_shapes_and_types_of_expression_are_equal(pair: tuple[SCVI, Any]) -> None:
    ours, theirs = pair
    if fails_there(theirs):
        pytest.skip("scvi-tools cannot decode several draws with a batch embedding")
    for arguments in (
        {},
        {"return_numpy": True},
        {"n_samples": 3},
        {"n_samples": 3, "return_mean": False},
        {"n_samples_overall": 20, "return_numpy": True},
        {"n_samples_overall": 400, "return_numpy": True},
    ):
        with quiet():
            expected = theirs.get_normalized_expression(indices=[4, 1, 7], **arguments)
        got = ours.get_normalized_expression(indices=[4, 1, 7], **arguments)
        assert type(got) is type(expected), arguments
        assert got.shape == expected.shape, arguments
    many = {"indices": [4], "n_samples_overall": 400, "return_numpy": True}
    with quiet():
        expected = theirs.get_normalized_expression(**many)
    got = ours.get_normalized_expression(**many)
    top = np.argsort(expected.mean(0))[-5:]
    np.testing.assert_allclose(got.mean(0)[top], expected.mean(0)[top], rtol=0.2)


def test_predictive_samples_agree(pair: tuple[SCVI, Any]) -> None:
    ours, theirs = pair
    if fails_there(theirs):
        pytest.skip("scvi-tools cannot decode several draws with a batch embedding")
    arguments = {"indices": np.arange(40)[::-1], "n_samples": 40}
    with quiet():
        expected = theirs.posterior_predictive_sample(**arguments)
        one = theirs.posterior_predictive_sample(indices=[3, 1])
    got = ours.posterior_predictive_sample(**arguments)
    assert (type(got), got.shape, got.dtype) == (type(expected), expected.shape, expected.dtype)
    assert ours.posterior_predictive_sample(indices=[3, 1]).shape == one.shape
    a, b = got.todense(), expected.todense()
    np.testing.assert_allclose(a.mean(), b.mean(), rtol=0.5 if uses_prior(ours) else 0.05)
    # As like each other as two halves of one sample.
    halves = np.corrcoef(b[..., :20].mean(2).ravel(), b[..., 20:].mean(2).ravel())[0, 1]
    assert np.corrcoef(a.mean(2).ravel(), b.mean(2).ravel())[0, 1] > halves - 0.05
    if ours.module.gene_likelihood != "normal":
        np.testing.assert_allclose((a == 0).mean(), (b == 0).mean(), atol=0.01)


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


def test_scvi_tools_opens_what_we_save(pair: tuple[SCVI, Any], scvi: Any, tmp_path: Path) -> None:
    ours, theirs = pair
    ours.save(tmp_path / "ours", prefix="p_", save_anndata=True)
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == ["p_adata.h5ad", "p_model.pt"]
    with quiet():
        back = scvi.model.SCVI.load(tmp_path / "ours", prefix="p_")
        if not uses_prior(ours):
            # A latent library size takes scvi-tools to the data, which is not there.
            bare = scvi.model.SCVI.load(tmp_path / "ours", prefix="p_", adata=False)
            assert bare.adata is None
        expected = theirs.get_latent_representation(return_dist=True)
        got = back.get_latent_representation(return_dist=True)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert back.is_trained
    again = SCVI.load(tmp_path / "ours", prefix="p_")
    assert again.init_params_ == ours.init_params_


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


# Files that scvi-tools wrote


def test_the_reference_fit_is_reproduced(shared_data: Path) -> None:
    folder = shared_data / "scvi_tools_1.4.2_scvi_mixology"
    reference = np.load(folder / "reference.npz")
    model = SCVI.load(folder, adata=folder / "adata.h5ad")
    mean, variance = model.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(mean, reference["qz_m"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(variance, reference["qz_v"], atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(model.get_elbo().item(), reference["elbo_sampled"], rtol=2e-3)
    kept = [name for name in model.history if f"history_{name}" in reference]
    assert "elbo_train" in kept
    for name in kept:
        values = model.history[name][name].astype(float)
        np.testing.assert_allclose(values, reference[f"history_{name}"].ravel(), rtol=1e-6)
    assert len(model.train_indices) + len(model.validation_indices) == model.summary_stats.n_cells


def test_we_open_what_the_current_release_trained(
    scvi: Any, adata: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scvi.settings, "_seed", 0)
    with quiet():
        cells = adata.copy()
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch", layer="counts")
        theirs = scvi.model.SCVI(cells)
        theirs.train(max_epochs=2, check_val_every_n_epoch=1, accelerator="cpu")
        theirs.save(tmp_path / "theirs")
        expected = theirs.get_latent_representation()
    # Genes in another order are put right by name.
    shuffled = adata[:, ::-1].copy()
    ours = SCVI.load(tmp_path / "theirs", adata=shuffled)
    np.testing.assert_allclose(ours.get_latent_representation(), expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(ours.train_indices, theirs.train_indices)
    assert set(ours.history) == set(theirs.history)
    for name, table in theirs.history.items():
        assert ours.history[name].index.name == table.index.name
        assert ours.history[name][name].tolist() == table[name].tolist()

    SCVI.setup_anndata(shuffled, batch_key="batch", layer="counts")
    trained = SCVI(shuffled)
    trained.train(max_epochs=2, check_val_every_n_epoch=1, accelerator="cpu")
    # The weight is recorded every tenth step, and there are fewer.
    assert set(trained.history) == set(theirs.history) - {"kl_weight"}
    assert set(trained.train_indices) == set(theirs.train_indices)
    assert set(trained.validation_indices) == set(theirs.validation_indices)
    trained.save(tmp_path / "ours")
    with quiet():
        back = scvi.model.SCVI.load(tmp_path / "ours", adata=adata[:, ::-1].copy())
        got = back.get_latent_representation()
    np.testing.assert_allclose(got, trained.get_latent_representation(), atol=1e-5)
    assert set(back.history) == set(trained.history)


def _rewritten(
    folder: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Path:
    saved = read_model_file(folder / "model.pt")
    target.mkdir()
    shutil.copy(folder / "adata.h5ad", target / "adata.h5ad")
    write_model_file(
        target / "model.pt",
        SavedModel(
            state_dict=saved.state_dict,
            var_names=saved.var_names,
            attributes=change(dict(saved.attributes)),
        ),
    )
    return target


def test_older_and_smaller_files_load(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "scvi_tools_1.4.2_scvi_mixology"
    expected = SCVI.load(folder).get_latent_representation()

    def flat_arguments(attributes: dict[str, Any]) -> dict[str, Any]:
        params = attributes["init_params_"]["non_kwargs"]
        attributes["init_params_"] = {**params, "use_cuda": False, "model_kwargs": {}}
        return attributes

    def only_what_is_needed(attributes: dict[str, Any]) -> dict[str, Any]:
        kept = {name: attributes[name] for name in ("init_params_", "is_trained_")}
        registry = dict(attributes["registry_"])
        for name in ("_scvi_uuid", "scvi_version", "model_name", "setup_method_name"):
            registry.pop(name)
        return {**kept, "registry_": registry}

    def without_gene_names(attributes: dict[str, Any]) -> dict[str, Any]:
        del attributes["registry_"]["field_registries"]["X"]["state_registry"]["column_names"]
        return attributes

    for change in (flat_arguments, only_what_is_needed, without_gene_names):
        model = SCVI.load(_rewritten(folder, tmp_path / change.__name__, change))
        np.testing.assert_array_equal(model.get_latent_representation(), expected)
