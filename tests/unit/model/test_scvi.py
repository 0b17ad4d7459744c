"""SCVI as a user holds it: data of any kind, training, questions, files."""

import os
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix, hstack

from scvi_dist.data import open_store
from scvi_dist.data.writer import write_zarr
from scvi_dist.errors import (
    BudgetExceeded,
    ConfigError,
    FieldNotFound,
    NotTrained,
    OutputExists,
    SchemaMismatch,
    StoreNotFound,
    UnsafeFile,
)
from scvi_dist.model import SCVI
from scvi_dist.model.file_format import SavedModel, read_model_file, write_model_file
from scvi_dist.tracking import NullTracker, Tracker, TrackingConfig

N, G = 60, 8
SETUP = {"batch_key": "batch", "labels_key": "label"}


def make_adata(seed: int = 0, n: int = N) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3.0, (n, G)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["b0", "b1"], n), categories=["b0", "b1"]),
            "label": pd.Categorical(rng.choice(["x", "y", "z"], n), categories=["x", "y", "z"]),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(G)])
    adata = anndata.AnnData(csr_matrix(counts), obs=obs, var=var)
    adata.layers["counts"] = adata.X.copy()
    return adata


def make_model(data: Any, seed: int = 0, **arguments: Any) -> SCVI:
    """A model that counts as trained, with the weights of a seed."""
    SCVI.setup_anndata(data, **SETUP)
    torch.manual_seed(seed)
    model = SCVI(data, n_hidden=8, n_latent=3, **arguments)
    model.is_trained = True
    return model


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return make_adata()


@pytest.fixture(scope="module")
def model(adata: anndata.AnnData) -> SCVI:
    return make_model(adata)


def _sources(adata: anndata.AnnData, folder: Path) -> dict[str, Any]:
    adata.write_h5ad(folder / "a.h5ad")
    write_zarr(open_store(adata), folder / "a.zarr", overwrite=True)
    for i, rows in enumerate((slice(0, 25), slice(25, N))):
        adata[rows].copy().write_h5ad(folder / f"{i}.h5ad")
    return {
        "AnnData": adata.copy(),
        "backed AnnData": anndata.read_h5ad(folder / "a.h5ad", backed="r"),
        "path": folder / "a.h5ad",
        "string": str(folder / "a.zarr"),
        "URL": f"file://{folder / 'a.zarr'}",
        "list": [str(folder / "0.h5ad"), str(folder / "1.h5ad")],
        "store": open_store(folder / "a.zarr"),
    }


# Data


def test_data_of_every_kind_is_taken_everywhere(
    adata: anndata.AnnData, model: SCVI, tmp_path: Path
) -> None:
    indices = [9, 3, 3, 41]
    expected = model.get_latent_representation(indices=indices)
    for kind, source in _sources(adata, tmp_path).items():
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
    assert repr(model).endswith("Training status: Trained")


def test_the_setup_can_be_looked_at(model: SCVI, capsys: pytest.CaptureFixture[str]) -> None:
    model.view_anndata_setup()
    shown = capsys.readouterr().out
    assert "batch_key" in shown
    assert "b1" in shown


def test_cells_without_their_counts_are_refused(model: SCVI) -> None:
    minified = make_adata()
    minified.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    with pytest.raises(ConfigError, match="minified"):
        SCVI.setup_anndata(minified)
    with pytest.raises(ConfigError, match="minified"):
        model.get_latent_representation(minified)


# Questions


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


# Training


def test_training_fills_in_what_a_user_looks_for() -> None:
    adata = make_adata()
    model = make_model(adata)
    model.is_trained = False
    before = model.module.z_encoder.mean_encoder.weight.detach().clone()
    model.train(max_epochs=2, batch_size=16, check_val_every_n_epoch=1, train_size=0.7)
    assert model.is_trained
    assert not model.module.training
    assert not torch.equal(model.module.z_encoder.mean_encoder.weight, before)
    for name in ("train_loss", "elbo_train", "elbo_validation", "reconstruction_loss_train"):
        table = model.history[name]
        assert list(table.columns) == [name]
        assert table.index.name == "epoch"
        assert table.index.tolist() == [0, 1]
    parts = [model.train_indices, model.validation_indices, model.test_indices]
    assert [len(p) for p in parts] == [42, 18, 0]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(N))
    model.train(max_epochs=1, batch_size=16)
    assert model.history["elbo_train"].index.tolist() == [0, 1, 2]
    assert model.history["elbo_validation"].index.tolist() == [0, 1]


def test_equal_seeds_train_equal_models() -> None:
    adata = make_adata()
    latents = []
    for seed in (1, 1, 2):
        model = make_model(adata)
        model.train(max_epochs=2, batch_size=16, seed=seed)
        latents.append(model.get_latent_representation())
    np.testing.assert_array_equal(latents[0], latents[1])
    assert not np.allclose(latents[0], latents[2])


