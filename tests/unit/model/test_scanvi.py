"""SCANVI as a user holds it: labels in, labels out, with and without an SCVI model before it."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi_models import G, N, make_adata, make_model

from scvi_dist.analysis.attribution import AttributionOptions, gene_attributions
from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.errors import ConfigError, NotTrained, SchemaMismatch
from scvi_dist.model import SCANVI, SCVI
from scvi_dist.train import SemiSupervisedAdversarialPlanConfig, SemiSupervisedPlanConfig

SETUP = {"labels_key": "known", "unlabeled_category": "?", "batch_key": "batch"}
QUICK = {"accelerator": "cpu", "batch_size": 20, "enable_progress_bar": False}


def labelled(seed: int = 0, n: int = N) -> anndata.AnnData:
    """Cells of three kinds, of which half are known."""
    adata = make_adata(seed, n)
    known = np.where(np.arange(n) % 2, adata.obs["label"].to_numpy().astype(str), "?")
    adata.obs["known"] = known
    return adata


def new_model(data: Any, seed: int = 0, **arguments: Any) -> SCANVI:
    """A model that counts as trained, with the weights of a seed."""
    SCANVI.setup_anndata(data, **SETUP)
    torch.manual_seed(seed)
    model = SCANVI(data, n_hidden=8, n_latent=3, **arguments)
    model.is_trained = True
    return model


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return labelled()


@pytest.fixture(scope="module")
def scanvi(cells: anndata.AnnData) -> SCANVI:
    return new_model(cells)


def test_what_it_says_of_its_labels(scanvi: SCANVI, cells: anndata.AnnData) -> None:
    assert scanvi.unlabeled_category_ == "?"
    assert scanvi.original_label_key == "known"
    assert scanvi.class_names.tolist() == ["z", "x", "y"]
    assert scanvi.n_labels == scanvi.module.n_labels == 3
    assert not scanvi.was_pretrained
    np.testing.assert_array_equal(scanvi.labels_, cells.obs["known"])
    assert "unlabeled_category: ?" in scanvi.summary_string


def test_predictions_of_any_cells_in_any_order(
    scanvi: SCANVI, cells: anndata.AnnData, tmp_path: Path
) -> None:
    indices = [7, 3, 3, 50]
    soft = scanvi.predict(soft=True)
    assert soft.columns.tolist() == ["z", "x", "y"]
    np.testing.assert_allclose(soft.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(scanvi.predict(), soft.columns[soft.to_numpy().argmax(1)])
    few = scanvi.predict(indices=indices, soft=True, batch_size=2)
    pd.testing.assert_frame_equal(few, soft.iloc[indices], rtol=1e-5)
    assert scanvi.predict(indices=[]).shape == (0,)
    assert scanvi.predict(indices=[], soft=True).shape == (0, 3)
    shuffled = cells[::-1, ::-1].copy()
    shuffled.obs["known"] = "?"
    np.testing.assert_array_equal(scanvi.predict(shuffled), scanvi.predict()[::-1])
    url = scanvi.predict(out=tmp_path / "labels.zarr")
    written = anndata.read_zarr(url)
    np.testing.assert_allclose(written.obsm["X_label_probabilities"], soft, rtol=1e-6)
    assert written.uns["X_label_probabilities_columns"].tolist() == ["z", "x", "y"]
    np.testing.assert_array_equal(written.obs["prediction"].astype(str), scanvi.predict())
    source = scanvi._binding.open(None, True)
    batch = {key: torch.from_numpy(v) for key, v in source.coded_obs.take(np.arange(5)).items()}
    batch["X"] = torch.from_numpy(cells.X[:5].toarray())
    from_loader = scanvi.predict(soft=True, dataloader=[batch])
    np.testing.assert_allclose(from_loader, soft.iloc[:5], rtol=1e-5)


def test_a_draw_may_be_classified_instead_of_the_mean(scanvi: SCANVI) -> None:
    draws = [
        scanvi.predict(soft=True, use_posterior_mean=False, seed=s).to_numpy() for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.allclose(draws[0], draws[2])


def test_attributions_add_up_to_what_the_counts_make_of_the_score(scanvi: SCANVI) -> None:
    hard, genes = scanvi.predict(ig_interpretability=True, ig_args={"n_steps": 200})
    np.testing.assert_array_equal(hard, scanvi.predict())
    assert sorted(genes["feature"]) == sorted(scanvi.get_var_names())
    assert (genes["attribution_mean"].diff().dropna() <= 0).all()
    np.testing.assert_array_equal(
        scanvi.get_var_names()[genes["feature_idx"].to_numpy()], genes["feature"]
    )
    cell = scanvi._cells_of(None, [4], None, None, 0)
    alone = gene_attributions(
        scanvi.module, cell, scanvi.get_var_names(), AttributionOptions(n_steps=400)
    )
    assert (alone["attribution_std"] < 1e-6).all()
    tensors = next(cell.groups()).tensors
    given = scanvi.module._get_inference_input(tensors)
    with torch.inference_mode():
        score = scanvi.module.classify(**given)
        nothing = scanvi.module.classify(**{**given, "x": torch.zeros(1, G)})
    best = int(score.argmax())
    change = float(score[0, best] - nothing[0, best])
    # The gradient jumps where a unit begins to fire, which a quadrature rule feels.
    assert alone["attribution_mean"].sum() == pytest.approx(change, rel=0.02)
    assert scanvi.get_ranked_features(attrs=np.eye(G))["cells"].tolist() == [G] * G
    with pytest.raises(ConfigError, match="n_step"):
        scanvi.predict(ig_interpretability=True, ig_args={"n_step": 3})
    with pytest.raises(ConfigError, match="needs attrs"):
        scanvi.get_ranked_features()


def test_training_learns_the_labels_and_tells_how_well() -> None:
    adata = labelled(n=120)
    counts = adata.X.toarray()
    kind = adata.obs["label"].cat.codes.to_numpy()
    counts[np.arange(120), 1 + kind] += 40
    adata.X = counts
    model = new_model(adata, linear_classifier=True)
    model.is_trained = False
    model.train(max_epochs=25, check_val_every_n_epoch=5, n_samples_per_label=10, **QUICK)
    history = model.history
    for mode, n in (("train", 25), ("validation", 5)):
        for name in ("classification_loss", "accuracy", "f1_score", "calibration_error"):
            assert len(history[f"{mode}_{name}"]) == n
    assert history["train_accuracy"].iloc[-1, 0] > 0.95
    unknown = (adata.obs["known"] == "?").to_numpy()
    assert (model.predict() == adata.obs["label"].to_numpy())[unknown].mean() > 0.95
    # Both kinds of cells are split alike.
    share = [np.mean(unknown[rows]) for rows in (model.train_indices, model.validation_indices)]
    assert share == pytest.approx([0.5, 0.5], abs=0.1)


def test_equal_seeds_train_equal_models_from_memory_and_from_a_store(
    cells: anndata.AnnData, tmp_path: Path
) -> None:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    states = []
    for data in (cells, tmp_path / "cells.h5ad"):
        model = new_model(data)
        model.train(max_epochs=2, **QUICK)
        states.append(model.module.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=1e-6)


def test_it_goes_on_from_an_scvi_model(cells: anndata.AnnData) -> None:
    base = make_model(cells, n_layers=2)
    base.is_trained = False
    base.train(max_epochs=2, **QUICK)
    model = SCANVI.from_scvi_model(base, "?", "known", linear_classifier=True)
    assert model.was_pretrained
    assert model.adata is cells
    before = base.module.state_dict()
    shared = {k: v for k, v in model.module.state_dict().items() if k in before}
    assert shared.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in shared.items())
    np.testing.assert_allclose(
        model_latent := _latent(model), _latent(base), rtol=1e-6, err_msg=str(model)
    )
    assert model_latent.shape == (N, 3)
    model.train(**QUICK)
    assert len(model.history["train_accuracy"]) == 10
    assert SCANVI(cells).n_labels == 3
    model.train(max_steps=3, **QUICK)
    assert model.is_trained


def _latent(model: Any) -> np.ndarray:
    was, model.is_trained = model.is_trained, True
    latent = model.get_latent_representation()
    model.is_trained = was
    return latent


def test_codes_stay_those_of_the_scvi_model_on_other_cells() -> None:
    cells = labelled(n=150)
    base = make_model(cells)
    other = cells[cells.obs["batch"] == "b1"].copy()
    other.obs["batch"] = other.obs["batch"].astype(str)
    model = SCANVI.from_scvi_model(base, "?", "known", adata=other)
    assert model.schema.categories[REGISTRY_KEYS.BATCH_KEY] == ("b0", "b1")
    assert model.adata is other
    np.testing.assert_allclose(
        _latent(model), base.get_latent_representation(other), rtol=1e-5, atol=1e-6
    )


def test_a_dispersion_of_each_label_goes_to_its_new_code(cells: anndata.AnnData) -> None:
    SCVI.setup_anndata(cells, batch_key="batch", labels_key="known")
    base = SCVI(cells, n_hidden=8, dispersion="gene-label")
    base.is_trained = True
    model = SCANVI.from_scvi_model(base, "?")
    old, new = base.module.px_r, model.module.px_r
    names = {name: k for k, name in enumerate(base.schema.categories["labels"])}
    order = [names[name] for name in model.schema.categories["labels"]]
    assert order != sorted(order)
    assert torch.equal(new, old[:, order])
    unseen = SCANVI.from_scvi_model(base, "never", "known").module.px_r
    torch.testing.assert_close(unseen[:, -1], old.mean(dim=1))


def test_models_without_cells(cells: anndata.AnnData, tmp_path: Path) -> None:
    SCVI.setup_anndata(cells, batch_key="batch", labels_key="known")
    base = SCVI(cells, n_hidden=8)
    base.is_trained = True
    base.save(tmp_path / "scvi")
    bare = SCVI.load(tmp_path / "scvi", adata=False)
    model = SCANVI.from_scvi_model(bare, "?")
    assert model.adata_manager is None
    assert model.class_names.tolist() == ["z", "x", "y"]
    with pytest.raises(ConfigError, match="not known without the cells"):
        SCANVI.from_scvi_model(bare, "?", "label")
    again = SCANVI.from_scvi_model(bare, "?", registry=new_model(cells).registry)
    assert again.n_labels == 3


def test_what_an_scvi_model_was_given_stays_its_own(cells: anndata.AnnData) -> None:
    base = make_model(cells)
    with pytest.warns(UserWarning, match="Ignoring param 'n_hidden'"):
        model = SCANVI.from_scvi_model(base, "?", "known", n_hidden=64)
    assert model.module.args.n_hidden == 8
    SCVI.setup_anndata(cells)
    plain = SCVI(cells, n_hidden=8)
    with pytest.raises(NotTrained):
        SCANVI.from_scvi_model(plain, "?", "known")
    plain.is_trained = True
    with pytest.raises(ConfigError, match="`labels_key` is necessary"):
        SCANVI.from_scvi_model(plain, "?")


@pytest.mark.parametrize("arguments", [{}, {"dispersion": "gene-label", "n_layers": 2}])
def test_a_saved_model_is_the_same_model(
    cells: anndata.AnnData, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    model = new_model(cells, **arguments)
    model.train(max_epochs=1, **QUICK)
    model.save(tmp_path / "model", save_anndata=True)
    again = SCANVI.load(tmp_path / "model")
    expected = model.predict(soft=True)
    pd.testing.assert_frame_equal(again.predict(soft=True), expected, rtol=1e-6)
    assert again.schema == model.schema
    assert again.history.keys() == model.history.keys()
    np.testing.assert_array_equal(again.train_indices, model.train_indices)
    with pytest.raises(ConfigError, match=r"scvi_dist\.model\.SCANVI\.load"):
        SCVI.load(tmp_path / "model")


def test_a_file_may_count_the_unlabeled_category_as_a_class(
    cells: anndata.AnnData, tmp_path: Path
) -> None:
    """scvi-tools does so where the labels' column has an unused level."""
    model = new_model(cells, n_labels=4)
    assert model.class_names.tolist() == ["z", "x", "y", "?"]
    model.save(tmp_path / "model")
    again = SCANVI.load(tmp_path / "model", adata=cells)
    assert again.n_labels == 4
    assert "n_labels" not in again.init_params_["kwargs"]["model_kwargs"]
    np.testing.assert_array_equal(again.predict(), model.predict())


