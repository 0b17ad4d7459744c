"""The loop over the steps of an epoch: Lightning's, without what these runs have no use for."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from scvi_dist.batch import CellBatch
from scvi_dist.train.training_plan import TrainingPlan

AFTER_STEP = "on_train_batch_end"
STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    AFTER_STEP,
)
"""What Lightning calls in each step, of callbacks and of the plan."""
PLAN_METHODS = (
    *STEP_HOOKS,
    "on_before_batch_transfer",
    "on_after_batch_transfer",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
)
"""Methods of a plan that :class:`StepLoop` leaves out where they are Lightning's own."""


class StepLoop(_TrainingEpochLoop):
    """Steps without hooks that nobody listens to, results that nobody logs, and profiling.

    Lightning's own loop spends about a millisecond of a CPU around each step, a tenth of a step of
    a minibatch of 128 cells. Here a step is what it has to be: minibatch, loss, gradient,
    clipping, optimizer, our callbacks. Lightning's counters, validation and stopping rules are as
    ever, and its own loop makes the steps where something wants more of it: a callback of the
    user's that looks at steps, an optimizer or a plan of the user's, a scaler of gradients,
    accumulation, a strategy that is not one device or DDP.

    Parameters
    ----------
    trainer
        Whose ``fit_loop.epoch_loop`` it takes the place of.
    ours
        Callbacks that in steps only have ``on_train_batch_end``.
    """

    def __init__(self, trainer: pl.Trainer, ours: Sequence[Callback]) -> None:
        replaced = trainer.fit_loop.epoch_loop
        super().__init__(trainer, min_steps=replaced.min_steps, max_steps=replaced.max_steps)
        self._ours = tuple(ours)
        self._after_step: list[Callable[..., None]] = []
        self._clips = self._transfers = True
        self._training_step: Callable[[CellBatch, int], Any] = trainer.strategy.training_step

    @property
    def is_direct(self) -> bool:
        """Whether the next epoch's steps are made without Lightning's own loop."""
        trainer, plan = self.trainer, self.trainer.lightning_module
        foreign = [c for c in trainer.callbacks if c not in self._ours]
        return (
            not self.restarting
            and plan.automatic_optimization
            and trainer.accumulate_grad_batches == 1
            and not trainer.lr_scheduler_configs
            and getattr(trainer.precision_plugin, "scaler", None) is None
            # One that a user made may want to compute the loss itself, and more than once.
            and plan.config.optimizer != "Custom"
            and _is_plain(trainer.strategy)
            and not any(_has_own(c, Callback, STEP_HOOKS) for c in foreign)
            and not _has_own(plan, pl.LightningModule, PLAN_METHODS)
        )

    def run(self, data_fetcher: Any) -> None:
        if not self.is_direct:
            super().run(data_fetcher)
            return
        self._after_step = [
            getattr(callback, AFTER_STEP)
            for callback in self.trainer.callbacks
            if _has_own(callback, Callback, (AFTER_STEP,))
        ]
        plan = self.trainer.lightning_module
        clips_itself = _has_own(plan, pl.LightningModule, ("configure_gradient_clipping",))
        self._clips = clips_itself or self.trainer.gradient_clip_val is not None
        # Minibatches come from the loaders on a CPU: there the plan leaves them as they are.
        transfers_itself = _has_own(plan, TrainingPlan, ("transfer_batch_to_device",))
        self._transfers = transfers_itself or self.trainer.strategy.root_device.type != "cpu"
        self._training_step = self._shortest_training_step()
        self.reset()
        self.on_run_start(data_fetcher)
        # Whoever could change the module between two steps has Lightning's own loop.
        with plan.unchanged_module(self._needs_graph()):
            while not self.done:
                try:
                    self._step(data_fetcher)
                    self._after(data_fetcher)
                except StopIteration:
                    break

    def _step(self, data_fetcher: Any) -> None:
        """One minibatch; nothing of it is held when the next one is waited for."""
        trainer, plan = self.trainer, self.trainer.lightning_module
        optimizer, progress = trainer.optimizers[0], self.batch_progress
        given, _, _ = next(data_fetcher)
        progress.is_last_batch = data_fetcher.done
        batch: CellBatch = given
        if self._transfers:
            batch = plan.transfer_batch_to_device(given, trainer.strategy.root_device, 0)
        progress.increment_ready()
        progress.increment_started()
        batch_idx = self.batch_idx
        # What the optimizer's own method does, which looks for profilers first.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        loss = self._training_step(batch, batch_idx)
        if not plan.gradients:
            loss.backward()
        for parameter, gradient in plan.gradients.items():
            parameter.grad = gradient
        plan.gradients.clear()
        if self._clips:
            limit, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            plan.configure_gradient_clipping(optimizer, limit, algorithm)
        steps = self.automatic_optimization.optim_progress.optimizer.step
        steps.increment_ready()
        optimizer.step()
        steps.increment_completed()
        progress.increment_processed()
        outputs = {"loss": loss.detach()}
        for after_step in self._after_step:
            after_step(trainer, plan, outputs, batch, batch_idx)
        progress.increment_completed()

    def _shortest_training_step(self) -> Callable[[CellBatch, int], Any]:
        """The plan's own, where the strategy and the precision add nothing to it."""
        strategy = self.trainer.strategy
        adds = strategy.model is not strategy.lightning_module
        if adds or type(strategy.precision_plugin) is not Precision:
            return strategy.training_step
        return strategy.lightning_module.training_step

    def _needs_graph(self) -> bool:
        """Whether somebody waits for the derivatives where autograd leaves them."""
        if not isinstance(self.trainer.strategy, SingleDeviceStrategy):
            return True
        parameters = self.trainer.lightning_module.parameters()
        return torch.is_anomaly_enabled() or any(
            p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters
        )

    def _after(self, data_fetcher: Any) -> None:
        """What Lightning does between two steps, where there can be something to do."""
        trainer = self.trainer
        if self._num_ready_batches_reached() or trainer.should_stop or trainer.received_sigterm:
            self.on_advance_end(data_fetcher)
        else:
            self._batches_that_stepped += 1


def _is_plain(strategy: Any) -> bool:
    """Whether a step of a strategy is the forward pass, the backward pass and the optimizer's."""
    if isinstance(strategy, DDPStrategy):
        return strategy._model_averager is None
    return isinstance(strategy, SingleDeviceStrategy)


def _has_own(item: Any, base: type, names: Sequence[str]) -> bool:
    """Whether an object has a method of another than its base class, or a function of its own."""
    methods = [getattr(item, name) for name in names]
    inherited = [getattr(base, name) for name in names]
    return any(getattr(m, "__func__", m) is not i for m, i in zip(methods, inherited, strict=True))
