"""Tells the tracker and whoever watches how training goes."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import psutil
import torch
from lightning.pytorch.callbacks import Callback

from scvi_dist.batch import CellBatch
from scvi_dist.tracking import Tracker
from scvi_dist.train.callbacks import WatchLoss
from scvi_dist.train.fit_job import Recovery
from scvi_dist.train.progress import OnProgress, TrainProgress
from scvi_dist.train.speed import parallel_efficiency
from scvi_dist.train.training_plan import TrainingPlan


class Report(Callback):
    """Records numbers of the last steps every so many steps, and the means of each epoch.

    Comes after :class:`WatchLoss`, whose mean loss it reports. Epochs are told by the plan, since
    Lightning calls ordinary callbacks before an epoch's metrics exist.

    Parameters
    ----------
    waited
        Seconds that this rank has waited for data so far.
    recovery
        Set where this process goes on for others that have ended.
    """

    def __init__(
        self,
        watch: WatchLoss,
        tracker: Tracker,
        on_progress: OnProgress | None,
        max_epochs: int | None,
        max_steps: int | None,
        steps_per_epoch: int,
        waited: Callable[[], float],
        recovery: Recovery | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch, self._tracker, self._on_progress = watch, tracker, on_progress
        self._max_epochs, self._max_steps = max_epochs, max_steps
        self._steps_per_epoch = steps_per_epoch
        self._waited, self._recovery, self._clock = waited, recovery, clock
        self._start_s = clock()
        self._waited_before = 0.0
        self._n_cells = 0

    @property
    def cells_per_s(self) -> float:
        """Cells trained on a second, over all ranks and all that happens between steps."""
        return self._n_cells / max(self._clock() - self._start_s, 1e-9)

    @property
    def wait_fraction(self) -> float:
        """Share of the time in which this rank waited for data."""
        waited = self._waited() - self._waited_before
        return min(1.0, waited / max(self._clock() - self._start_s, 1e-9))

    def on_train_start(self, trainer: pl.Trainer, plan: Any) -> None:
        self._start_s, self._waited_before = self._clock(), self._waited()

    def on_train_batch_end(
        self, trainer: pl.Trainer, plan: Any, outputs: Any, batch: CellBatch, batch_idx: int
    ) -> None:
        self._n_cells += batch.n_global
        step = plan.cursor.global_step
        if self._recovery is not None:
            self._tell_recovery(plan, batch, self._recovery)
        if step % self._watch.every:
            return
        weight = plan.last_kl_weight
        if weight is not None:
            # Indexed from 0 and counted as in scvi-tools: 9, 19, … with every tenth step.
            plan.history.add({"kl_weight": weight}, step - 1)
        mean_loss = {"train_loss_step": self._watch.mean_loss}
        if plan.config.on_step:
            plan.history.add(mean_loss, step - 1)
        metrics = mean_loss | self._speed() | self._scaling(trainer, plan)
        metrics |= {} if weight is None else {"kl_weight": weight}
        metrics["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        self._tracker.log_metrics(metrics, step)
        self._tell(plan, batch.step + 1, metrics, epoch_ended=False)

    def on_epoch(self, plan: TrainingPlan, metrics: Mapping[str, float], epoch: int) -> None:
        """Record the means of an epoch; the plan calls this."""
        self._tracker.log_metrics(metrics, epoch)
        self._tell(plan, 0, metrics, epoch_ended=True)

    def _tell_recovery(self, plan: TrainingPlan, batch: CellBatch, recovery: Recovery) -> None:
        """Say how long there was no training, once there is some again."""
        lost_s = recovery.lost_s + self._clock() - recovery.asked_s
        self._recovery = None
        metrics = {"perf/recovery_s": lost_s, "perf/workers": float(plan.world.size)}
        self._tracker.log_metrics(metrics, plan.cursor.global_step)
        self._tell(plan, batch.step + 1, metrics, epoch_ended=False, recovery_s=lost_s)

    def _speed(self) -> dict[str, float]:
        return {"cells_per_s": self.cells_per_s, "wait_fraction": self.wait_fraction}

    def _scaling(self, trainer: pl.Trainer, plan: TrainingPlan) -> dict[str, float]:
        """What each of several ranks achieves."""
        if plan.world.size == 1:
            return {}
        metrics = {"cells_per_s_per_rank": self.cells_per_s / plan.world.size}
        efficiency = parallel_efficiency(trainer.strategy.model, self.wait_fraction)
        return metrics if efficiency is None else metrics | {"parallel_efficiency": efficiency}

    def _tell(
        self,
        plan: TrainingPlan,
        epoch_step: int,
        metrics: Mapping[str, float],
        epoch_ended: bool,
        recovery_s: float | None = None,
    ) -> None:
        if self._on_progress is None:
            return
        self._on_progress(
            TrainProgress(
                epoch=plan.cursor.epoch,
                max_epochs=self._max_epochs,
                step=plan.cursor.global_step,
                max_steps=self._max_steps,
                steps_per_epoch=self._steps_per_epoch,
                epoch_step=epoch_step,
                metrics=dict(metrics),
                memory_bytes=psutil.Process().memory_info().rss,
                gpu_bytes=_gpu_bytes(),
                epoch_ended=epoch_ended,
                workers=plan.world.size,
                recovery_s=recovery_s,
                **self._speed(),
            )
        )


def _gpu_bytes() -> int:
    return torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else 0
