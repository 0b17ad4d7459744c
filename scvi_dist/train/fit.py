"""The whole training loop of one process; Ray Train's workers run the same."""

import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback
from torch import nn

from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.read_plan import PlanConfig
from scvi_dist.kernels import threads
from scvi_dist.nn.sync_batch_norm import Padding, convert_batch_norm
from scvi_dist.tracking import NullTracker, Tracker
from scvi_dist.tracking.log_files import library_log, only_in_files, rank_log
from scvi_dist.train.callbacks import (
    EarlyStop,
    KeepConstraints,
    KeepCount,
    SaveCheckpoints,
    StopRequest,
    StopTraining,
    WatchLoss,
    handler_restored,
)
from scvi_dist.train.checkpoint import Checkpoint, prune_checkpoints, write_checkpoint
from scvi_dist.train.compression import CompressGradients
from scvi_dist.train.configs import NEVER, World
from scvi_dist.train.feed import EpochFeed, ValidationFeed
from scvi_dist.train.fit_job import FitJob, FitResult, TrainerExtras
from scvi_dist.train.last_good import KeepGoodWeights
from scvi_dist.train.process_group import GivenProcessGroup
from scvi_dist.train.progress import OnProgress
from scvi_dist.train.report import Report
from scvi_dist.train.run_state import (
    capture,
    check_version,
    restore_plan,
    restore_trainer,
    set_counters,
)
from scvi_dist.train.start import READ_PLAN, common_start
from scvi_dist.train.step_loop import StepLoop
from scvi_dist.train.training_plan import TrainingPlan
from scvi_dist.train.writer_claim import WriterClaim


def fit(
    job: FitJob,
    world: World | None = None,
    tracker: Tracker | None = None,
    on_progress: OnProgress | None = None,
    extras: TrainerExtras | None = None,
) -> FitResult:
    """Train ``job.module`` in place.

    The same seed gives the same weights for any number of ranks, and for a run that was killed and
    resumed, to float tolerance. torch's global random numbers are neither used nor changed.

    Parameters
    ----------
    world
        Which of how many ranks this is; with several, ``torch.distributed`` is initialised.
    tracker
        Where metrics go; ``None``: rank 0 attaches to ``job.tracking``.
    on_progress
        Called by rank 0 every ``log_every_n_steps`` steps and after each epoch.

    Raises
    ------
    OutputExists
        If ``run_dir`` has checkpoints and ``resume`` is false.
    CheckpointError
        If the checkpoint to resume from belongs to another run.
    TrainingFailed
        If the loss is no number.
    """
    world, extras = world or World(), extras or TrainerExtras()
    start = common_start(job, world)
    data = CellDataModule(
        job.source,
        job.split,
        job.train.batch_size,
        job.train.seed,
        job.loader,
        rank=world.rank,
        world=world.size,
        engine=extras.engine,
        # Positions mean nothing in a plan with other windows, which other ranks would suggest.
        train_plan=PlanConfig(**start.facts[READ_PLAN]) if start else None,
        labelled=job.labelled,
        sampling=job.sampling,
        plan_world=extras.plan_world,
    )
    attached = tracker is None
    if tracker is None:
        tracker = Tracker.attach(job.tracking) if world.is_first else NullTracker()
    try:
        with (
            library_log(rank_log(job.run_dir, world.rank)),
            _quiet(),
            handler_restored(signal.SIGTERM),
        ):
            run = _Run(job, world, data, tracker, on_progress, extras)
            return run.train(start)
    finally:
        data.close()
        if attached:
            tracker.finish()


