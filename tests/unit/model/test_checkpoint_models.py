"""SaveCheckpoint: the best epochs of a run are models on disk."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from scvi_dist.errors import ConfigError, TrainingFailed
from scvi_dist.model import SCVI
from scvi_dist.train import SaveCheckpoint

EPOCHS = 5


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(120)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(15)])
    counts = csr_matrix(rng.poisson(3.0, (120, 15)).astype(np.float32))
    return anndata.AnnData(counts, obs=obs, var=var)


def trained(cells: anndata.AnnData, folder: Path, **options: Any) -> SCVI:
    SCVI.setup_anndata(cells)
    torch.manual_seed(0)
    model = SCVI(cells, n_hidden=8, n_latent=3)
    plan = {"lr": 0.3, "n_epochs_kl_warmup": 1} | options.pop("plan_kwargs", {})
    model.train(
        EPOCHS, accelerator="cpu", run_dir=folder, plan_kwargs=plan, enable_progress_bar=False,
        **options,
    )  # fmt: skip
    return model


@pytest.mark.parametrize("take_best", [False, True])
def test_the_best_models_are_written_and_may_be_taken(
    cells: anndata.AnnData, tmp_path: Path, take_best: bool
) -> None:
    saver = SaveCheckpoint(
        dirpath=tmp_path / "models", save_top_k=2, load_best_on_end=take_best, monitor="elbo_train"
    )
    model = trained(cells, tmp_path / "run", callbacks=[saver])
    losses = model.history["elbo_train"]["elbo_train"]
    best = losses.sort_values().head(2)
    assert saver.best_model_score == pytest.approx(best.iloc[0])
    assert list(saver.best_k_models.values()) == pytest.approx(best.tolist())
    assert f"epoch={best.index[0]}-step=" in saver.best_model_path
    loaded = SCVI.load(saver.best_model_path, cells, accelerator="cpu")
    same = np.array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    assert same == (take_best or best.index[0] == EPOCHS - 1)
    assert len(list((tmp_path / "models").iterdir())) == 2


def test_enable_checkpointing_is_a_saver_in_the_folder_of_the_run(
    cells: anndata.AnnData, tmp_path: Path
) -> None:
    model = trained(cells, tmp_path, enable_checkpointing=True)
    losses = model.history["validation_loss"]["validation_loss"]
    (folder,) = (tmp_path / "models").iterdir()
    assert folder.name.startswith(f"epoch={losses.idxmin()}-step=")
    assert f"validation_loss={losses.min()}"[:24] in folder.name


def test_a_broken_loss_leaves_the_best_weights(cells: anndata.AnnData, tmp_path: Path) -> None:
    saver = SaveCheckpoint(monitor="elbo_train", check_nan_gradients=True, filename="best-{epoch}")
    SCVI.setup_anndata(cells)
    torch.manual_seed(0)
    model = SCVI(cells, n_hidden=8, n_latent=3)
    plain, calls = model.module.loss, []

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        calls.append(None)
        output.loss = output.loss * (float("nan") if len(calls) > 3 else 1.0)
        return output

    model.module.loss = spoiled
    with pytest.raises(TrainingFailed) as failed:
        model.train(
            9, accelerator="cpu", run_dir=tmp_path, callbacks=[saver], enable_progress_bar=False
        )
    assert saver.best_model_path.startswith(str(tmp_path / "models" / "best-epoch="))
    assert saver.best_model_path in failed.value.__notes__[-1]
    best = SCVI.load(saver.best_model_path, cells, accelerator="cpu")
    np.testing.assert_array_equal(
        best.get_latent_representation(), model.get_latent_representation()
    )


def test_savers_that_cannot_be(cells: anndata.AnnData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 SaveCheckpoint"):
        trained(cells, tmp_path, callbacks=[SaveCheckpoint(), SaveCheckpoint()])
    with pytest.raises(ConfigError, match="save_top_k"):
        SaveCheckpoint(save_top_k=0)
    saver = SaveCheckpoint(monitor="elbo_train", filename="{elbow}")
    with pytest.raises(ConfigError, match="no metric 'elbow'"):
        trained(cells, tmp_path / "other", callbacks=[saver])
