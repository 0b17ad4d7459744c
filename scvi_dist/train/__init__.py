"""Training: one loop for one process, for Ray's workers, and for a run that goes on after a crash.

Names load on first use, so that importing a config imports neither Lightning nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_dist.train.checkpoint import Checkpoint, latest_checkpoint
    from scvi_dist.train.configs import (
        EarlyStoppingConfig,
        RayConfig,
        TrainConfig,
        TrainingPlanConfig,
        World,
    )
    from scvi_dist.train.fit_job import FitJob, FitResult, TrainerExtras
    from scvi_dist.train.progress import TrainProgress
    from scvi_dist.train.training_plan import TrainingPlan

_HOME = {
    "Checkpoint": "checkpoint",
    "EarlyStoppingConfig": "configs",
    "FitJob": "fit_job",
    "FitResult": "fit_job",
    "RayConfig": "configs",
    "TrainConfig": "configs",
    "TrainProgress": "progress",
    "TrainerExtras": "fit_job",
    "TrainingPlan": "training_plan",
    "TrainingPlanConfig": "configs",
    "World": "configs",
    "latest_checkpoint": "checkpoint",
}

__all__ = [
    "Checkpoint",
    "EarlyStoppingConfig",
    "FitJob",
    "FitResult",
    "RayConfig",
    "TrainConfig",
    "TrainProgress",
    "TrainerExtras",
    "TrainingPlan",
    "TrainingPlanConfig",
    "World",
    "latest_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"scvi_dist.train.{_HOME[name]}"), name)
    raise AttributeError(f"module 'scvi_dist.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
