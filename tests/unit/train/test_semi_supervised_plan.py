"""Training that learns from labels, in one process; two ranks are looked at under Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import pytest
import torch
from label_jobs import label_job, labelled_cells, new_scanvae
from torch import Tensor
from training_jobs import assert_close_runs

from scvi_dist.batch import CellBatch
from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.labelled_cells import LabelledConfig
from scvi_dist.errors import CheckpointError, ConfigError, FieldNotFound
from scvi_dist.train.classification import classification_sums
from scvi_dist.train.configs import EarlyStoppingConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.metrics import Reduce, alone
from scvi_dist.train.semi_supervised_config import (
    SemiSupervisedAdversarialPlanConfig,
    SemiSupervisedPlanConfig,
)
from scvi_dist.train.semi_supervised_plan import (
    SemiSupervisedAdversarialTrainingPlan,
    SemiSupervisedTrainingPlan,
)

ADVERSARIAL = SemiSupervisedAdversarialPlanConfig(adversarial_classifier=True, n_epochs_kl_warmup=4)
PLANS = {
    "labels": SemiSupervisedPlanConfig(n_epochs_kl_warmup=4, classification_ratio=7),
    "labels and an adversary": ADVERSARIAL,
}
METRICS = ("classification_loss", "accuracy", "f1_score", "calibration_error")


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return labelled_cells()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("n_per_label", [None, 5])
def test_a_run_that_goes_on_inside_an_epoch_ends_as_if_it_had_never_stopped(
    cells: ad.AnnData, tmp_path: Path, plan: Any, n_per_label: int | None
) -> None:
    labelled = LabelledConfig(n_samples_per_label=n_per_label)
    given = {"plan": plan, "labelled": labelled}
    whole = fit(label_job(cells, **given))
    half = label_job(cells, **given, run_dir=str(tmp_path), max_steps=7)
    assert fit(half).steps == 7
    job = label_job(cells, **given, run_dir=str(tmp_path), resume=True)
    assert_close_runs(fit(job), whole, rtol=1e-6)
    assert whole.steps == 3 * 5
    for mode in ("train", "validation"):
        assert [len(whole.history[f"{mode}_{name}"]) for name in METRICS] == [3] * 4
    assert ("adversarial_loss" in whole.history) == (plan is ADVERSARIAL)
    other = replace(job, labelled=LabelledConfig(n_samples_per_label=2))
    with pytest.raises(CheckpointError, match="labelled"):
        fit(other)


def test_cells_without_any_label_train_as_they_are(cells: ad.AnnData) -> None:
    unknown = cells.copy()
    unknown.obs["kind"] = "unknown"
    result = fit(label_job(unknown))
    assert result.steps == 15
    assert "train_classification_loss" not in result.history
    assert "train_classification_loss" in fit(label_job(cells)).history


def test_a_run_may_stop_early_by_how_well_labels_are_found(cells: ad.AnnData) -> None:
    stopping = EarlyStoppingConfig(
        monitor="validation_accuracy", mode="max", patience=2, min_delta=1.0
    )
    result = fit(label_job(cells, max_epochs=9, early_stopping=stopping))
    assert result.stopped_early
    assert result.epochs == 3


def minibatch(job: Any) -> CellBatch:
    data = CellDataModule(job.source, job.split, 26, config=job.loader, labelled=job.labelled)
    batch = replace(next(iter(data.train_loader)), labelled=next(iter(data.labelled_loader)))
    data.close()
    return batch


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_loss_is_the_modules_own_with_labels_and_the_adversarys(
    cells: ad.AnnData, weight: float
) -> None:
    """The plan's parts add up to what the module says of both minibatches with that noise."""
    job = label_job(cells)
    module = new_scanvae(12, dropout_rate=0.0).eval()
    config = replace(ADVERSARIAL, scale_adversarial_loss=weight, classification_ratio=3)
    batch = minibatch(job)
    plan = SemiSupervisedAdversarialTrainingPlan(module, config, n_train=126).eval()
    total = plan.training_step(batch, 0)
    module.noise.at(0, 0, 0, batch.n_cells, batch.n_global)
    inferred, _, output = module(batch, loss_kwargs={"kl_weight": 0.0})
    # The posterior mean is classified: whatever is drawn makes no difference.
    module.noise.unbind()
    cross_entropy = module.classification_loss(batch.labelled)[0]
    assert plan.adversary is not None
    added = torch.zeros(())
    if weight:
        z, codes = inferred["z"], batch["batch"]
        added = plan.adversary.added_loss(z, codes, batch.n_real, weight).detach()
    torch.testing.assert_close(total, output.loss + 3 * cross_entropy + added)
    means = plan.train_sums.means()
    torch.testing.assert_close(torch.tensor(means["loss"]), total.detach())
    assert means["classification_loss"] == pytest.approx(cross_entropy.item())
    assert means["adversarial_loss"] == pytest.approx(added.item() / (weight or 1.0))
    if weight == 0:
        plan = SemiSupervisedTrainingPlan(module, PLANS["labels"], n_train=126).eval()
        expected = output.loss + 7 * cross_entropy
        torch.testing.assert_close(plan.training_step(batch, 0), expected)


