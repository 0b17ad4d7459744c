"""scvi-tools' semi-supervised training and ours: the same split, weights and history."""

import warnings
from collections.abc import Iterator
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from label_jobs import UNKNOWN, label_job, labelled_cells
from scvi_pairs import quiet

from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.rows import all_members
from scvi_dist.dataloaders.split import SplitConfig, split_by_label
from scvi_dist.module.scanvae import SCANVAE
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob
from scvi_dist.train.semi_supervised_config import (
    SemiSupervisedAdversarialPlanConfig,
    SemiSupervisedPlanConfig,
)

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

EPOCHS, BATCH_SIZE, LOG_EVERY = 3, 26, 5
PLANS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "few classes, steps": {
        "classification_ratio": 3,
        "n_epochs_kl_warmup": None,
        "n_steps_kl_warmup": 9,
        "max_kl_weight": 0.5,
    },
    "plateau": {
        "n_epochs_kl_warmup": 2,
        "reduce_lr_on_plateau": True,
        "lr_patience": 0,
        "lr_threshold": 1e9,
        "weight_decay": 0.1,
    },
}
MODULES: dict[str, dict[str, Any]] = {
    "deep classifier": {},
    "linear classifier": {"linear_classifier": True, "gene_likelihood": "nb"},
}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return labelled_cells()


def module_of(kind: type, **given: Any) -> Any:
    torch.manual_seed(0)
    return kind(12, n_batch=2, n_labels=3, n_hidden=8, n_latent=3, **given)


class Pairs:
    """Our minibatches as scvi-tools' plan takes them: all cells, and labelled ones."""

    def __init__(self, loader: Any, labelled: Any) -> None:
        self.loader, self.labelled = loader, labelled

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[dict, dict]]:
        for batch, other in zip(self.loader, self.labelled, strict=True):
            yield {key: batch[key] for key in batch}, {key: other[key] for key in other}


def run_scvi_tools(job: FitJob, module: Any, plan: Any) -> dict:
    from scvi.train import Trainer

    data = CellDataModule(
        job.source, job.split, BATCH_SIZE, config=job.loader, labelled=job.labelled
    )
    plan.n_obs_training = job.split.train.n
    plan.n_obs_validation = job.split.validation.n
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        check_val_every_n_epoch=1,
        log_every_n_steps=LOG_EVERY,
        enable_progress_bar=False,
        learning_rate_monitor=False,
    )
    train = Pairs(data.train_loader, data.labelled_loader)
    trainer.fit(plan, train, Pairs(data.validation_loader, data.labelled_validation_loader))
    return trainer.logger.history


def with_torchs_noise(module: SCANVAE) -> SCANVAE:
    """The module drawing from torch's generator, as scvi-tools' does, also while it trains."""
    module.noise.at = lambda *_: None  # type: ignore[method-assign]
    return module


def assert_same_history(theirs: dict, ours: dict, steps: int) -> None:
    # Of the weights logged in an epoch scvi-tools 1.4.2 keeps the last.
    by_epoch = {step // steps: weight for step, weight in ours["kl_weight"]}
    ours = {**ours, "kl_weight": list(by_epoch.items())}
    for name, frame in theirs.items():
        points = ours[name]
        assert [i for i, _ in points] == frame.index.tolist(), name
        expected = [float(v) for v in frame[name]]
        assert [v for _, v in points] == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("given", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_weights_and_history_are_those_of_scvi_tools(
    cells: ad.AnnData, plan: dict[str, Any], given: dict[str, Any]
) -> None:
    with quiet():
        from scvi.module import SCANVAE as TheirSCANVAE
        from scvi.train import SemiSupervisedTrainingPlan

    ours_module = with_torchs_noise(module_of(SCANVAE, **given))
    job = label_job(
        cells,
        module=ours_module,
        plan=SemiSupervisedPlanConfig(**plan),
        max_epochs=EPOCHS,
        log_every_n_steps=LOG_EVERY,
    )
    their_module = module_of(TheirSCANVAE, **given)
    torch.manual_seed(1)
    theirs = run_scvi_tools(job, their_module, SemiSupervisedTrainingPlan(their_module, 3, **plan))
    torch.manual_seed(1)
    ours = fit(job)
    torch.testing.assert_close(
        ours.state_dict, dict(their_module.state_dict()), rtol=1e-5, atol=5e-6
    )
    assert set(theirs) <= set(ours.history)
    assert_same_history(theirs, ours.history, steps=5)


def test_an_adversarys_run_is_that_of_scvi_tools(cells: ad.AnnData) -> None:
    """Dropout is off: here the adversary's masks are drawn in another order.

    scvi-tools counts two steps for a minibatch, so its warm-up is by epochs.
    """
    with quiet():
        from scvi.module import SCANVAE as TheirSCANVAE
        from scvi.module import Classifier as TheirClassifier
        from scvi.train import SemiSupervisedAdversarialTrainingPlan

    def adversary() -> Any:
        torch.manual_seed(5)
        return TheirClassifier(3, n_hidden=32, n_labels=2, n_layers=2, logits=True, dropout_rate=0)

    plan = {"n_epochs_kl_warmup": 4, "classification_ratio": 2}
    job = label_job(
        cells,
        module=with_torchs_noise(module_of(SCANVAE, dropout_rate=0.0)),
        plan=SemiSupervisedAdversarialPlanConfig(adversarial_classifier=adversary(), **plan),
        max_epochs=EPOCHS,
        log_every_n_steps=LOG_EVERY,
    )
    their_module = module_of(TheirSCANVAE, dropout_rate=0.0)
    their_plan = SemiSupervisedAdversarialTrainingPlan(
        their_module, 3, adversarial_classifier=True, **plan
    )
    their_plan.adversarial_classifier = adversary()
    torch.manual_seed(1)
    theirs = run_scvi_tools(job, their_module, their_plan)
    torch.manual_seed(1)
    ours = fit(job)
    torch.testing.assert_close(
        ours.state_dict, dict(their_module.state_dict()), rtol=1e-5, atol=5e-6
    )
    for name in ("adversarial_loss", "train_accuracy", "elbo_validation"):
        expected = [float(v) for v in theirs[name][name]]
        assert [v for _, v in ours.history[name]] == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize(
    "given",
    [
        {"train_size": 0.9},
        {"train_size": 0.5, "validation_size": 0.2},
        {"train_size": 0.7, "shuffle_set_split": False},
    ],
)
def test_the_split_takes_scvi_tools_cells(given: dict[str, Any]) -> None:
    with quiet():
        import scvi
        from scvi.dataloaders import SemiSupervisedDataSplitter

    cells = labelled_cells(n_cells=211)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.model.SCANVI.setup_anndata(cells, labels_key="kind", unlabeled_category=UNKNOWN)
        manager = scvi.model.SCANVI(cells).adata_manager
        scvi.settings.seed = 3
        theirs = SemiSupervisedDataSplitter(manager, batch_size=16, **given)
        theirs.setup()
    ours = split_by_label(
        (cells.obs["kind"] != UNKNOWN).to_numpy(), SplitConfig(seed=3, **given), 16
    )
    for mine, their in (
        (ours.train, theirs.train_idx),
        (ours.validation, theirs.val_idx),
        (ours.test, theirs.test_idx),
    ):
        np.testing.assert_array_equal(all_members(mine), np.sort(their))