def test_what_makes_no_sense_is_refused(cells: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="not a datamodule"):
        SCANVI(cells, datamodule=object())
    SCVI.setup_anndata(cells, labels_key="known")
    registry = SCVI(cells).registry
    with pytest.raises(ConfigError, match="needs the unlabeled_category"):
        SCANVI(registry=registry)
    nobody = cells.copy()
    nobody.obs["known"] = "?"
    SCANVI.setup_anndata(nobody, **SETUP)
    with pytest.raises(ConfigError, match="at least one class"):
        SCANVI(nobody)
    model = new_model(cells)
    with pytest.raises(ConfigError, match="n_samples_per_label"):
        model.train(n_samples_per_label=0, **QUICK)
    with pytest.raises(ConfigError, match="classification_ratio"):
        model.train(plan_kwargs={"clasification_ratio": 3}, **QUICK)
    foreign = cells.copy()
    foreign.obs["known"] = "w"
    with pytest.raises(SchemaMismatch, match="'w'"):
        model.predict(foreign)
    model.is_trained = False
    with pytest.raises(NotTrained):
        model.predict()


@pytest.mark.parametrize(
    ("given", "kind", "adversary"),
    [
        ({}, SemiSupervisedPlanConfig, None),
        ({"adversarial_classifier": True}, SemiSupervisedAdversarialPlanConfig, True),
        (
            {"plan_config": SemiSupervisedAdversarialPlanConfig(adversarial_classifier=True)},
            SemiSupervisedAdversarialPlanConfig,
            True,
        ),
    ],
)
def test_the_plan_that_trains(
    cells: anndata.AnnData,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    kind: type,
    adversary: bool | None,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(SCANVI, "fit", lambda self, settings, **_: seen.append(settings))
    new_model(cells).train(max_epochs=1, **given, **QUICK)
    assert type(seen[0].plan) is kind
    assert getattr(seen[0].plan, "adversarial_classifier", None) == adversary
    assert seen[0].plan.classification_ratio == 50
