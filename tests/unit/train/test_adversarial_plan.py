"""Training with an adversary: what it changes, what it must not, and going on after a death."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_jobs import assert_close_runs

from scvi_dist.errors import CheckpointError
from scvi_dist.train.adversarial_config import AdversarialPlanConfig
from scvi_dist.train.adversarial_plan import AdversarialTrainingPlan
from scvi_dist.train.adversary import PairedOptimizers
from scvi_dist.train.checkpoint import Checkpoint, list_checkpoints
from scvi_dist.train.configs import TrainingPlanConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, FitResult

MakeJob = Callable[..., FitJob]
STEPS = 5
"""Steps of an epoch."""
REDUCE_LR = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e9}


def adversarial(make_job: MakeJob, plan: dict[str, Any], **settings: Any) -> FitJob:
    config = AdversarialPlanConfig(**{"adversarial_classifier": True, **plan})
    return replace(make_job(**settings), plan=config)


def adversary_state(checkpoint: Checkpoint) -> dict[str, Any]:
    state = checkpoint.load()
    return state["beside_module"] | {"optimizer": state["optimizer"]["pair"][1]["state"]}


def assert_same(left: FitResult, right: FitResult) -> None:
    assert_close_runs(left, right, rtol=1e-6)


def test_without_an_adversary_it_is_the_plain_plan(make_job: MakeJob) -> None:
    settings = {"check_val_every_n_epoch": 1}
    plan = {"n_epochs_kl_warmup": 2, **REDUCE_LR}
    plain = fit(replace(make_job(**settings), plan=TrainingPlanConfig(**plan)))
    without = fit(adversarial(make_job, {**plan, "adversarial_classifier": False}, **settings))
    assert_same(without, plain)
    one_batch = adversarial(make_job, plan, **settings)
    one_batch.module.n_batch = 1
    with pytest.warns(UserWarning, match="fewer than two batches"):
        assert_same(fit(one_batch), plain)


def test_an_adversary_of_no_weight_changes_nothing_but_itself(make_job: MakeJob) -> None:
    plan = {"n_epochs_kl_warmup": 2}
    plain = fit(replace(make_job(), plan=TrainingPlanConfig(**plan)))
    idle = fit(adversarial(make_job, {**plan, "scale_adversarial_loss": 0.0}))
    assert_same(idle, plain)


def test_a_minibatch_is_one_step(make_job: MakeJob) -> None:
    """Also for the warm-up, which would be twice as fast if both optimizers counted."""
    plan = {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 100}
    result = fit(adversarial(make_job, plan, max_epochs=None, max_steps=8, log_every_n_steps=4))
    assert (result.epochs, result.steps) == (1, 8)
    assert result.history["kl_weight"] == [(3, 0.03), (7, 0.07)]


def test_a_plateau_reduces_the_modules_learning_rate_alone(make_job: MakeJob) -> None:
    job = adversarial(make_job, {"lr": 0.1, **REDUCE_LR}, check_val_every_n_epoch=1)
    rates = [lr for _, lr in fit(job).history["lr-Adam"]]
    assert rates == pytest.approx([0.1, 0.06, 0.036])
    plan = AdversarialTrainingPlan(job.module, job.plan, n_train=126)
    optimizer = plan.configure_optimizers()
    assert isinstance(optimizer, PairedOptimizers)
    assert plan.scheduler is not None
    assert plan.scheduler.optimizer is optimizer.pair[0]


PLANS = {
    "falling weight": {"n_epochs_kl_warmup": 2, **REDUCE_LR},
    "constant weight": {"scale_adversarial_loss": 4.0, "optimizer": "AdamW"},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_run_that_dies_after_any_step_ends_like_an_undisturbed_one(
    make_job: MakeJob, tmp_path: Path, plan: dict[str, Any]
) -> None:
    settings = {"check_val_every_n_epoch": 1, "log_every_n_steps": 3, "max_epochs": 2}

    def job(folder: Path, **more: Any) -> FitJob:
        return replace(adversarial(make_job, plan, **settings, **more), run_dir=str(folder))

    every = {"checkpoint_every_n_steps": 1, "keep_checkpoints": 99}
    whole = fit(job(tmp_path / "all", **every))
    *saved, last = list_checkpoints(tmp_path / "all")
    assert len(saved) == 2 * STEPS - 1
    for checkpoint in saved[::2]:
        alone = tmp_path / f"from{checkpoint.cursor.global_step}"
        shutil.copytree(checkpoint.path, alone / "checkpoints" / checkpoint.path.name)
        resumed = fit(replace(job(alone), resume=True))
        assert_same(resumed, whole)
        found = adversary_state(list_checkpoints(alone)[-1])
        torch.testing.assert_close(found, adversary_state(last), rtol=1e-6, atol=1e-7)


def test_a_run_with_another_adversary_is_not_resumed(make_job: MakeJob, tmp_path: Path) -> None:
    first = replace(adversarial(make_job, {}, max_epochs=1), run_dir=str(tmp_path))
    fit(first)
    other = adversarial(make_job, {"adversarial_classifier": False}, max_epochs=2)
    with pytest.raises(CheckpointError, match="training_plan"):
        fit(replace(other, run_dir=str(tmp_path), resume=True))


def test_gradients_are_clipped_by_their_own_norms(make_job: MakeJob) -> None:
    """A classifier that is far off must not slow the module down, nor the reverse."""
    job = adversarial(make_job, {})
    plan = AdversarialTrainingPlan(job.module, job.plan, n_train=126)
    optimizer = plan.configure_optimizers()
    assert isinstance(optimizer, PairedOptimizers)
    sizes = (1e3, 1e-3)
    for part, size in zip(optimizer.pair, sizes, strict=True):
        for group in part.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, size)
    asked: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdversarialTrainingPlan, "clip_gradients", lambda _, *a: asked.append(a))
        plan.configure_gradient_clipping(optimizer, 1.0, "norm")
    assert asked == [(part, 1.0, "norm") for part in optimizer.pair]


def test_facts_reach_the_checkpoint(make_job: MakeJob, tmp_path: Path) -> None:
    fit(replace(adversarial(make_job, {}, max_epochs=1), run_dir=str(tmp_path)))
    (found,) = list_checkpoints(tmp_path)
    assert json.loads(json.dumps(found.facts))["training_plan"]["adversarial_classifier"] is True
