"""What scvi-tools' Trainer offers besides: best models, learning rates, loggers, clipping."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from scvi_dist.errors import ConfigError
from scvi_dist.module import VAE
from scvi_dist.train.checkpoint import list_checkpoints
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, FitResult, TrainerExtras

MakeJob = Callable[..., FitJob]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_epochs_stay_however_fast_they_are(
    make_job: MakeJob, tmp_path: Path, mode: str, keep: int
) -> None:
    """Not only those that were due to be written."""
    job = make_job(
        plan={"lr": 0.3},
        max_epochs=6,
        checkpoint_monitor="validation_loss",
        checkpoint_mode=mode,
        keep_best_checkpoints=keep,
        keep_checkpoints=1,
        checkpoint_every_s=1e9,
    )
    losses = dict(fit(replace(job, run_dir=str(tmp_path))).history["validation_loss"])
    assert len(losses) == 6
    ranked = sorted(losses, key=losses.__getitem__, reverse=mode == "max")
    kept = {c.cursor.epoch - 1: c for c in list_checkpoints(tmp_path)}
    assert set(kept) == {*ranked[:keep], 5}
    assert all(c.load()["optimizer"]["state"] for c in kept.values())


def test_a_metric_that_there_is_not_is_named(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(checkpoint_monitor="validation_los", check_val_every_n_epoch=1)
    with pytest.raises(ConfigError, match="did you mean 'validation_loss'"):
        fit(replace(job, run_dir=str(tmp_path)))


@pytest.mark.parametrize("plan", [{}, {"optimizer": "AdamW", "lr": 2e-3}], ids=str)
def test_the_learning_rate_of_each_epoch(make_job: MakeJob, plan: dict[str, Any]) -> None:
    history = fit(make_job(plan=plan, learning_rate_monitor=True)).history
    name = f"lr-{plan.get('optimizer', 'Adam')}"
    assert history[name] == [(epoch, plan.get("lr", 1e-3)) for epoch in range(3)]
    reducing = {**plan, "reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e9}
    rates = [
        rate for _, rate in fit(make_job(plan=reducing, learning_rate_monitor=True)).history[name]
    ]
    assert len(rates) == 3
    assert rates == sorted(rates, reverse=True)


def test_steps_are_in_the_history_where_asked_for(make_job: MakeJob) -> None:
    history = fit(make_job(plan={"on_step": True}, log_every_n_steps=5)).history
    assert [step for step, _ in history["train_loss_step"]] == [4, 9, 14]
    by_epoch = [value for _, value in history["train_loss"]]
    assert [value for _, value in history["train_loss_step"]] == pytest.approx(by_epoch, rel=1e-5)


def test_a_logger_hears_of_epochs(make_job: MakeJob, tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), name="run", version="0")
    result = fit(make_job(), extras=TrainerExtras(loggers=(logger,)))
    lines = (tmp_path / "run" / "0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("elbo_train")
    told = [float(line.split(",")[column]) for line in lines[1:]]
    assert told == pytest.approx([value for _, value in result.history["elbo_train"]], rel=1e-5)


class LargestGradient(pl.Callback):
    """The largest norm and the largest value of a gradient that an optimizer has seen."""

    norm, value = 0.0, 0.0

    def on_before_optimizer_step(self, trainer: Any, plan: Any, optimizer: Any) -> None:
        pass

    def on_train_batch_end(self, trainer: Any, plan: Any, *_: Any) -> None:
        grads = [p.grad for p in plan.parameters() if p.grad is not None]
        self.norm = max(self.norm, float(torch.cat([g.flatten() for g in grads]).norm()))
        self.value = max(self.value, max(float(g.abs().max()) for g in grads))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped(make_job: MakeJob, algorithm: str) -> None:
    free, clipped = LargestGradient(), LargestGradient()
    fit(make_job(max_epochs=1), extras=TrainerExtras(callbacks=(free,)))
    limit = getattr(free, algorithm) / 3
    job = make_job(max_epochs=1, gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
    fit(job, extras=TrainerExtras(callbacks=(clipped,)))
    assert getattr(clipped, algorithm) == pytest.approx(limit, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_training_ends_where_plain_training_ends(make_job: MakeJob) -> None:
    compiled = {"compile": True, "compile_kwargs": {"backend": "eager"}}

    def ended(plan: dict[str, Any]) -> FitResult:
        job = make_job(plan=plan, max_epochs=1)
        module = VAE(**job.module.init_args)
        module.load_state_dict(job.module.state_dict())
        return fit(replace(job, module=module))

    plain, other = ended({}), ended(compiled)
    torch.testing.assert_close(other.state_dict, plain.state_dict, rtol=1e-4, atol=1e-5)
