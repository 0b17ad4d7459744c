"""What a training run is made of, and what comes out of it. All of it is picklable."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from scvi_dist.dataloaders.engine import EngineChoice
from scvi_dist.dataloaders.labelled_cells import LabelledConfig
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.sampling_config import SamplingConfig
from scvi_dist.dataloaders.source import CellSource
from scvi_dist.dataloaders.split import Split
from scvi_dist.errors import ConfigError
from scvi_dist.tracking import TrackingRef
from scvi_dist.train.configs import TrainConfig, TrainingPlanConfig
from scvi_dist.train.history import Points


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """Everything a process needs to train, wherever it runs."""

    module: nn.Module
    """Trained in place by the process that runs :func:`~scvi_dist.train.fit.fit`."""
    source: CellSource
    split: Split
    loader: LoaderConfig
    train: TrainConfig
    plan: TrainingPlanConfig
    labelled: LabelledConfig | None = None
    """A second stream, of labelled cells, for plans that learn from labels; ``None``: none."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Which training cells an epoch draws, and how often."""
    run_dir: str | None = None
    """Where checkpoints go, on a disk that all hosts see; ``None``: no checkpoints."""
    tracking: TrackingRef | None = None
    resume: bool = False
    """Go on from the newest checkpoint in ``run_dir`` if there is one."""

    def __post_init__(self) -> None:
        if self.validates_for_itself and self.split.validation.n == 0:
            raise ConfigError(
                f"{self._validating[0]} looks at the validation set, but the split has no "
                "validation cells. Set train_size below 1, or validation_size above 0."
            )

    @property
    def validates_for_itself(self) -> bool:
        """Whether something in the loop needs validation metrics."""
        return bool(self._validating)

    @property
    def _validating(self) -> list[str]:
        """What needs them."""
        needs = {
            "early_stopping": self.train.early_stopping is not None,
            "reduce_lr_on_plateau": self.plan.reduce_lr_on_plateau,
            "checkpoint_monitor": "validation" in (self.train.checkpoint_monitor or ""),
        }
        return [name for name, needed in needs.items() if needed]

    @property
    def max_epochs(self) -> int | None:
        """Limit of epochs; ``None`` where only steps limit the run."""
        return self.train.epochs_for(self.source.schema.n_obs)

    @property
    def check_val_every_n_epoch(self) -> int | None:
        """Epochs between validations; ``None`` for none."""
        if self.split.validation.n == 0:
            return None
        return self.train.check_val_every_n_epoch or (1 if self.validates_for_itself else None)

    def facts(self, read_plan: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint's state depends on; must be the same when it is resumed from."""
        return {
            **dict(read_plan),
            "seed": self.train.seed,
            "batch_size": self.train.batch_size,
            "n_validation": self.split.validation.n,
            "schema": self.source.schema.digest(),
            "module": type(self.module).__name__,
            "n_parameters": sum(p.numel() for p in self.module.parameters()),
            "training_plan": self.plan.facts(),
        }


@dataclass(frozen=True, slots=True)
class Recovery:
    """The end of other processes that this one goes on for."""

    lost_s: float
    """Seconds from their end until this process asked."""
    asked_s: float
    """When it asked, on this process's monotonic clock."""


@dataclass(frozen=True, kw_only=True)
class TrainerExtras:
    """What the surroundings of a process add to the loop."""

    engine: EngineChoice | None = None
    """Who reads; ``None``: this process, unless the configuration says otherwise."""
    strategy: Any = None
    """A Lightning strategy; ``None``: the caller's process group, if there are several ranks."""
    plugins: tuple[Any, ...] = ()
    callbacks: tuple[Any, ...] = ()
    """Lightning callbacks; they come after ours that keep count."""
    loggers: tuple[Any, ...] = ()
    """Lightning loggers; they get the means of each epoch."""
    stop_asked: Callable[[], bool] | None = None
    """Looked at between steps; ``True`` means: checkpoint, then stop."""
    save_asked: Callable[[], bool] | None = None
    """Looked at between steps; ``True`` means: write a checkpoint."""
    on_saved: Callable[[], None] | None = None
    """Called by rank 0 when a checkpoint is on disk."""
    plan_world: int | None = None
    """Ranks that the read plan is made for, where their number may change; ``None``: all there
    are."""
    gradient_compression: str | None = None
    """How several ranks send gradients; see ``compression.py``."""
    is_worker: bool = False
    """Whether the module is this process's own, which nobody sees once it has failed."""
    recovery: Recovery | None = None
    """Set where this process goes on for others that have ended."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A trained model and how it came about."""

    history: dict[str, Points]
    """Metric -> ``(epoch or step, value)``."""
    state_dict: dict[str, Tensor] = field(repr=False)
    """Weights, on the CPU."""
    epochs: int
    """Epochs that are finished, resumed ones included."""
    steps: int
    """Optimizer steps, resumed ones included."""
    stopped_early: bool = False
    """Whether early stopping ended the run."""
    interrupted: bool = False
    """Whether the run was asked to stop; it can be resumed."""
    cells_per_s: float = 0.0
    """Over all ranks, in the process that finished the run."""
    wait_fraction: float = 0.0
    """Share of the time in which rank 0 waited for data."""
    checkpoint: str | None = None
    """Newest checkpoint's directory."""
