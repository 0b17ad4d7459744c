"""What happens between the steps: keeping count, looking at the loss, checkpoints, stopping."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from torch import Tensor

from scvi_dist.batch import CellBatch
from scvi_dist.errors import ConfigError, TrainingFailed, did_you_mean
from scvi_dist.train.configs import NEVER, EarlyStoppingConfig, TrainConfig, World
from scvi_dist.train.diagnosis import all_finite, failure_message
from scvi_dist.train.metrics import HELD_STEPS, without_graph
from scvi_dist.train.training_plan import TrainingPlan


class StopTraining(Exception):
    """Leaves Lightning's loop at once; nothing has gone wrong."""


class KeepCount(Callback):
    """Moves the plan's cursor after each step; comes before all callbacks that read it."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, plan: Any, outputs: Any, batch: CellBatch, batch_idx: int
    ) -> None:
        plan.advance(batch)


class KeepConstraints(Callback):
    """Brings parameters back to where they have to be, after each step and on every rank.

    A module that has such parameters has a method ``constrain``. Ranks have equal parameters after
    a step, so they stay equal.
    """

    def __init__(self) -> None:
        self._constrain: Callable[[], None] | None = None

    def on_train_start(self, trainer: pl.Trainer, plan: Any) -> None:
        # Asked once: a module takes long to say that it has no such attribute.
        self._constrain = getattr(plan.module, "constrain", None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, plan: Any, outputs: Any, batch: CellBatch, batch_idx: int
    ) -> None:
        if self._constrain is not None:
            self._constrain()


class WatchLoss(Callback):
    """Raises when the loss is no number, and says which cells brought it about.

    Losses stay on the device; every ``every`` steps their sum is looked at, by all ranks together,
    so that all of them stop.

    Attributes
    ----------
    mean_loss
        Mean over the cells of the steps since the last look.
    """

    def __init__(self, world: World, every: int) -> None:
        self.world = world
        self.every = every
        self.mean_loss = float("nan")
        self._sum: Tensor | None = None
        self._held: list[tuple[Tensor, int]] = []
        self._n_cells = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, plan: Any, outputs: Any, batch: CellBatch, batch_idx: int
    ) -> None:
        n_cells = batch.n_global
        self._held.append((without_graph(outputs["loss"]), n_cells))
        self._n_cells += n_cells
        if plan.cursor.global_step % self.every == 0:
            self.look(plan)
        elif len(self._held) == HELD_STEPS:
            self._fold()

    def _fold(self) -> None:
        """Add what is held, step by step, so that it does not matter when."""
        for loss, n_cells in self._held:
            # Lightning's loss carries the factor that makes ranks weigh what their cells weigh.
            weight = n_cells / self.world.size
            self._sum = loss * weight if self._sum is None else self._sum.add_(loss, alpha=weight)
        self._held = []

    def look(self, plan: TrainingPlan) -> None:
        """Raise if a loss since the last look is not finite; all ranks have to call it.

        Raises
        ------
        TrainingFailed
            Names step, rows and rank.
        """
        self._fold()
        if self._sum is None:
            return
        total = plan.reduce(self._sum.reshape(1)).item()
        if not np.isfinite(total):
            raise TrainingFailed(self._message(plan))
        self.mean_loss = total / max(self._n_cells, 1)
        plan.recent.clear()
        self._sum, self._n_cells = None, 0

    def look_at_weights(self, plan: TrainingPlan) -> None:
        """Raise if the last step has broken the weights, which its loss does not tell.

        Raises
        ------
        TrainingFailed
            Names step and rows.
        """
        if not all_finite(plan.module.parameters()):
            step, cells = plan.cursor.global_step, plan.recent.last_cells
            cells = f"the weights are broken by the step with {cells}"
            rank = plan.world.rank
            raise TrainingFailed(failure_message(step, plan.cursor.epoch, rank, cells, plan.where))

    def _message(self, plan: TrainingPlan) -> str:
        mine = plan.recent.first_bad()
        found = [mine]
        if self.world.size > 1:
            found = [None] * self.world.size
            dist.all_gather_object(found, mine)
        bad = [(*seen, rank) for rank, seen in enumerate(found) if seen is not None]
        step, cells, rank = min(bad) if bad else (plan.cursor.global_step, "some cells", 0)
        return failure_message(step, plan.cursor.epoch, rank, cells, plan.where)


class EarlyStop(EarlyStopping):
    """Lightning's early stopping, with scvi-tools' warm-up and a state that is plain numbers."""

    def __init__(self, config: EarlyStoppingConfig) -> None:
        super().__init__(
            monitor=config.monitor,
            min_delta=config.min_delta,
            patience=config.patience,
            mode=config.mode,
            strict=False,
        )
        self.warmup_epochs = config.warmup_epochs
        self.n_checks = 0

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        self.n_checks += 1
        if self.n_checks <= self.warmup_epochs:
            return False, None
        return super()._evaluate_stopping_criteria(current)

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        plan: Any = trainer.lightning_module
        # Lightning keeps old values: an epoch without validation must not count again.
        if self.monitor in plan.epoch_metrics:
            super()._run_early_stopping_check(trainer)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state | {"best_score": float(self.best_score), "n_checks": self.n_checks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        self.n_checks = state.pop("n_checks")
        # The patience asked for now, not the one of back then.
        state["patience"] = self.patience
        state["best_score"] = torch.tensor(state["best_score"])
        super().load_state_dict(state)


class StopRequest(Callback):
    """Whether someone wants the run to stop, or to write a checkpoint.

    Parameters
    ----------
    asked
        Whether to stop, besides a SIGTERM to this process.
    save_asked
        Whether to write a checkpoint.
    """

    def __init__(
        self,
        asked: Callable[[], bool] | None = None,
        save_asked: Callable[[], bool] | None = None,
    ) -> None:
        self.received = False
        self._asked, self._save_asked = asked, save_asked

    def on_train_start(self, trainer: pl.Trainer, plan: Any) -> None:
        # Lightning's own handler talks to other ranks from inside the signal, which can deadlock;
        # it is replaced while steps are made. Only the main thread may do that.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: Any) -> None:
        self.received = True

    def agreed(self, plan: TrainingPlan, save_due: bool) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, or wants a checkpoint; all ranks have to call it."""
        stop = self.received or (self._asked is not None and self._asked())
        save = save_due or (self._save_asked is not None and self._save_asked())
        if plan.world.size == 1:
            return stop, save
        wishes = torch.tensor([float(stop), float(save)], device=plan.device)
        stops, saves = plan.reduce(wishes).tolist()
        return stops > 0, saves > 0