def test_a_store_trains_as_an_anndata_does(adata: anndata.AnnData, tmp_path: Path) -> None:
    write_zarr(open_store(adata), tmp_path / "a.zarr")
    latents = []
    for data in (adata, tmp_path / "a.zarr"):
        model = make_model(data)
        model.train(max_epochs=2, batch_size=16)
        latents.append(model.get_latent_representation(adata))
    np.testing.assert_allclose(latents[0], latents[1], rtol=1e-4, atol=1e-5)


def test_training_goes_on_from_a_checkpoint(adata: anndata.AnnData, tmp_path: Path) -> None:
    straight = make_model(adata)
    straight.train(max_epochs=4, batch_size=16)
    first = make_model(adata)
    first.train(max_epochs=2, batch_size=16, run_dir=tmp_path)
    then = make_model(adata, seed=9)
    with pytest.raises(OutputExists, match="resume=True"):
        then.train(max_epochs=4, batch_size=16, run_dir=tmp_path)
    then.train(max_epochs=4, batch_size=16, run_dir=tmp_path, resume=True)
    np.testing.assert_allclose(
        then.get_latent_representation(), straight.get_latent_representation(), atol=1e-5
    )
    assert then.history["elbo_train"].index.tolist() == [0, 1, 2, 3]


class Recorded(NullTracker):
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def log_params(self, params: Any) -> None:
        self.told.append(f"params of {', '.join(params)}")

    def log_dataset(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.told.append("dataset")

    def finish(self, status: str = "FINISHED", timeout_s: float = 60.0) -> bool:
        self.told.append(status)
        return True


def test_a_run_is_recorded_from_its_setup_to_its_end(
    adata: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[Any, Recorded]] = []

    def start_run(config: TrackingConfig, run_dir: Any, tags: Any = None) -> Recorded:
        started.append((config, Recorded()))
        return started[-1][1]

    monkeypatch.setattr(Tracker, "start_run", start_run)
    model = make_model(adata)
    model.train(1, tracking="off", run_dir=tmp_path / "a")
    config, tracker = started[0]
    assert (config.uri, config.run_name) == ("off", model.run_name)
    assert tracker.told == [
        "params of model, setup, train, plan, loader, data",
        "dataset",
        "FINISHED",
    ]
    with pytest.raises(RuntimeError, match="stop"):
        model.train(1, tracking=TrackingConfig(), run_dir=tmp_path / "b", on_progress=_fail)
    assert started[1][1].told[-1] == "FAILED"
    own = Recorded()
    monkeypatch.chdir(tmp_path)
    model.train(1, tracking=own)
    assert not (tmp_path / "scvi_dist_runs").exists()
    assert own.told == []
    assert len(started) == 2


def _fail(progress: Any) -> None:
    raise RuntimeError("stop")


def test_a_latent_library_size_has_a_prior_from_the_data(adata: anndata.AnnData) -> None:
    model = make_model(adata, use_observed_lib_size=False)
    logs = np.log(np.asarray(adata.X.sum(1)).ravel())
    for code, name in enumerate(("b0", "b1")):
        of_batch = logs[(adata.obs["batch"] == name).to_numpy()]
        assert model.module.library_log_means[0, code].item() == pytest.approx(of_batch.mean())
        assert model.module.library_log_vars[0, code].item() == pytest.approx(of_batch.var())
    assert model.get_latent_library_size().shape == (N, 1)


def test_counts_that_are_none_are_refused_except_by_a_normal_law() -> None:
    adata = make_adata()
    adata.X = adata.X.toarray() - 4.5
    counting = make_model(adata)
    with pytest.raises(ValueError, match="negative"):
        counting.get_latent_representation()
    continuous = make_model(adata, gene_likelihood="normal", log_variational=False)
    assert np.isfinite(continuous.get_latent_representation()).all()


# Files


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
    for kind, source in _sources(adata, tmp_path).items():
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


def test_a_budget_that_is_too_small_is_refused_before_training(
    adata: anndata.AnnData, tmp_path: Path
) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    SCVI.setup_anndata(str(tmp_path / "a.h5ad"), **SETUP)
    with pytest.raises(BudgetExceeded, match="budget"):
        SCVI(str(tmp_path / "a.h5ad"), n_hidden=8).train(max_epochs=1, budget_bytes=64)


def test_training_moves_the_statistics_of_batch_norms(adata: anndata.AnnData) -> None:
    SCVI.setup_anndata(adata, **SETUP)
    model = SCVI(adata, n_hidden=8)
    model.train(max_epochs=2, batch_size=20)
    norms = [m for m in model.module.z_encoder.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert norms
    assert all(int(norm.num_batches_tracked) > 2 for norm in norms)
    assert not any(m.training for m in model.module.modules()), "questions come next"
