"""The loop over steps does what Lightning's does, and leaves to Lightning what it does not do."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LambdaCallback

from scvi_dist.train.configs import EarlyStoppingConfig, TrainingPlanConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, FitResult, TrainerExtras
from scvi_dist.train.training_plan import TrainingPlan

MakeJob = Callable[..., FitJob]


class Looks(pl.Callback):
    """Looks at epochs, as users' callbacks mostly do, and so is no reason for a slower loop."""

    def __init__(self) -> None:
        self.direct: list[bool] = []
        self.counters: list[tuple[int, int, int]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        loop = trainer.fit_loop.epoch_loop
        self.direct.append(loop.is_direct)
        self.counters.append((trainer.global_step, trainer.current_epoch, loop.batch_idx))


class LooksAtSteps(Looks):
    """Also looks at each step, so that Lightning's own loop makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.calls.append("start")

    def on_before_zero_grad(self, *_: Any) -> None:
        self.calls.append("zero")

    def on_after_backward(self, *_: Any) -> None:
        self.calls.append("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self.calls.append("end")


def run(job: FitJob, callback: Looks) -> tuple[FitResult, Looks]:
    return fit(job, extras=TrainerExtras(callbacks=(callback,))), callback


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.5},
    "clipped by value": {"gradient_clip_val": 1e-2, "gradient_clip_algorithm": "value"},
    "validated": {"check_val_every_n_epoch": 2, "log_every_n_steps": 2},
    "stopped early": {"early_stopping": EarlyStoppingConfig(patience=1, min_delta=1e9)},
    "a limit of steps": {"max_epochs": None, "max_steps": 8},
    "mixed precision": {"precision": "bf16-mixed"},
    "slowed down": {
        "plan": {"optimizer": "AdamW", "reduce_lr_on_plateau": True, "lr_patience": 0},
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_weights_metrics_and_counters_are_those_of_lightnings_loop(
    make_job: MakeJob, settings: dict[str, Any]
) -> None:
    (ours, looks), (lightnings, steps) = (
        run(make_job(**settings), callback) for callback in (Looks(), LooksAtSteps())
    )
    torch.testing.assert_close(ours.state_dict, lightnings.state_dict, rtol=0, atol=0)
    assert ours.history == lightnings.history
    assert (ours.steps, ours.epochs, ours.stopped_early) == (
        lightnings.steps,
        lightnings.epochs,
        lightnings.stopped_early,
    )
    assert looks.counters == steps.counters
    assert (set(looks.direct), set(steps.direct)) == ({True}, {False})
    assert steps.calls == ["start", "zero", "backward", "end"] * ours.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnPlanConfig(TrainingPlanConfig):
    plan_class: ClassVar[str] = f"{__name__}:OwnPlan"


class OwnPlan(TrainingPlan):
    """A plan that has something to do before the optimizer's step."""

    n_calls = 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        type(self).n_calls += 1


def test_a_plan_with_a_hook_of_its_own_gets_it_called(make_job: MakeJob) -> None:
    OwnPlan.n_calls = 0
    result, looks = run(make_job(max_epochs=1, job={"plan": OwnPlanConfig()}), Looks())
    assert looks.direct == [False]
    assert OwnPlan.n_calls == result.steps == 5


def test_an_optimizer_of_the_users_is_stepped_by_lightning(make_job: MakeJob) -> None:
    # It calls the closure itself, and cannot do without.
    creator = partial(torch.optim.LBFGS, lr=1e-6, max_iter=1)
    plan = {"optimizer": "Custom", "optimizer_creator": creator}
    result, looks = run(make_job(plan=plan, max_epochs=1), Looks())
    assert looks.direct == [False]
    assert result.steps == 5


@pytest.mark.filterwarnings("ignore:.*accumulate.*")
def test_accumulation_is_left_to_lightning(make_job: MakeJob) -> None:
    looks = Looks()
    scheduler = GradientAccumulationScheduler({0: 1, 1: 5})
    job = make_job(max_epochs=2)
    fit(job, extras=TrainerExtras(callbacks=(scheduler, looks)))
    assert looks.direct == [True, False]
    assert [counters[0] for counters in looks.counters] == [5, 6]


def test_functions_as_callbacks_are_called(make_job: MakeJob) -> None:
    seen: list[int] = []
    callback = LambdaCallback(on_train_batch_end=lambda *given: seen.append(given[-1]))
    fit(make_job(max_epochs=2), extras=TrainerExtras(callbacks=(callback,)))
    assert seen == [0, 1, 2, 3, 4] * 2


class Hooked(Looks):
    """Waits for derivatives where autograd leaves them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        weight = plan.module.z_encoder.mean_encoder.weight
        weight.register_post_accumulate_grad_hook(lambda p: self.sizes.append(p.grad.numel()))


def test_derivatives_that_somebody_waits_for_come_by_autograd(make_job: MakeJob) -> None:
    (ours, looks), (hooked, waits) = (
        run(make_job(max_epochs=2), callback) for callback in (Looks(), Hooked())
    )
    assert (looks.direct, waits.direct) == ([True, True], [True, True])
    assert len(waits.sizes) == hooked.steps
    torch.testing.assert_close(ours.state_dict, hooked.state_dict, rtol=0, atol=0)


class Freezes(Looks):
    """Stops training a part when an epoch begins."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[torch.Tensor] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        head = plan.module.z_encoder.mean_encoder
        self.means.append(head.weight.detach().clone())
        head.requires_grad_(trainer.current_epoch == 0)


def test_what_an_epoch_begins_with_counts_for_its_steps(make_job: MakeJob) -> None:
    result, freezes = run(make_job(max_epochs=3), Freezes())
    assert freezes.direct == [True] * 3
    first, second, third = freezes.means
    assert not torch.equal(first, second)
    assert torch.equal(second, third)
    assert torch.equal(third, result.state_dict["z_encoder.mean_encoder.weight"])
