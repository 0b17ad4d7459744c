"""SCVI models on disk."""

import os
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi_models import SETUP, G, make_model, sources_of

from scvi_dist.data import open_store
from scvi_dist.errors import (
    ConfigError,
    OutputExists,
    SchemaMismatch,
    StoreNotFound,
    UnsafeFile,
)
from scvi_dist.model import SCVI
from scvi_dist.model.file_format import SavedModel, read_model_file, write_model_file


def test_a_saved_model_is_the_same_model(adata: anndata.AnnData, tmp_path: Path) -> None:
    model = make_model(adata, gene_likelihood="nb", extra_decoder_kwargs={})
    model.train(max_epochs=1, batch_size=16)
    model.save(tmp_path / "m", prefix="a_")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    back = SCVI.load(tmp_path / "m", adata=adata, prefix="a_")
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(
        back.get_latent_representation(), model.get_latent_representation()
    )
    assert back.is_trained
    assert back.init_params_ == model.init_params_
    assert back.summary_string == model.summary_string
    assert back.run_name == model.run_name
    for name, table in model.history.items():
        pd.testing.assert_frame_equal(back.history[name], table)
    for part in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(back, part), getattr(model, part))
    back.train(max_epochs=1, batch_size=16)
    assert len(back.history["train_loss"]) == 2


def test_saving_does_not_overwrite_unless_told(model: SCVI, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    with pytest.raises(OutputExists, match="overwrite=True"):
        model.save(tmp_path / "m")
    model.save(tmp_path / "m", overwrite=True)
    model.save("memory://saved/model")
    remote = SCVI.load("memory://saved/model", adata=False)
    assert torch.equal(remote.module.px_r, model.module.px_r)


def test_cells_are_saved_from_every_kind_of_store(
    adata: anndata.AnnData, model: SCVI, tmp_path: Path
) -> None:
    expected = model.get_latent_representation()
    for kind, source in sources_of(adata, tmp_path).items():
        target = tmp_path / f"model of {kind}"
        make_model(source).save(target, save_anndata=True)
        saved = anndata.read_h5ad(target / "adata.h5ad")
        assert (saved.X != adata.X).nnz == 0, kind
        assert saved.obs_names.tolist() == adata.obs_names.tolist()
        back = SCVI.load(target)
        assert back.adata is not None
        np.testing.assert_allclose(back.get_latent_representation(), expected, rtol=1e-5)


def test_a_layer_is_found_again_or_refused(adata: anndata.AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    shown = {}
    for name, data in (
        ("memory", adata.copy()),
        ("file", tmp_path / "a.h5ad"),
        ("view", open_store(tmp_path / "a.h5ad", layer="counts", genes=["gene1", "gene4"])),
    ):
        SCVI.setup_anndata(data, layer="counts", **SETUP)
        shown[name] = SCVI(data, n_hidden=4)
    shown["memory"].save(tmp_path / "memory", save_anndata=True)
    shown["file"].save(tmp_path / "file", save_anndata=True)
    for name in ("memory", "file"):
        back = SCVI.load(tmp_path / name)
        assert back.schema.setup.layer == "counts"
        assert torch.isfinite(back.get_elbo())
    with pytest.raises(ConfigError, match="layer 'counts'"):
        shown["view"].save(tmp_path / "view", save_anndata=True)


def test_a_model_without_data_takes_the_first_it_is_given(
    adata: anndata.AnnData, model: SCVI, tmp_path: Path
) -> None:
    model.save(tmp_path / "m")
    with pytest.warns(UserWarning, match="no saved anndata"):
        bare = SCVI.load(tmp_path / "m")
    assert bare.adata is None
    assert bare.adata_manager is None
    assert bare.summary_stats.n_vars == G
    with pytest.raises(ConfigError, match="has no data"):
        bare.get_latent_representation()
    np.testing.assert_allclose(
        bare.get_latent_representation(adata), model.get_latent_representation(), rtol=1e-5
    )
    assert bare.adata is adata
    other = SCVI.load(tmp_path / "m", adata=False)
    assert other.registry["setup_args"] == model.registry["setup_args"]


def _rewrite(folder: Path, **changes: Any) -> None:
    saved = read_model_file(folder / "model.pt")
    attributes = {**saved.attributes, **changes}
    write_model_file(
        folder / "model.pt",
        SavedModel(
            state_dict=saved.state_dict,
            var_names=saved.var_names,
            attributes={k: v for k, v in attributes.items() if v is not None},
        ),
    )


def test_files_of_another_kind_are_refused(model: SCVI, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match=r"model\.pt"):
        SCVI.load(tmp_path / "nowhere", adata=False)
    folder = tmp_path / "m"
    model.save(folder)
    registry = SCVI.load_registry(folder)
    _rewrite(folder, registry_={**registry, "model_name": "SCANVI"})
    with pytest.raises(ConfigError, match="SCANVI model, not a SCVI"):
        SCVI.load(folder, adata=False)
    SCVI.load(folder, adata=False, allowed_classes_names_list=["SCANVI"])
    model.save(folder, overwrite=True)
    _rewrite(folder, init_params_=None)
    with pytest.raises(SchemaMismatch, match="init_params_"):
        SCVI.load(folder, adata=False)
    (tmp_path / "legacy").mkdir()
    (tmp_path / "legacy" / "model_params.pt").touch()
    with pytest.raises(UnsafeFile, match=r"convert_legacy_save"):
        SCVI.load(tmp_path / "legacy", adata=False)


def test_loading_a_malicious_file_runs_nothing(model: SCVI, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    model.save(tmp_path / "m")
    content = torch.load(tmp_path / "m" / "model.pt", weights_only=False)
    content["attr_dict"]["run_name_"] = Payload()
    torch.save(content, tmp_path / "m" / "model.pt")
    with pytest.raises(UnsafeFile, match="system"):
        SCVI.load(tmp_path / "m", adata=False)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_claims_a_huge_network_is_refused_before_it_takes_memory(
    model: SCVI, tmp_path: Path
) -> None:
    model.save(tmp_path / "m")
    params = {"kwargs": {"kwargs": {}}, "non_kwargs": {"n_hidden": 10**10, "n_latent": 3}}
    _rewrite(tmp_path / "m", init_params_=params)
    with pytest.raises(SchemaMismatch, match="weights do not fit"):
        SCVI.load(tmp_path / "m", adata=False)


def test_a_model_is_fetched_from_its_backup(model: SCVI, tmp_path: Path) -> None:
    model.save(tmp_path / "there")
    back = SCVI.load(
        tmp_path / "here", adata=False, backup_url=str(tmp_path / "there" / "model.pt")
    )
    assert torch.equal(back.module.px_r, model.module.px_r)
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["model.pt"]


def test_arguments_of_the_setup_can_be_printed(
    model: SCVI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save(tmp_path / "m")
    SCVI.view_setup_args(tmp_path / "m")
    assert "'batch_key': 'batch'" in capsys.readouterr().out