@contextmanager
def handler_restored(signum: int) -> Iterator[None]:
    """Whatever is done to the handler of a signal inside is undone at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signum)
    try:
        yield
    finally:
        signal.signal(signum, previous)


class BestScores:
    """Which epochs are among the best so far, by the metric that was asked for.

    Parameters
    ----------
    config
        ``checkpoint_monitor`` names the metric; without it no epoch is written for being good.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._monitor = config.checkpoint_monitor
        self._n = config.keep_best_checkpoints
        self._sign = 1.0 if config.checkpoint_mode == "min" else -1.0
        self._scores: list[float] = []

    def add(self, metrics: Mapping[str, float]) -> bool:
        """Take in the means of an epoch; whether it is one of the best.

        Raises
        ------
        ConfigError
            There is no such metric.
        """
        if self._monitor is None:
            return False
        if self._monitor not in metrics:
            if "validation" in self._monitor and "validation_loss" not in metrics:
                return False  # An epoch that was not validated.
            raise ConfigError(
                f"train.checkpoint_monitor is {self._monitor!r}, which is no metric of this "
                f"model; {did_you_mean(self._monitor, metrics)}"
            )
        score = self._sign * metrics[self._monitor]
        self._scores = sorted([*self._scores, score])[: self._n]
        return score in self._scores


class SaveCheckpoints(Checkpoint):
    """Writes checkpoints: inside an epoch, at its end, and when asked to stop.

    All ranks take part, because sums are reduced over ranks; rank 0 writes. Derives from
    Lightning's ``Checkpoint``, so that it comes after early stopping has decided.

    Parameters
    ----------
    save
        Writes a checkpoint of this moment; called by every rank.
    clock
        Seconds; only differences count.
    """

    def __init__(
        self,
        config: TrainConfig,
        max_epochs: int | None,
        save: Callable[[], None],
        watch: WatchLoss,
        stop: StopRequest,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.max_epochs = max_epochs
        self.interrupted = False
        self._save, self._watch, self._stop, self._clock = save, watch, stop, clock
        self._saved_s = clock()
        self.best = BestScores(config)

    def on_train_batch_end(
        self, trainer: pl.Trainer, plan: Any, outputs: Any, batch: CellBatch, batch_idx: int
    ) -> None:
        if plan.cursor.position >= plan.n_train:
            return  # The epoch is over: its metrics belong into the checkpoint.
        step = plan.cursor.global_step
        is_last = step == self.config.max_steps
        stop, save = (False, False) if is_last else self._look(plan, step)
        if stop:
            self.interrupted = True
            self._write(plan)
            raise StopTraining
        if is_last or save or step % (self.config.checkpoint_every_n_steps or NEVER) == 0:
            self._write(plan)

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: Any) -> None:
        if plan.cursor.position:
            return  # Ended inside the epoch by max_steps; written already.
        step = plan.cursor.global_step
        stop, save = self._stop.agreed(plan, self._is_old(plan, self.config.checkpoint_every_s))
        is_last = plan.cursor.epoch == self.max_epochs or step == self.config.max_steps
        is_due = save or step % (self.config.checkpoint_every_n_steps or NEVER) == 0
        # Not left out where another reason is enough: it keeps count.
        is_due = self.best.add(plan.epoch_metrics) or is_due
        if is_last or is_due or trainer.should_stop or stop:
            self._write(plan)
        if stop and not (is_last or trainer.should_stop):
            self.interrupted = True
            raise StopTraining

    def _look(self, plan: TrainingPlan, step: int) -> tuple[bool, bool]:
        """Alone we look at each step; several ranks only where they look at the loss anyway."""
        if plan.world.size > 1 and step % self.config.log_every_n_steps:
            return False, False
        return self._stop.agreed(plan, self._is_old(plan, self.config.checkpoint_within_s))

    def _is_old(self, plan: TrainingPlan, limit_s: float) -> bool:
        """Whether the last checkpoint is that old; rank 0's clock decides for all."""
        return plan.world.is_first and self._clock() - self._saved_s >= limit_s

    def _write(self, plan: TrainingPlan) -> None:
        self._watch.look(plan)
        self._save()
        self._saved_s = self._clock()