def test_the_modules_gradient_is_cut_at_a_norm_of_fifty(cells: ad.AnnData) -> None:
    module = new_scanvae(12)
    config = replace(ADVERSARIAL, classification_ratio=1e6)
    norms: list[float] = []

    class Plan(SemiSupervisedAdversarialTrainingPlan):
        def clip_gradients(self, optimizer: Any, limit: Any = None, *_: Any) -> None:
            norms.append(limit)

    plan = Plan(module, config, n_train=126)
    optimizer = plan.configure_optimizers()
    plan.configure_gradient_clipping(optimizer)
    plan.configure_gradient_clipping(optimizer, 3.0)
    assert norms == [50.0, None, 3.0, 3.0]


def test_what_the_adversary_cannot_tell_apart_is_named(cells: ad.AnnData) -> None:
    module = new_scanvae(12)
    module.n_panel = 2
    config = replace(ADVERSARIAL, key_adversarial="panel")
    plan = SemiSupervisedAdversarialTrainingPlan(module, config, n_train=126)
    with pytest.raises(FieldNotFound, match="'panel'"):
        plan.training_step(minibatch(label_job(cells)), 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classification_ratio": -1}, "at least 0"),
        ({"loss_kwargs": {"classification_ratio": 3}}, "not among its loss_kwargs"),
        ({"key_adversarial": "donor"}, "'batch', 'panel'"),
        ({"scale_adversarial_loss": "never"}, "auto"),
    ],
)
def test_plans_that_mean_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SemiSupervisedAdversarialPlanConfig(**given)


# Metrics

CASES = {
    "random": (torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 3).softmax(-1),
    "certain": torch.eye(5)[torch.arange(60) % 5],
    "on the edges": torch.tensor([[k / 15, 1 - k / 15] for k in range(16)]),
}


@pytest.mark.parametrize("probs", CASES.values(), ids=CASES)
def test_metrics_are_torchmetrics_own(probs: Tensor) -> None:
    from torchmetrics.functional import classification as theirs

    n, n_classes = probs.shape
    labels = torch.randint(0, n_classes, (n, 1), generator=torch.Generator().manual_seed(1))
    seen = classification_sums(torch.tensor(0.5), probs, labels, n, alone)
    true, predicted = labels[:, 0], probs.argmax(-1)
    expected = {
        "classification_loss": torch.tensor(0.5),
        "accuracy": theirs.multiclass_accuracy(predicted, true, n_classes, average="micro"),
        "f1_score": theirs.multiclass_f1_score(predicted, true, n_classes, average="micro"),
        "calibration_error": theirs.multiclass_calibration_error(probs, true, n_classes),
    }
    torch.testing.assert_close(seen, expected)


def test_shares_of_ranks_add_up_to_the_metrics_of_the_whole() -> None:
    """Three ranks, one of them without a cell."""
    probs = CASES["random"]
    labels = torch.randint(0, 5, (len(probs), 1), generator=torch.Generator().manual_seed(1))
    bounds, gaps = [0, 30, 30, 200], []

    def share(rank: int, reduce: Reduce) -> dict[str, Tensor]:
        mine = slice(bounds[rank], bounds[rank + 1])
        return classification_sums(
            torch.tensor(float(rank)), probs[mine], labels[mine], len(labels), reduce
        )

    for rank in range(3):
        share(rank, lambda mine: gaps.append(mine) or mine)
    parts = [share(rank, lambda mine: torch.stack(gaps).sum(0)) for rank in range(3)]
    together = {name: sum(part[name] for part in parts) for name in METRICS}
    loss = torch.tensor((0 * 30 + 2 * 170) / 200)
    torch.testing.assert_close(together, classification_sums(loss, probs, labels, 200, alone))
