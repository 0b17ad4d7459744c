"""Everything that a resumed run needs, out of a run and back into it.

Lightning's own checkpoint is not used: it knows batches of a rank, not cells of the global order,
and its counters differ with the number of ranks. What is written here says the same for any world.
"""

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from scvi_dist.errors import CheckpointError
from scvi_dist.train.callbacks import EarlyStop
from scvi_dist.train.checkpoint import Cursor
from scvi_dist.train.training_plan import TrainingPlan

VERSION = 1
_MODULE = "module."
"""How the names of a module's weights start in its plan's state."""


def capture(
    trainer: pl.Trainer, plan: TrainingPlan, early_stop: EarlyStop | None
) -> dict[str, Any]:
    """The state of a run between two steps; all ranks have to call it.

    Tensors are the live ones: write them before the next step.
    """
    sums = plan.train_sums.reduced(plan.reduce)
    return {
        "version": VERSION,
        "module": dict(plan.module.state_dict()),
        "beside_module": _beside_module(plan),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": _plain(plan.scheduler.state_dict()) if plan.scheduler else None,
        "precision": trainer.precision_plugin.state_dict(),
        "early_stop": early_stop.state_dict() if early_stop else None,
        "stopped_early": bool(trainer.should_stop),
        "sums": sums.state_dict(),
        "history": plan.history.state_dict(),
    }


def _beside_module(plan: TrainingPlan) -> dict[str, Tensor]:
    """Weights of the plan that are not the module's, such as an adversary's."""
    return {k: v for k, v in plan.state_dict().items() if not k.startswith(_MODULE)}


def check_version(state: dict[str, Any]) -> None:
    """Raise if another version of scvi_dist has written a state that cannot be read."""
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"The checkpoint's state has version {state.get('version')}, this version of scvi_dist "
            f"reads {VERSION}. Resume with the version that wrote it."
        )


def restore_plan(plan: TrainingPlan, state: dict[str, Any], cursor: Cursor) -> None:
    """Weights, metrics and place of a run, before the trainer is set up."""
    module = {_MODULE + name: value for name, value in state["module"].items()}
    # An earlier version knew of nothing beside the module.
    plan.load_state_dict(module | state.get("beside_module", {}))
    plan.history.load_state_dict(state["history"])
    plan.cursor = cursor
    # The sums are those of all ranks: one rank takes them.
    if plan.world.is_first:
        plan.train_sums.load_state_dict(state["sums"])


def restore_trainer(
    trainer: pl.Trainer, plan: TrainingPlan, early_stop: EarlyStop | None, state: dict[str, Any]
) -> None:
    """Optimizer, scheduler and early stopping, once the trainer has made the optimizer."""
    trainer.optimizers[0].load_state_dict(state["optimizer"])
    trainer.precision_plugin.load_state_dict(state["precision"])
    plan.train_sums.to(plan.device)
    if plan.scheduler is not None and state["scheduler"] is not None:
        plan.scheduler.load_state_dict(state["scheduler"])
    if early_stop is not None and state["early_stop"] is not None:
        early_stop.load_state_dict(state["early_stop"])


def set_counters(trainer: pl.Trainer, cursor: Cursor) -> None:
    """Make Lightning's limits of epochs and steps count from the cursor on."""
    epochs = trainer.fit_loop.epoch_progress
    for tracker in (epochs.total, epochs.current):
        tracker.ready = tracker.started = cursor.epoch
        tracker.processed = tracker.completed = cursor.epoch
    loop = trainer.fit_loop.epoch_loop
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = cursor.global_step
    loop._batches_that_stepped = cursor.global_step


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, Tensor) and v.dim() == 0 else v for k, v in state.items()}
