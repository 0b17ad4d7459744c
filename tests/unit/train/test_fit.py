import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from training_jobs import toy_job

from scvi_dist.batch import CellBatch
from scvi_dist.dataloaders.split import SplitConfig
from scvi_dist.errors import CheckpointError, ConfigError, OutputExists, TrainingFailed
from scvi_dist.kernels import threads
from scvi_dist.module import LossOutput
from scvi_dist.tracking import NullTracker
from scvi_dist.train.checkpoint import latest_checkpoint, list_checkpoints
from scvi_dist.train.configs import EarlyStoppingConfig
from scvi_dist.train.diagnosis import all_finite
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, FitResult, TrainerExtras
from scvi_dist.train.progress import TrainProgress

MakeJob = Callable[..., FitJob]
STEPS, EPOCHS = 5, 3


def assert_same_run(left: FitResult, right: FitResult) -> None:
    """Weights and history are equal, bit for bit."""
    torch.testing.assert_close(left.state_dict, right.state_dict, rtol=0, atol=0)
    assert left.history == right.history
    assert (left.epochs, left.steps) == (right.epochs, right.steps)


def in_folder(job: FitJob, folder: Path, resume: bool = False) -> FitJob:
    return replace(job, run_dir=str(folder), resume=resume)


def first_rows(job: FitJob) -> list[int]:
    """Some of the training cells."""
    return job.split.train.members_of(np.array([0]), np.array([50])).tolist()


class DieAt(pl.Callback):
    """Stands for a process that ends without warning after a step."""

    class Died(BaseException):
        pass

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: pl.Trainer, plan: pl.LightningModule, *_: object
    ) -> None:
        if plan.cursor.global_step == self.step:
            raise self.Died


REDUCE_LR = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e9}
PLANS = {
    "by epochs": {"n_epochs_kl_warmup": 2, **REDUCE_LR},
    "by steps": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 11, "optimizer": "AdamW"},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_run_that_dies_after_any_step_ends_like_an_undisturbed_one(
    make_job: MakeJob, tmp_path: Path, plan: dict
) -> None:
    settings = {"check_val_every_n_epoch": 1, "log_every_n_steps": 3, "max_epochs": EPOCHS}
    whole = fit(make_job(plan=plan, **settings))
    every_step = make_job(plan=plan, **settings, checkpoint_every_n_steps=1, keep_checkpoints=99)
    assert_same_run(fit(in_folder(every_step, tmp_path / "all")), whole)
    saved = list_checkpoints(tmp_path / "all")
    assert [c.cursor.global_step for c in saved] == list(range(1, STEPS * EPOCHS + 1))
    for checkpoint in saved:
        alone = tmp_path / f"from{checkpoint.cursor.global_step}"
        shutil.copytree(checkpoint.path, alone / "checkpoints" / checkpoint.path.name)
        resumed = fit(in_folder(make_job(plan=plan, **settings), alone, resume=True))
        assert_same_run(resumed, whole)


def test_a_run_may_die_more_than_once(make_job: MakeJob, tmp_path: Path) -> None:
    def job() -> FitJob:
        settings = {"check_val_every_n_epoch": 2, "checkpoint_every_n_steps": 2}
        return in_folder(make_job(**settings), tmp_path, resume=True)

    whole = fit(replace(job(), run_dir=None))
    for step in (3, 7, 8, 14):
        with pytest.raises(DieAt.Died):
            fit(job(), extras=TrainerExtras(callbacks=(DieAt(step),)))
        found = latest_checkpoint(tmp_path)
        assert found is not None
        assert found.cursor.global_step == step - step % 2
    assert_same_run(fit(job()), whole)


def test_a_finished_run_resumes_to_its_result(make_job: MakeJob, tmp_path: Path) -> None:
    done = fit(in_folder(make_job(check_val_every_n_epoch=1), tmp_path))
    again = fit(in_folder(make_job(check_val_every_n_epoch=1), tmp_path, resume=True))
    assert_same_run(again, done)
    longer = fit(in_folder(make_job(check_val_every_n_epoch=1, max_epochs=5), tmp_path, True))
    straight = fit(make_job(check_val_every_n_epoch=1, max_epochs=5))
    assert_same_run(longer, straight)


def test_steps_limit_a_run_and_a_longer_limit_goes_on(make_job: MakeJob, tmp_path: Path) -> None:
    short = fit(in_folder(make_job(max_epochs=None, max_steps=7), tmp_path))
    assert (short.steps, short.epochs) == (7, 1)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.cursor.epoch, found.cursor.position) == (1, 52)
    straight = fit(make_job(max_epochs=None, max_steps=15))
    longer = fit(in_folder(make_job(max_epochs=None, max_steps=15), tmp_path, resume=True))
    assert_same_run(longer, straight)
    assert longer.epochs == EPOCHS


