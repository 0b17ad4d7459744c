"""SCVI and its data: of any kind, and what it tells of it."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import hstack
from scvi_models import SETUP, G, N, make_adata, make_model, sources_of

from scvi_dist.errors import (
    ConfigError,
    FieldNotFound,
    SchemaMismatch,
)
from scvi_dist.model import SCVI


def test_data_of_every_kind_is_taken_everywhere(
    adata: anndata.AnnData, model: SCVI, tmp_path: Path
) -> None:
    indices = [9, 3, 3, 41]
    expected = model.get_latent_representation(indices=indices)
    for kind, source in sources_of(adata, tmp_path).items():
        given = model.get_latent_representation(source, indices=indices)
        np.testing.assert_allclose(given, expected, rtol=1e-5, err_msg=kind)
        own = make_model(source)
        np.testing.assert_allclose(
            own.get_latent_representation(indices=indices), expected, rtol=1e-5, err_msg=kind
        )
        assert dict(own.summary_stats) == dict(model.summary_stats)
        again = own.get_latent_representation(source, indices=indices)
        np.testing.assert_array_equal(again, own.get_latent_representation(indices=indices))


def test_nothing_is_written_into_the_users_data() -> None:
    adata = make_adata()
    before = adata.copy()
    model = make_model(adata)
    model.train(max_epochs=1, batch_size=20)
    model.get_normalized_expression()
    model.get_elbo()
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (adata.X != before.X).nnz == 0
    assert not adata.uns
    assert not adata.obsm


def test_other_data_is_brought_into_the_models_schema(model: SCVI) -> None:
    other = make_adata(seed=1, n=40)
    expected = model.get_latent_representation(other)
    shuffled = other[:, np.random.default_rng(0).permutation(G)].copy()
    shuffled.obs["batch"] = shuffled.obs["batch"].cat.reorder_categories(["b1", "b0"])
    np.testing.assert_allclose(model.get_latent_representation(shuffled), expected, rtol=1e-5)
    extended = anndata.AnnData(
        hstack([other.X[:, :2], other.X], "csr"),
        obs=other.obs,
        var=pd.DataFrame(index=["new0", "new1", *other.var_names]),
    )
    np.testing.assert_allclose(model.get_latent_representation(extended), expected, rtol=1e-5)
    with pytest.raises(SchemaMismatch, match="gene3"):
        model.get_latent_representation(other[:, [0, 1, 2]].copy())
    strange = other.copy()
    strange.obs["batch"] = "b7"
    with pytest.raises(SchemaMismatch, match="b7"):
        model.get_latent_representation(strange)
    del strange.obs["batch"]
    with pytest.raises(FieldNotFound, match="batch"):
        model.get_latent_representation(strange)


def test_data_that_changed_is_seen(model: SCVI) -> None:
    other = make_adata(seed=1, n=40)
    one = model.get_normalized_expression(other, return_numpy=True, seed=0)
    other.obs["batch"] = pd.Categorical(["b1"] * 40, categories=["b0", "b1"])
    two = model.get_normalized_expression(other, return_numpy=True, seed=0)
    as_b1 = model.get_normalized_expression(other, transform_batch="b1", return_numpy=True, seed=0)
    assert not np.allclose(one, two)
    np.testing.assert_allclose(two, as_b1, rtol=1e-5)


def test_what_is_not_set_up_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SCVI\.setup_anndata"):
        SCVI(make_adata())
    with pytest.raises(ConfigError, match=r"SCVI\.setup_anndata"):
        SCVI(tmp_path / "a.h5ad")
    with pytest.raises(ConfigError, match="needs its data"):
        SCVI()
    with pytest.raises(FieldNotFound, match="did you mean 'batch'"):
        SCVI.setup_anndata(make_adata(), batch_key="bacth")


def test_what_a_model_says_of_its_data(model: SCVI, adata: anndata.AnnData) -> None:
    assert model.adata is adata
    assert model.get_var_names().tolist() == adata.var_names.tolist()
    assert model.get_state_registry("batch").categorical_mapping.tolist() == ["b0", "b1"]
    assert model.get_setup_arg("batch_key") == "batch"
    assert model.get_from_registry(adata, "batch").shape == (N, 1)
    assert model.data_registry("X").shape == (N, G)
    assert model.adata_manager.schema is model.schema
    assert model.get_anndata_manager(adata) is model.adata_manager
    with pytest.raises(FieldNotFound, match="'batch'"):
        model.get_state_registry("bathc")
    with pytest.raises(FieldNotFound, match="batch_key"):
        model.get_setup_arg("batch_keys")
    assert repr(model).startswith("SCVI model with the following parameters")
    assert "Training status: Trained" in repr(model)


def test_the_setup_can_be_looked_at(model: SCVI, capsys: pytest.CaptureFixture[str]) -> None:
    model.view_anndata_setup()
    shown = capsys.readouterr().out
    assert "batch_key" in shown
    assert "b1" in shown


def test_a_model_can_be_given_other_data_of_its_own(model: SCVI) -> None:
    own = make_model(make_adata())
    other = make_adata(seed=3, n=30)
    expected = own.get_latent_representation(other)
    own.adata = other
    assert own.adata is other
    np.testing.assert_array_equal(own.get_latent_representation(), expected)
    with pytest.raises(ConfigError, match="cannot be None"):
        own.adata = None


def test_setups_can_be_forgotten() -> None:
    one, two, three = (make_adata(seed) for seed in range(3))
    models = [make_model(data) for data in (one, two)]
    SCVI.setup_anndata(three, **SETUP)
    models[0].deregister_manager(three)
    with pytest.raises(ConfigError, match="not set up"):
        SCVI(three)
    SCVI.setup_anndata(three, **SETUP)
    models[0].deregister_manager()
    SCVI(one)
    for gone in (two, three):
        with pytest.raises(ConfigError, match="not set up"):
            SCVI(gone)
    # A model keeps what it has.
    assert models[1].get_latent_representation().shape == (N, 3)
    SCVI.register_manager(models[1].adata_manager)
    assert SCVI(two).adata is two


def test_what_the_setup_was_given_can_be_changed_and_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = make_model(make_adata())
    own.update_setup_method_args({"labels_key": "other"})
    assert own.registry["setup_args"]["labels_key"] == "other"
    assert own.schema.setup.labels_key == "label", "nothing is set up anew"
    own.view_setup_method_args()
    assert "'labels_key': 'other'" in capsys.readouterr().out
    own.view_registry(hide_state_registries=True)
    assert "codes of" not in capsys.readouterr().out


def test_facts_of_a_run_can_be_set(model: SCVI) -> None:
    own = make_model(make_adata())
    own.run_name, own.run_id = "mine", "7f"
    own.train_indices, own.validation_indices, own.test_indices = [2, 1], [0], []
    own.get_normalized_function_name = "get_other"
    assert (own.run_name, own.run_id) == ("mine", "7f")
    assert own.train_indices.tolist() == [2, 1]
    assert own.get_normalized_function_name == "get_other"
    attributes = own._to_file().attributes
    assert attributes["validation_indices_"].tolist() == [0]
    assert attributes["get_normalized_function_name_"] == "get_other"
