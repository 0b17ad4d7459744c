"""SCANVI and scvi-tools' SCANVI: the same answers from the same weights, and each other's files."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi_pairs import quiet
from torch.distributions import Normal, kl_divergence

from scvi_dist.analysis.streaming import collect
from scvi_dist.model import SCANVI, SCVI
from scvi_dist.module import likelihood_parameters

pytestmark = pytest.mark.parity

N_DECODED = 64
SETUP = {"labels_key": "label_20pct", "unlabeled_category": "Unknown", "batch_key": "batch"}
MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear, nb, covariates": {
        "linear_classifier": True,
        "gene_likelihood": "nb",
        "n_hidden": 16,
        "encode_covariates": True,
    },
    "latent library, two layers": {"use_observed_lib_size": False, "n_layers": 2},
}


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "scvi_tools_1.4.2_scanvi_mixology"


@pytest.fixture(scope="module")
def saved(folder: Path) -> SCANVI:
    return SCANVI.load(folder)


def test_the_saved_model_gives_its_reference(saved: SCANVI, folder: Path) -> None:
    with np.load(folder / "reference.npz") as arrays:
        reference = dict(arrays)
    mean, variance = saved.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(mean, reference["qz_m"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, reference["qz_v"], rtol=1e-5)
    kl = kl_divergence(
        Normal(torch.tensor(mean), torch.tensor(variance).sqrt()), Normal(0.0, 1.0)
    ).sum(-1)
    np.testing.assert_allclose(kl, reference["kl_z"], rtol=1e-5)
    module, cells = saved.module, saved._cells_of(None, None, None, None, 0)

    def decoded(group: Any) -> dict[str, torch.Tensor]:
        px = module.decode_mean(group.tensors)
        parts = likelihood_parameters(px)
        return {
            "rec": -px.log_prob(group.tensors["X"]).sum(-1),
            "px_scale": px.get_normalized("scale"),
            "px_mu": parts["mean"],
            "px_theta": parts["dispersions"],
            "px_zi_logits": px.zi_logits,
        }

    for name, values in collect(module, cells, decoded).items():
        expected = reference[name]
        got = values[: len(expected)]
        scale = np.abs(expected) if (expected > 0).all() else np.abs(expected).max()
        assert (np.abs(got - expected) <= 1e-5 * scale).all(), name
    elbo = float(saved.get_elbo(seed=0))
    assert elbo == pytest.approx(float(reference["elbo_sampled"]), rel=2e-3)
    for name in ("elbo_train", "elbo_validation", "reconstruction_loss_train", "kl_local_train"):
        table = saved.history[name]
        np.testing.assert_array_equal(table[name].astype(float), reference[f"history_{name}"])


def test_the_saved_model_predicts_what_it_did(saved: SCANVI, folder: Path) -> None:
    expected = pd.read_csv(folder / "predict_soft.csv.gz", index_col=0)
    soft = saved.predict(soft=True)
    pd.testing.assert_frame_equal(
        soft, expected, check_exact=False, rtol=1e-4, atol=1e-6, check_dtype=False,
        check_column_type=False, check_index_type=False,
    )  # fmt: skip
    hard = saved.predict()
    assert hard.dtype.kind == "U"
    np.testing.assert_array_equal(hard, expected.columns[expected.to_numpy().argmax(1)])
    adata = saved.adata
    hidden = (adata.obs["label_20pct"] == "Unknown") & (adata.obs["demuxlet_cls"] == "SNG")
    assert (hard == adata.obs["cell_type"].to_numpy())[hidden].mean() == 1.0


@pytest.fixture(scope="module", params=MODELS)
def pair(
    request: pytest.FixtureRequest,
    scvi: Any,
    adata: anndata.AnnData,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[SCANVI, Any]:
    """Ours, read from the file that theirs wrote."""
    arguments = MODELS[request.param]
    covariates = {"continuous_covariate_keys": ["depth"]} if "covariates" in request.param else {}
    with quiet():
        cells = adata.copy()
        scvi.model.SCANVI.setup_anndata(cells, **SETUP, **covariates)
        torch.manual_seed(1)
        theirs = scvi.model.SCANVI(cells, **arguments)
    with torch.no_grad():
        for key, value in theirs.module.state_dict().items():
            if key.endswith("running_mean"):
                value.normal_(0.0, 0.3)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
    theirs.module.eval()
    theirs.is_trained_ = True
    folder = tmp_path_factory.mktemp("theirs") / "model"
    theirs.save(folder, save_anndata=True)
    return SCANVI.load(folder), theirs


def test_answers_are_equal(pair: tuple[SCANVI, Any]) -> None:
    ours, theirs = pair
    indices = [70, 3, 3, 0, 99]
    with quiet():
        expected = theirs.predict(soft=True)
        few = theirs.predict(indices=indices, soft=True)
        hard = theirs.predict(indices=indices)
        latent = theirs.get_latent_representation(indices=indices)
        expression = theirs.get_normalized_expression(indices=indices, n_samples=1)
    got = ours.predict(soft=True)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert got.columns.tolist() == expected.columns.tolist()
    assert got.index.tolist() == expected.index.tolist()
    got_few = ours.predict(indices=indices, soft=True)
    np.testing.assert_allclose(got_few, few, rtol=1e-4, atol=1e-6)
    assert got_few.index.tolist() == few.index.tolist()
    got_hard = ours.predict(indices=indices)
    assert got_hard.dtype == hard.dtype
    np.testing.assert_array_equal(got_hard, hard)
    np.testing.assert_allclose(
        ours.get_latent_representation(indices=indices), latent, rtol=1e-5, atol=1e-5
    )
    assert ours.get_normalized_expression(indices=indices).shape == expression.shape
    assert ours.init_params_ == theirs.init_params_
    assert dict(ours.summary_stats) == dict(theirs.summary_stats)
    assert theirs.summary_string.startswith(ours.summary_string.split("\nTraining")[0])
    assert ours.unlabeled_category_ == theirs.unlabeled_category_
    assert ours.n_labels == theirs.n_labels
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    setup = {k: v for k, v in theirs.registry["setup_args"].items() if k != "use_minified"}
    assert ours.registry["setup_args"] == setup
    # A bound with a draw for each cell: the mean over 150 cells lies near theirs.
    with quiet():
        bound = float(theirs.get_elbo())
    # Theirs is minus the bound.
    assert abs(float(ours.get_elbo())) == pytest.approx(abs(bound), rel=0.02)


def test_scvi_tools_reads_what_we_write(
    pair: tuple[SCANVI, Any], scvi: Any, tmp_path: Path
) -> None:
    ours, theirs = pair
    ours.save(tmp_path / "model", save_anndata=True)
    with quiet():
        again = scvi.model.SCANVI.load(tmp_path / "model", accelerator="cpu")
        expected = theirs.predict(soft=True)
        np.testing.assert_allclose(again.predict(soft=True), expected, rtol=1e-5, atol=1e-7)
    assert again.init_params_ == theirs.init_params_
    assert again.was_pretrained == theirs.was_pretrained
    without = SCANVI.load(tmp_path / "model", adata=False)
    assert without.adata is None
    np.testing.assert_allclose(
        without.predict(ours.adata, soft=True), expected, rtol=1e-4, atol=1e-6
    )


def test_models_from_before_logits_are_read(shared_data: Path, scvi: Any, tmp_path: Path) -> None:
    folder = shared_data / "scvi_tools_scanvi_v1.0.3"
    ours = SCANVI.load(folder)
    assert not ours.module.classifier.logits
    with quiet():
        theirs = scvi.model.SCANVI.load(folder, accelerator="cpu")
        expected = theirs.predict(soft=True)
    np.testing.assert_allclose(ours.predict(soft=True), expected, rtol=1e-4, atol=1e-6)
    ours.save(tmp_path / "again", save_anndata=True)
    with quiet():
        again = scvi.model.SCANVI.load(tmp_path / "again", accelerator="cpu")
        np.testing.assert_allclose(again.predict(soft=True), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        SCANVI.load(tmp_path / "again").predict(soft=True), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("labels_in_scvi", [True, False])
def test_both_begin_alike_from_an_scvi_model(
    scvi: Any, adata: anndata.AnnData, tmp_path: Path, labels_in_scvi: bool
) -> None:
    """The same weights, also of the new parts, where torch's seed is the same."""
    setup = {"batch_key": "batch", "labels_key": "label_20pct" if labels_in_scvi else None}
    key = None if labels_in_scvi else "label_20pct"
    with quiet():
        cells = adata.copy()
        scvi.model.SCVI.setup_anndata(cells, **setup)
        base = scvi.model.SCVI(cells, gene_likelihood="nb", n_layers=2)
        base.module.eval()
        base.is_trained_ = True
        base.save(tmp_path / "scvi", save_anndata=True)
        torch.manual_seed(2)
        theirs = scvi.model.SCANVI.from_scvi_model(base, "Unknown", key, linear_classifier=True)
    known = SCVI.load(tmp_path / "scvi")
    torch.manual_seed(2)
    ours = SCANVI.from_scvi_model(known, "Unknown", key, linear_classifier=True)
    expected = theirs.module.state_dict()
    for name, value in ours.module.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert ours.init_params_ == theirs.init_params_
    assert ours.was_pretrained
    assert ours.registry["setup_args"]["labels_key"] == "label_20pct"
    with quiet():
        theirs.module.eval()
        theirs.is_trained_ = True
        expected_soft = theirs.predict(soft=True)
    ours.is_trained_ = True
    np.testing.assert_allclose(ours.predict(soft=True), expected_soft, rtol=1e-4, atol=1e-6)
