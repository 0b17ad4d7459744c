"""scvi-tools' plan with an adversary and ours drive one module to the same weights and metrics."""

import warnings
from collections.abc import Iterator
from typing import Any

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from scvi_dist.batch import CellBatch
from scvi_dist.data import open_store
from scvi_dist.data.schema import fit_schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.source import CellSource
from scvi_dist.dataloaders.split import SplitConfig, split_rows
from scvi_dist.module import TOTALVAE
from scvi_dist.module.classifier import Classifier
from scvi_dist.nn import NoiseStream
from scvi_dist.train.adversarial_config import AdversarialPlanConfig
from scvi_dist.train.adversarial_plan import AdversarialTrainingPlan
from scvi_dist.train.callbacks import KeepCount
from scvi_dist.train.configs import TrainConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

EPOCHS, BATCH_SIZE, LOG_EVERY, N_BATCH, N_LATENT = 4, 32, 3, 3, 2
PLANS: dict[str, dict[str, Any]] = {
    # The weight of the adversary falls. At 0, which is not reached, scvi-tools runs the classifier
    # and forgets what came of it; its dropout would then take noise that ours does not take.
    "with the warm-up": {"n_epochs_kl_warmup": 5, "weight_decay": 0.01},
    "of constant weight": {
        "scale_adversarial_loss": 2.5,
        "reduce_lr_on_plateau": True,
        "lr_patience": 0,
        "lr_threshold": 1e9,
        "optimizer": "AdamW",
        "weight_decay": 0.1,
    },
}


def classifier(n_latent: int) -> nn.Module:
    """Of scvi-tools' sizes, with the same weights every time."""
    torch.manual_seed(5)
    return Classifier(n_latent, n_hidden=32, n_labels=N_BATCH, n_layers=2, logits=True)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts_ng = rng.poisson(3.0, size=(203, 11)).astype(np.float32)
    batch = pd.Categorical(rng.choice(["a", "b", "c"], len(counts_ng)))
    obs = pd.DataFrame({"batch": batch}, index=[f"c{i}" for i in range(len(counts_ng))])
    return ad.AnnData(counts_ng, obs=obs)


def job_of(cells: ad.AnnData, plan: dict[str, Any]) -> FitJob:
    from scvi.module import VAE as ScviVAE

    store = open_store(cells)
    torch.manual_seed(0)
    return FitJob(
        module=ScviVAE(11, n_batch=N_BATCH, n_hidden=8, n_latent=N_LATENT),
        source=CellSource(store.locator, fit_schema(store, SetupArgs(batch_key="batch"))),
        split=split_rows(store.n_obs, SplitConfig(train_size=0.8), BATCH_SIZE),
        loader=LoaderConfig(engine="local"),
        train=TrainConfig(
            max_epochs=EPOCHS,
            batch_size=BATCH_SIZE,
            accelerator="cpu",
            check_val_every_n_epoch=1,
            log_every_n_steps=LOG_EVERY,
        ),
        plan=AdversarialPlanConfig(**plan),
    )


class AsTheyAre:
    """Lightning takes a list for several loaders."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


class AsDicts(AsTheyAre):
    """Our minibatches as scvi-tools' plan takes them."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.loader:
            yield {key: batch[key] for key in batch}


def run_scvi_tools(
    module: Any, loaders: tuple[Any, ...], plan: dict[str, Any], epochs: int
) -> tuple[Any, dict[str, Any]]:
    """Their plan after training, and its history."""
    from scvi.train import AdversarialTrainingPlan as TheirPlan
    from scvi.train import Trainer

    their_plan = TheirPlan(module, adversarial_classifier=True, **plan)
    weights = classifier(module.n_latent).state_dict()
    their_plan.adversarial_classifier.load_state_dict(weights)
    their_plan.n_obs_training, their_plan.n_obs_validation = 163, 40
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        check_val_every_n_epoch=1,
        log_every_n_steps=LOG_EVERY,
        enable_progress_bar=False,
        learning_rate_monitor=False,
    )
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(their_plan, *loaders)
    return their_plan, trainer.logger.history


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_weights_and_history_are_those_of_scvi_tools(
    cells: ad.AnnData, plan: dict[str, Any]
) -> None:
    job = job_of(cells, plan)
    data = CellDataModule(job.source, job.split, BATCH_SIZE, config=job.loader)
    loaders = (AsDicts(data.train_loader), AsDicts(data.validation_loader))
    their_plan, theirs = run_scvi_tools(job.module, loaders, plan, EPOCHS)

    own = classifier(N_LATENT)
    job = job_of(cells, {**plan, "adversarial_classifier": own})
    torch.manual_seed(1)
    ours = fit(job)
    assert_close(ours.state_dict, their_plan.module.state_dict())
    assert_close(own.state_dict(), their_plan.adversarial_classifier.state_dict())

    assert ours.steps == EPOCHS * 6, "163 cells are 6 minibatches, and each of them is a step"
    for name, frame in theirs.items():
        if name == "kl_weight":
            continue  # logged by the number of steps, of which scvi-tools counts two a minibatch
        points = ours.history[name]
        assert [i for i, _ in points] == frame.index.tolist(), name
        values = [float(v) for v in frame[name]]
        assert [v for _, v in points] == pytest.approx(values, rel=1e-5, abs=1e-7), name


def assert_close(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(state), dict(expected), rtol=1e-5, atol=1e-6)


def test_a_step_of_totalvi_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from scvi.module import TOTALVAE as ScviTOTALVAE

    # Unbound, our module draws what scvi-tools' does.
    monkeypatch.setattr(NoiseStream, "at", lambda *_: None)
    rng = np.random.default_rng(0)
    n = 48
    tensors = {
        "X": torch.from_numpy(rng.poisson(2.0, (n, 20)).astype(np.float32)),
        "proteins": torch.from_numpy(rng.poisson(5.0, (n, 4)).astype(np.float32)),
        "batch": torch.from_numpy(rng.integers(0, N_BATCH, (n, 1))),
        "labels": torch.zeros(n, 1, dtype=torch.long),
    }
    x = tensors.pop("X")
    batch = CellBatch(x, tensors, np.arange(n), n_global=n)
    measured = {str(b): np.arange(4) % (b + 1) == 0 for b in range(N_BATCH)}
    args = {"n_batch": N_BATCH, "n_panel": N_BATCH, "protein_batch_mask": measured, "n_latent": 3}
    modules = []
    for kind in (TOTALVAE, ScviTOTALVAE):
        torch.manual_seed(0)
        modules.append(kind(20, 4, n_hidden=16, **args))
    plan = {"lr": 4e-3, "n_epochs_kl_warmup": 4}
    theirs, _ = run_scvi_tools(modules[1], (AsDicts([batch]),), plan, epochs=1)

    config = AdversarialPlanConfig(adversarial_classifier=classifier(3), **plan)
    ours = AdversarialTrainingPlan(modules[0], config, n_train=n)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[KeepCount()],
    )
    torch.manual_seed(1)
    trainer.fit(ours, AsTheyAre([batch]))
    assert trainer.global_step == ours.cursor.global_step == 1
    states = [module.state_dict() for module in modules]
    # The library encoder, which nothing reads, has statistics at scvi-tools alone.
    seen = [{k: v for k, v in state.items() if "l_gene_encoder" not in k} for state in states]
    assert_close(*seen)
    assert_close(
        ours.adversarial_classifier.state_dict(), theirs.adversarial_classifier.state_dict()
    )
