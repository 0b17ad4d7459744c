"""SCVI and scvi-tools' SCVI read each other's files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from scvi_pairs import quiet, uses_prior

from scvi_dist.model import SCVI
from scvi_dist.model.file_format import SavedModel, read_model_file, write_model_file

pytestmark = pytest.mark.parity


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
