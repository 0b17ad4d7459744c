"""Training: one loop for one process, for Ray's workers, and for a run that goes on after a crash.

Names load on first use, so that importing a config imports neither Lightning nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_dist.train.adversarial_config import AdversarialPlanConfig
    from scvi_dist.train.adversarial_plan import AdversarialTrainingPlan
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
    from scvi_dist.train.save_checkpoint import SaveCheckpoint
    from scvi_dist.train.semi_supervised_config import (
        SemiSupervisedAdversarialPlanConfig,
        SemiSupervisedPlanConfig,
    )
    from scvi_dist.train.semi_supervised_plan import (
        SemiSupervisedAdversarialTrainingPlan,
        SemiSupervisedTrainingPlan,
    )
    from scvi_dist.train.training_plan import TrainingPlan

_HOME = {
    "AdversarialPlanConfig": "adversarial_config",
    "AdversarialTrainingPlan": "adversarial_plan",
    "Checkpoint": "checkpoint",
    "EarlyStoppingConfig": "configs",
    "FitJob": "fit_job",
    "FitResult": "fit_job",
    "RayConfig": "configs",
    "SaveCheckpoint": "save_checkpoint",
    "SemiSupervisedAdversarialPlanConfig": "semi_supervised_config",
    "SemiSupervisedAdversarialTrainingPlan": "semi_supervised_plan",
    "SemiSupervisedPlanConfig": "semi_supervised_config",
    "SemiSupervisedTrainingPlan": "semi_supervised_plan",
    "TrainConfig": "configs",
    "TrainProgress": "progress",
    "TrainerExtras": "fit_job",
    "TrainingPlan": "training_plan",
    "TrainingPlanConfig": "configs",
    "World": "configs",
    "latest_checkpoint": "checkpoint",
}

_SCVI_TOOLS_NAMES = {
    "AdversarialTrainingPlanConfig": "AdversarialPlanConfig",
    "SemiSupervisedAdversarialTrainingPlanConfig": "SemiSupervisedAdversarialPlanConfig",
    "SemiSupervisedTrainingPlanConfig": "SemiSupervisedPlanConfig",
}
"""What scvi-tools calls a class -> its name here."""

__all__ = [
    "AdversarialPlanConfig",
    "AdversarialTrainingPlan",
    "Checkpoint",
    "EarlyStoppingConfig",
    "FitJob",
    "FitResult",
    "RayConfig",
    "SaveCheckpoint",
    "SemiSupervisedAdversarialPlanConfig",
    "SemiSupervisedAdversarialTrainingPlan",
    "SemiSupervisedPlanConfig",
    "SemiSupervisedTrainingPlan",
    "TrainConfig",
    "TrainProgress",
    "TrainerExtras",
    "TrainingPlan",
    "TrainingPlanConfig",
    "World",
    "latest_checkpoint",
]


def __getattr__(name: str) -> Any:
    own = _SCVI_TOOLS_NAMES.get(name, name)
    if own in _HOME:
        return getattr(import_module(f"scvi_dist.train.{_HOME[own]}"), own)
    raise AttributeError(f"module 'scvi_dist.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
