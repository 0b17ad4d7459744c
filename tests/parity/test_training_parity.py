"""scvi-tools' training plan and ours drive one module to the same weights and metrics."""

import warnings
from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from scvi_dist.batch import CellBatch
from scvi_dist.data import open_store
from scvi_dist.data.schema import fit_schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.source import CellSource
from scvi_dist.dataloaders.split import SplitConfig, split_rows
from scvi_dist.train.configs import TrainConfig, TrainingPlanConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob

pytestmark = pytest.mark.parity

EPOCHS, BATCH_SIZE, LOG_EVERY = 4, 32, 3
PLANS = {
    "defaults": {},
    "steps": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 9, "max_kl_weight": 0.5},
    "plateau": {
        "n_epochs_kl_warmup": 2,
        "min_kl_weight": 0.1,
        "reduce_lr_on_plateau": True,
        "lr_patience": 0,
        "lr_threshold": 1e9,
        "optimizer": "AdamW",
        "weight_decay": 0.1,
    },
}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts_ng = rng.poisson(3.0, size=(203, 11)).astype(np.float32)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(counts_ng))])
    return ad.AnnData(counts_ng, obs=obs)


def scvi_module() -> torch.nn.Module:
    scvi_vae = pytest.importorskip("scvi.module").VAE
    torch.manual_seed(0)
    return scvi_vae(11, n_hidden=8, n_latent=2)


def job_of(cells: ad.AnnData, plan: dict) -> FitJob:
    store = open_store(cells)
    return FitJob(
        module=scvi_module(),
        source=CellSource(store.locator, fit_schema(store, SetupArgs())),
        split=split_rows(store.n_obs, SplitConfig(train_size=0.8), BATCH_SIZE),
        loader=LoaderConfig(engine="local"),
        train=TrainConfig(
            max_epochs=EPOCHS,
            batch_size=BATCH_SIZE,
            accelerator="cpu",
            check_val_every_n_epoch=1,
            log_every_n_steps=LOG_EVERY,
        ),
        plan=TrainingPlanConfig(**plan),
    )


class AsDicts:
    """Our minibatches as scvi-tools' plan takes them."""

    def __init__(self, loader: object) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.loader:
            assert isinstance(batch, CellBatch)
            yield {key: batch[key] for key in batch}


def run_scvi_tools(job: FitJob, plan: dict) -> tuple[dict, dict]:
    from scvi.train import Trainer
    from scvi.train import TrainingPlan as TheirPlan

    data = CellDataModule(job.source, job.split, BATCH_SIZE, config=job.loader)
    their_plan = TheirPlan(job.module, **plan)
    their_plan.n_obs_training = job.split.train.n
    their_plan.n_obs_validation = job.split.validation.n
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        check_val_every_n_epoch=1,
        log_every_n_steps=LOG_EVERY,
        enable_progress_bar=False,
        learning_rate_monitor=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(their_plan, AsDicts(data.train_loader), AsDicts(data.validation_loader))
    history = trainer.logger.history
    return history, dict(job.module.state_dict())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.filterwarnings("ignore")
def test_weights_and_history_are_those_of_scvi_tools(cells: ad.AnnData, plan: dict) -> None:
    torch.manual_seed(1)
    theirs, their_weights = run_scvi_tools(job_of(cells, plan), plan)
    torch.manual_seed(1)
    ours = fit(job_of(cells, plan))
    torch.testing.assert_close(ours.state_dict, their_weights, rtol=1e-5, atol=1e-6)
    assert set(theirs) <= set(ours.history)
    # 163 training cells are 6 steps an epoch. Of the weights logged in an epoch scvi-tools 1.4.2
    # keeps the last.
    by_epoch = {step // 6: weight for step, weight in ours.history["kl_weight"]}
    ours.history["kl_weight"] = list(by_epoch.items())
    for name, frame in theirs.items():
        points = ours.history[name]
        assert [i for i, _ in points] == frame.index.tolist(), name
        values = [float(v) for v in frame[name]]
        assert [v for _, v in points] == pytest.approx(values, rel=1e-5, abs=1e-7), name
