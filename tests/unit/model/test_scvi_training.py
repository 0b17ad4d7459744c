"""Training an SCVI model, as a user calls it."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from scvi_models import SETUP, N, make_adata, make_model

from scvi_dist.data import open_store
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.errors import (
    BudgetExceeded,
    OutputExists,
)
from scvi_dist.model import SCVI
from scvi_dist.tracking import NullTracker, Tracker, TrackingConfig


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