def test_without_limits_scvi_tools_rule_holds(make_job: MakeJob) -> None:
    assert make_job(max_epochs=None).max_epochs == 400
    assert make_job(max_epochs=None, max_steps=3).max_epochs is None
    assert fit(make_job(max_epochs=0)).steps == 0


def test_checkpoints_of_another_run_are_refused_by_name(make_job: MakeJob, tmp_path: Path) -> None:
    fit(in_folder(make_job(max_epochs=1), tmp_path))
    with pytest.raises(OutputExists, match="resume=True"):
        fit(in_folder(make_job(max_epochs=2), tmp_path))
    for change, name in (({"seed": 1}, "seed"), ({"batch_size": 20}, "batch_size")):
        with pytest.raises(CheckpointError, match=f"{name}: the checkpoint has"):
            fit(in_folder(make_job(**change), tmp_path, resume=True))
    with pytest.raises(CheckpointError, match="training_plan"):
        fit(in_folder(make_job(plan={"lr": 0.5}), tmp_path, resume=True))


def test_a_seed_decides_everything_and_global_noise_nothing(make_job: MakeJob) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit(make_job(max_epochs=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same_run(fit(make_job(max_epochs=1)), first)
    other = fit(make_job(max_epochs=1, seed=3))
    assert other.history["train_loss"] != first.history["train_loss"]


@pytest.mark.parametrize(("kernel", "n_torch"), [("numba", 1), ("torch", 2)])
def test_loops_have_the_threads_while_they_train(
    make_job: MakeJob, kernel: str, n_torch: int
) -> None:
    class Watch(pl.Callback):
        seen: ClassVar[set[tuple[int, int]]] = set()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seen.add((torch.get_num_threads(), threads.n_threads()))

    job, watch = make_job(max_epochs=1), Watch()
    job.module.kernel = kernel
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(job, extras=TrainerExtras(callbacks=(watch,)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)
    assert watch.seen == {(n_torch, 2)}


def test_noise_is_given_back(make_job: MakeJob) -> None:
    job = make_job(max_epochs=1)
    fit(job)
    assert not job.module.noise.is_bound
    torch.testing.assert_close(fit(job).state_dict, dict(job.module.state_dict()))


EARLY = EarlyStoppingConfig(patience=2, min_delta=1e9)


@pytest.mark.parametrize("every", [1, 2])
def test_early_stopping_counts_validations(make_job: MakeJob, every: int) -> None:
    job = make_job(early_stopping=EARLY, max_epochs=20, check_val_every_n_epoch=every)
    result = fit(job)
    assert result.stopped_early
    # The first validation improves on nothing; then patience runs out.
    assert result.epochs == 3 * every
    assert len(result.history["elbo_validation"]) == 3


def test_early_stopping_waits_for_its_warm_up(make_job: MakeJob) -> None:
    config = replace(EARLY, warmup_epochs=4)
    assert fit(make_job(early_stopping=config, max_epochs=20)).epochs == 7


def test_early_stopping_survives_death(make_job: MakeJob, tmp_path: Path) -> None:
    settings = {"early_stopping": replace(EARLY, warmup_epochs=1), "max_epochs": 9}
    whole = fit(make_job(**settings))
    saving = settings | {"checkpoint_every_n_steps": 1}
    for step in (6, 12):
        job = in_folder(make_job(**saving), tmp_path, resume=True)
        with pytest.raises(DieAt.Died):
            fit(job, extras=TrainerExtras(callbacks=(DieAt(step),)))
    resumed = fit(in_folder(make_job(**settings), tmp_path, resume=True))
    assert_same_run(resumed, whole)
    assert resumed.stopped_early
    # Resuming what has been stopped early trains no further.
    assert_same_run(fit(in_folder(make_job(**settings), tmp_path, resume=True)), whole)


def test_early_stopping_needs_validation_cells(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match="no validation cells"):
        make_job(early_stopping=EARLY, split=SplitConfig(train_size=1.0))


def test_the_best_checkpoint_stays(make_job: MakeJob, tmp_path: Path) -> None:
    settings = {"check_val_every_n_epoch": 1, "checkpoint_every_s": 0, "keep_checkpoints": 1}
    result = fit(in_folder(make_job(plan={"lr": 0.3}, max_epochs=5, **settings), tmp_path))
    values = dict(result.history["elbo_validation"])
    best = min(values, key=values.__getitem__)
    kept = [c.cursor.epoch - 1 for c in list_checkpoints(tmp_path)]
    assert kept == sorted({best, 4})


def test_a_loss_that_is_no_number_names_the_cell(make_job: MakeJob) -> None:
    job = make_job(max_epochs=2, log_every_n_steps=4)
    row = first_rows(job)[3]
    plain = job.module.loss

    def spoiled(tensors: CellBatch, *args: object, **kwargs: object) -> LossOutput:
        output = plain(tensors, *args, **kwargs)
        harm_n = torch.from_numpy(np.where(tensors.rows == row, np.nan, 0.0))
        losses_n = output.reconstruction_loss["reconstruction_loss"] + harm_n
        return LossOutput(output.loss + harm_n.sum(), losses_n, output.kl_local)

    job.module.loss = spoiled
    with pytest.raises(TrainingFailed, match=rf"the loss of row {row} is not finite, .*lower"):
        fit(job)


def test_counts_beyond_all_numbers_name_the_cell(make_job: MakeJob, toy_cells: ad.AnnData) -> None:
    row = first_rows(make_job())[3]
    counts_ng = toy_cells.X.toarray()
    counts_ng[row] = 3e38
    adata = ad.AnnData(counts_ng, obs=toy_cells.obs)
    job = toy_job(adata)
    job = replace(job, source=replace(job.source, check_counts=False))
    with pytest.raises(TrainingFailed, match=rf"the loss of row {row} is not finite"):
        fit(job)


def test_no_checkpoint_holds_broken_weights(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(plan={"lr": 1e30}, checkpoint_every_n_steps=1, log_every_n_steps=10)
    with pytest.raises(TrainingFailed, match="broken the weights"):
        fit(in_folder(job, tmp_path))
    for checkpoint in list_checkpoints(tmp_path):
        assert all_finite(checkpoint.load()["module"].values())


class Interrupt(pl.Callback):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, signum: int) -> None:
        self.step, self.signum = step, signum

    def on_train_batch_start(self, trainer: pl.Trainer, plan: pl.LightningModule, *_: object):
        if plan.cursor.global_step == self.step - 1:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("step", [1, 4, 5, 8, 15])
def test_sigterm_means_checkpoint_then_stop(make_job: MakeJob, tmp_path: Path, step: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    extras = TrainerExtras(callbacks=(Interrupt(step, signal.SIGTERM),))
    stopped = fit(in_folder(make_job(), tmp_path), extras=extras)
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.steps == step
    assert stopped.interrupted == (step < STEPS * EPOCHS)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.cursor.global_step == step
    assert_same_run(fit(in_folder(make_job(), tmp_path, resume=True)), fit(make_job()))


def test_ctrl_c_reaches_the_caller(make_job: MakeJob) -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(make_job(), extras=TrainerExtras(callbacks=(Interrupt(2, signal.SIGINT),)))
    finally:
        signal.signal(signal.SIGINT, before)


def test_progress_grows_to_the_end(make_job: MakeJob) -> None:
    seen: list[TrainProgress] = []
    fit(make_job(log_every_n_steps=2, check_val_every_n_epoch=1), on_progress=seen.append)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert [p.step for p in seen if not p.epoch_ended] == [2, 4, 6, 8, 10, 12, 14]
    assert {"elbo_train", "elbo_validation"} <= set(seen[-1].metrics)


def test_a_plateau_reduces_the_learning_rate(make_job: MakeJob) -> None:
    result = fit(make_job(plan=REDUCE_LR))
    rates = [value for _, value in result.history["lr-Adam"]]
    assert rates == pytest.approx([1e-3, 6e-4, 3.6e-4])


class Recorder(NullTracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        self.told.append((step, dict(values)))


def test_the_tracker_hears_of_steps_and_of_epochs(make_job: MakeJob) -> None:
    tracker = Recorder()
    result = fit(make_job(log_every_n_steps=5, check_val_every_n_epoch=1), tracker=tracker)
    by_step = [(step, told) for step, told in tracker.told if "train_loss_step" in told]
    by_epoch = [(epoch, told) for epoch, told in tracker.told if "train_loss" in told]
    assert [step for step, _ in by_step] == [5, 10, 15]
    assert {"kl_weight", "learning_rate", "cells_per_s", "wait_fraction"} < set(by_step[0][1])
    assert [epoch for epoch, _ in by_epoch] == [0, 1, 2]
    for epoch, told in by_epoch:
        assert told == {k: v[epoch][1] for k, v in result.history.items() if k != "kl_weight"}
    # The five steps of an epoch have the mean that the epoch has.
    for (_, steps), (_, epoch) in zip(by_step, by_epoch, strict=True):
        assert steps["train_loss_step"] == pytest.approx(epoch["train_loss"], rel=1e-5)


@pytest.mark.parametrize("change", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 1e-3}])
def test_other_arithmetic_ends_near(make_job: MakeJob, change: dict) -> None:
    plain, changed = (
        fit(make_job(max_epochs=1, **how)).history["elbo_train"][0][1] for how in ({}, change)
    )
    assert changed == pytest.approx(plain, rel=1e-2)
    assert changed != plain


def test_a_module_in_eval_mode_is_trained_in_train_mode(make_job: MakeJob) -> None:
    job = make_job()
    job.module.eval()
    result = fit(job)
    assert result.steps > 0
    for block in ("z_encoder.encoder", "decoder.px_decoder"):
        tracked = result.state_dict[f"{block}.fc_layers.Layer 0.1.num_batches_tracked"]
        assert int(tracked) == result.steps, block