class _Run:
    """The parts of one run, put together."""

    def __init__(
        self,
        job: FitJob,
        world: World,
        data: CellDataModule,
        tracker: Tracker,
        on_progress: OnProgress | None,
        extras: TrainerExtras,
    ) -> None:
        self.job, self.world, self.data, self.extras = job, world, data, extras
        self.tracker = tracker
        config = job.train
        self.facts = job.facts(data.train_plan.facts() | data.labelled_facts)
        self.plan = self._new_plan()
        self.watch = WatchLoss(world, config.log_every_n_steps)
        self.stop = StopRequest(extras.stop_asked, extras.save_asked)
        self.report = Report(
            self.watch,
            tracker,
            on_progress if world.is_first else None,
            job.max_epochs,
            config.max_steps,
            data.train_plan.n_steps,
            lambda: data.wait_s,
            extras.recovery,
        )
        self.plan.on_epoch = self.report.on_epoch
        self.plan.monitors_learning_rate = config.learning_rate_monitor
        self.early_stop = EarlyStop(config.early_stopping) if config.early_stopping else None
        self.saver = SaveCheckpoints(
            config, job.max_epochs, self._save, self.watch, self.stop, time.monotonic
        )
        self.checkpoint: Checkpoint | None = None
        self.claim: WriterClaim | None = None
        if world.is_first and job.run_dir is not None:
            self.claim = WriterClaim(job.run_dir)

    def train(self, start: Checkpoint | None) -> FitResult:
        """Train from a checkpoint, or from the start, to the end."""
        stopped_early = False
        state: dict[str, Any] | None = None
        if start is not None:
            start.verify_facts(self.facts)
            state = start.load()
            check_version(state)
            restore_plan(self.plan, state, start.cursor)
            self.checkpoint, stopped_early = start, state["stopped_early"]
        if not stopped_early and not self._is_over():
            trainer = self._new_trainer(state)
            self._run_loop(trainer)
            stopped_early = bool(trainer.should_stop) and self.early_stop is not None
        return self._result(stopped_early)

    def _is_over(self) -> bool:
        cursor = self.plan.cursor
        epochs, steps = self.job.max_epochs, self.job.train.max_steps
        return (epochs is not None and cursor.epoch >= epochs) or (
            steps is not None and cursor.global_step >= steps
        )

    def _run_loop(self, trainer: pl.Trainer) -> None:
        data = self.data
        feed = EpochFeed(data.train_loader, self.plan, data.labelled_loader)
        validation = None
        if data.validation_loader is not None:
            validation = ValidationFeed(data.validation_loader, data.labelled_validation_loader)
        # Lightning leaves modes as they are, and a model that has been asked questions is in eval
        # mode: dropout would be off, and batch norms would never learn their statistics.
        self.plan.train()
        try:
            with threads.for_loops(_computes_in_loops(trainer, self.job.module)):
                trainer.fit(self.plan, feed, validation)
        except StopTraining:
            return
        except SystemExit as error:
            # Lightning turns Ctrl-C into the end of the process, which is not for it to decide.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        finally:
            self.plan.unbind_noise()

    def _new_plan(self) -> TrainingPlan:
        synced = self.world.size > 1 and self.job.train.sync_batchnorm
        module_name, class_name = self.job.plan.plan_class.split(":")
        plan_class: type[TrainingPlan] = getattr(import_module(module_name), class_name)
        padding = Padding()
        plan = plan_class(
            self.job.module,
            self.job.plan,
            n_train=self.job.split.train.n,
            n_validation=self.job.split.validation.n,
            seed=self.job.train.seed,
            world=self.world,
            where=self.job.source.locator.redacted_url,
            n_recent=self.job.train.log_every_n_steps,
            padding=padding,
            fused=self.job.train.precision == "32-true",
        )
        if synced:
            # The plan's and not the module's alone: an adversary has batch norms of its own.
            convert_batch_norm(plan, padding)
        return plan

    def _new_trainer(self, state: dict[str, Any] | None) -> pl.Trainer:
        config, every = self.job.train, self.job.check_val_every_n_epoch
        strategy = self.extras.strategy
        if strategy is None and self.world.size > 1:
            strategy = GivenProcessGroup(self.world, forward_sync_buffers=not config.sync_batchnorm)
        counting = [KeepCount(), KeepConstraints()]
        ours = [_Restore(self, state), *counting, self.watch, self.stop, self.report]
        if not self.extras.is_worker:
            ours.append(KeepGoodWeights(self.job.module, config.log_every_n_steps))
        if self.extras.gradient_compression is not None and self.world.size > 1:
            ours.append(CompressGradients(self.extras.gradient_compression))
        stopping = [self.early_stop] if self.early_stop else []
        trainer = pl.Trainer(
            accelerator=config.accelerator,
            devices=1,
            strategy=strategy or "auto",
            plugins=list(self.extras.plugins) or None,
            precision=config.precision,
            max_epochs=-1 if self.job.max_epochs is None else self.job.max_epochs,
            max_steps=-1 if config.max_steps is None else config.max_steps,
            gradient_clip_val=config.gradient_clip_val,
            gradient_clip_algorithm=config.gradient_clip_algorithm,
            check_val_every_n_epoch=every or NEVER,
            # An epoch that is resumed is shorter than the others: its length is asked for anew.
            reload_dataloaders_every_n_epochs=1,
            callbacks=[*ours, *self.extras.callbacks, *stopping, self.saver],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=list(self.extras.loggers) or False,
            log_every_n_steps=config.log_every_n_steps,
            enable_checkpointing=None,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loop = StepLoop(trainer, [*ours, *stopping, self.saver])
        trainer.fit_loop.epoch_loop = loop
        if self.world.size > 1:
            # Lightning would wait for the device in every step to pass on SIGTERM; we look at it
            # where we look at the loss.
            loop._broadcast_sigterm_tensor = _nothing
        return trainer

    def _save(self) -> None:
        """Write a checkpoint of this moment; all ranks take part."""
        if self.job.run_dir is None:
            return
        self.watch.look_at_weights(self.plan)
        state = capture(self.plan.trainer, self.plan, self.early_stop)
        if self.claim is None:
            return
        self.claim.verify()
        # Training goes on from here: what came before is not recorded a second time.
        self.tracker.secure()
        at_epoch_end = self.plan.cursor.position == 0
        self.checkpoint = write_checkpoint(
            self.job.run_dir,
            state,
            self.plan.cursor,
            self.facts | {READ_PLAN: asdict(self.data.train_plan.config)},
            self.plan.epoch_metrics if at_epoch_end else {},
            {"schema.json": self.job.source.schema.to_json()},
        )
        config = self.job.train
        prune_checkpoints(
            self.job.run_dir,
            config.keep_checkpoints,
            *config.best_by,
            keep_best=config.keep_best_checkpoints,
        )
        if self.extras.on_saved is not None:
            self.extras.on_saved()

    def _result(self, stopped_early: bool) -> FitResult:
        weights = self.plan.module.state_dict()
        return FitResult(
            history=self.plan.history.points,
            state_dict={k: v.detach().cpu().clone() for k, v in weights.items()},
            epochs=self.plan.cursor.epoch,
            steps=self.plan.cursor.global_step,
            stopped_early=stopped_early,
            interrupted=self.saver.interrupted,
            cells_per_s=self.report.cells_per_s,
            wait_fraction=self.report.wait_fraction,
            checkpoint=str(self.checkpoint.path) if self.checkpoint else None,
        )


class _Restore(Callback):
    """Brings back what can only be brought back once the trainer has made the optimizer."""

    def __init__(self, run: _Run, state: dict[str, Any] | None) -> None:
        self._run, self._state = run, state

    def on_fit_start(self, trainer: pl.Trainer, plan: Any) -> None:
        if self._state is not None:
            restore_trainer(trainer, plan, self._run.early_stop, self._state)
            set_counters(trainer, plan.cursor)
            self._state = None


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines and no advice from Lightning, but in the log of a run."""
    with (
        only_in_files("lightning.pytorch", "lightning.fabric"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated")
        yield


def _nothing(*_: Any) -> None:
    """Stands in for a method that is not wanted."""


def _computes_in_loops(trainer: pl.Trainer, module: nn.Module) -> bool:
    """Whether compiled loops do most of the work of a step."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    return on_cpu and getattr(module, "kernel", None) == "numba"
