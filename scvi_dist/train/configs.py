"""What a training run is asked to do."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from math import ceil
from typing import Any, ClassVar, Literal, Self

from torch import Tensor
from torch.optim import Optimizer

from scvi_dist.errors import ConfigError, did_you_mean

NEVER = 2**62
"""An interval that no run reaches."""

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Lightning's others would need minibatches of another type."""

OPTIMIZERS = ("Adam", "AdamW", "Custom")

OptimizerCreator = Callable[[Iterable[Tensor]], Optimizer]


@dataclass(frozen=True, slots=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Index among the processes of this host."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank must be in 0 … size - 1, got {self.rank} of {self.size}.")

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStoppingConfig:
    """When to stop before ``max_epochs``."""

    monitor: str = "elbo_validation"
    """A metric of the validation set."""
    min_delta: float = 0.0
    """Nats; a smaller change is no improvement."""
    patience: int = 45
    """Validations without improvement until training stops."""
    mode: Literal["min", "max"] = "min"
    warmup_epochs: int = 0
    """The first so many validations are not looked at."""

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigError(f"early_stopping.mode must be 'min' or 'max', got {self.mode!r}.")
        _at_least("early_stopping.patience", self.patience, 1)
        _at_least("early_stopping.warmup_epochs", self.warmup_epochs, 0)
        if not (self.monitor.endswith("_validation") or self.monitor.startswith("validation_")):
            raise ConfigError(
                "early_stopping.monitor must be a metric of the validation set, such as "
                f"'elbo_validation', got {self.monitor!r}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long to train, on what device, and what to do on the way."""

    max_epochs: int | None = None
    """Passes over the training cells. With neither this nor ``max_steps``: scvi-tools' rule."""
    max_steps: int | None = None
    """Optimizer steps; whichever limit is reached first ends the run."""
    batch_size: int = 128
    """Cells of a global minibatch, over all workers."""
    precision: str = "32-true"
    """As Lightning names it: ``32-true``; on a GPU also ``bf16-mixed`` and ``16-mixed``."""
    accelerator: str = "auto"
    """As Lightning names it: ``cpu``, ``gpu``, ``auto``."""
    devices: int | str = "auto"
    """One device per process: ``auto`` or 1."""
    gradient_clip_val: float | None = None
    """Largest gradient: its L2 norm, over all ranks; or each value of it."""
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    """What ``gradient_clip_val`` limits."""
    check_val_every_n_epoch: int | None = None
    """Epochs between validations. ``None``: 1 where something needs it, else never."""
    early_stopping: EarlyStoppingConfig | None = None
    checkpoint_every_n_steps: int | None = None
    """Steps between checkpoints inside an epoch. ``None``: only at the end of epochs."""
    checkpoint_every_s: float = 30.0
    """Seconds that must lie between two checkpoints at the end of epochs; the last always is."""
    checkpoint_within_s: float = 300.0
    """Seconds after which a checkpoint is written inside an epoch too: the most training that a
    failure can undo."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay; the best one stays besides."""
    checkpoint_monitor: str | None = None
    """A metric such as ``validation_loss``: an epoch that is the best so far by it is written at
    once. ``None``: early stopping's metric says which is the best of those written anyway."""
    checkpoint_mode: Literal["min", "max"] = "min"
    """Whether the best is the lowest or the highest."""
    keep_best_checkpoints: int = 1
    """Best checkpoints that stay."""
    learning_rate_monitor: bool = False
    """Whether the history holds the learning rate of each epoch, under ``lr-Adam``."""
    log_every_n_steps: int = 10
    """Steps between looks at the loss, at a request to stop, and between progress reports."""
    seed: int = 0
    """Of the order of cells and of the noise."""
    sync_batchnorm: bool = True
    """Whether batch statistics are those of the global minibatch. If not, each rank normalises with
    those of its own cells, and the weights depend on the number of ranks."""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "keep_checkpoints",
            "keep_best_checkpoints",
            "log_every_n_steps",
        ):
            _at_least(f"train.{name}", getattr(self, name), 1)
        for name, valid in (
            ("gradient_clip_algorithm", ("norm", "value")),
            ("checkpoint_mode", ("min", "max")),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in valid:
                raise ConfigError(
                    f"train.{name} must be {' or '.join(map(repr, valid))}, "
                    f"got {getattr(self, name)!r}."
                )
        if self.precision == "16-mixed" and self.accelerator == "cpu":
            raise ConfigError(
                "train.precision is '16-mixed', which a CPU does not have; it must be '32-true', "
                "or 'bf16-mixed', which gains nothing on a CPU."
            )
        for name in ("check_val_every_n_epoch", "checkpoint_every_n_steps"):
            if getattr(self, name) is not None:
                _at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("max_epochs", "max_steps"):
            if getattr(self, name) is not None:
                _at_least(f"train.{name}", getattr(self, name), 0)
        _at_least("train.checkpoint_every_s", self.checkpoint_every_s, 0)
        _at_least("train.checkpoint_within_s", self.checkpoint_within_s, 0)
        if self.devices not in ("auto", 1, "1"):
            raise ConfigError(
                f"train.devices must be 'auto' or 1, got {self.devices!r}: a process trains on one "
                "device. For more devices ask for that many workers."
            )

    @property
    def best_by(self) -> tuple[str, str]:
        """The metric that says which checkpoint is the best, and ``min`` or ``max``."""
        if self.checkpoint_monitor is not None:
            return self.checkpoint_monitor, self.checkpoint_mode
        stopping = self.early_stopping or EarlyStoppingConfig()
        return stopping.monitor, stopping.mode

    def epochs_for(self, n_cells: int) -> int | None:
        """Limit of epochs for a data set of ``n_cells``; ``None`` where only steps limit it."""
        if self.max_epochs is None and self.max_steps is None:
            return heuristic_max_epochs(n_cells)
        return self.max_epochs


def heuristic_max_epochs(n_cells: int, cap: int = 400) -> int:
    """scvi-tools' number of epochs: 400 up to 20,000 cells, then fewer, at least 1."""
    return max(1, min(round(20_000 / max(n_cells, 1) * cap), cap))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlanConfig:
    """scvi-tools' arguments of ``TrainingPlan``, with its defaults."""

    plan_class: ClassVar[str] = "scvi_dist.train.training_plan:TrainingPlan"
    """``module:class`` of the training plan that these are the arguments of."""

    optimizer: str = "Adam"
    """``Adam``, ``AdamW`` or ``Custom`` (then ``optimizer_creator`` makes it)."""
    optimizer_creator: OptimizerCreator | None = None
    """Takes the parameters, gives an optimizer; must be picklable to reach workers."""
    lr: float = 1e-3
    weight_decay: float = 1e-6
    eps: float = 0.01
    """Adam's epsilon."""
    n_steps_kl_warmup: int | None = None
    """Steps until the KL weight is at its maximum; only without ``n_epochs_kl_warmup``."""
    n_epochs_kl_warmup: int | None = 400
    """Epochs until the KL weight is at its maximum."""
    reduce_lr_on_plateau: bool = False
    lr_factor: float = 0.6
    lr_patience: int = 30
    """Validations without improvement until the learning rate is reduced."""
    lr_threshold: float = 0.0
    """Nats; a smaller change is no improvement."""
    lr_scheduler_metric: str = "elbo_validation"
    lr_min: float = 0.0
    max_kl_weight: float = 1.0
    min_kl_weight: float = 0.0
    compile: bool = False
    """Whether ``torch.compile`` is applied to the module."""
    compile_kwargs: Mapping[str, Any] | None = None
    loss_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the module's ``loss``."""
    on_step: bool = False
    """Whether the history also holds ``train_loss_step``: every ``log_every_n_steps`` steps, the
    mean loss since the step before."""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"plan.optimizer is {self.optimizer!r}; {did_you_mean(self.optimizer, OPTIMIZERS)}"
            )
        if self.optimizer == "Custom" and self.optimizer_creator is None:
            raise ConfigError(
                "plan.optimizer='Custom' needs plan.optimizer_creator, a function that takes the "
                "parameters and gives a torch optimizer."
            )
        if self.min_kl_weight > self.max_kl_weight:
            raise ConfigError(
                f"plan.min_kl_weight={self.min_kl_weight} is larger than "
                f"plan.max_kl_weight={self.max_kl_weight}."
            )
        if "kl_weight" in self.loss_kwargs:
            raise ConfigError(
                "plan.loss_kwargs must not hold kl_weight: it follows from the warm-up. "
                "Set min_kl_weight and max_kl_weight instead."
            )

    @classmethod
    def from_kwargs(cls, plan_kwargs: Mapping[str, Any]) -> Self:
        """From scvi-tools' ``plan_kwargs``; an unknown name is an error with the nearest one."""
        names = [f.name for f in fields(cls)]
        for name in plan_kwargs:
            if name not in names:
                raise ConfigError(f"plan_kwargs has no {name!r}; {did_you_mean(name, names)}")
        return cls(**plan_kwargs)

    def facts(self) -> dict[str, Any]:
        """JSON values; equal for two runs whose steps follow the same rule."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        creator = values.pop("optimizer_creator")
        for name in ("compile", "compile_kwargs", "on_step"):
            del values[name]
        values["loss_kwargs"] = {k: repr(v) for k, v in sorted(self.loss_kwargs.items())}
        values["optimizer_creator"] = getattr(creator, "__qualname__", None)
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class RayConfig:
    """Where Ray Train workers run and what they get."""

    num_workers: int | tuple[int, ...] = 1
    """How many; or the fewest and the most: then the run goes on with those that can be had, with
    the same cells in each step."""
    use_gpu: bool = False
    """One GPU for each worker."""
    address: str | None = None
    """Of a running cluster; ``None``: the one this process is connected to, else a local one."""
    resources_per_worker: Mapping[str, float] | None = None
    """Ray resources, for instance ``{"CPU": 4}``. ``None``: an equal share of the cores."""
    worker_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes on which workers may run; ``{}``: all nodes."""
    reader_cpus: float = 1.0
    """Logical CPUs that a local Ray offers to reading tasks besides the workers."""
    max_failures: int = 3
    """Deaths of workers after which the run is given up."""
    placement_strategy: str = "PACK"
    """``PACK`` or ``SPREAD`` workers over hosts."""
    collective_timeout_s: float = 1800.0
    """How long a rank waits for the others before it fails."""
    start_timeout_s: float = 600.0
    """How long the run waits for the nodes that it asked for, at its start and after a loss."""
    resize_interval_s: float = 60.0
    """Between two looks for more nodes, where ``num_workers`` is a range."""
    gradient_compression: Literal["bf16"] | None = None
    """Send gradients between workers in half the bytes: ``bf16``. Weights then depend on the number
    of workers in the third digit."""
    shutdown: bool = False
    """Whether a local Ray that the run has started ends with it."""
    env_vars: Mapping[str, str] = field(default_factory=dict)
    """For the workers, for instance ``{"GLOO_SOCKET_IFNAME": "eth0"}``."""

    def __post_init__(self) -> None:
        bounds = self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers,)
        for bound in bounds:
            _at_least("ray.num_workers", bound, 1)
        if len(bounds) > 2 or self.min_workers > self.max_workers:
            raise ConfigError(
                "ray.num_workers must be a number, or the fewest and the most workers, "
                f"got {self.num_workers!r}."
            )
        _at_least("ray.max_failures", self.max_failures, 0)
        for name in ("collective_timeout_s", "start_timeout_s", "resize_interval_s"):
            _at_least(f"ray.{name}", getattr(self, name), 1)
        if self.placement_strategy not in ("PACK", "SPREAD"):
            raise ConfigError(
                f"ray.placement_strategy must be PACK or SPREAD, got {self.placement_strategy!r}."
            )
        if self.gradient_compression not in (None, "bf16"):
            raise ConfigError(
                f"ray.gradient_compression must be 'bf16' or null, got "
                f"{self.gradient_compression!r}."
            )

    @property
    def min_workers(self) -> int:
        """The fewest with which the run goes on."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The most that the run asks for."""
        return self.num_workers[-1] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.min_workers < self.max_workers

    def worker_resources(self, n_cores: int) -> dict[str, float]:
        """Ray resources of one worker on a host with ``n_cores``."""
        if self.resources_per_worker is not None:
            return dict(self.resources_per_worker)
        share = 1 if self.use_gpu else max(1, n_cores // self.max_workers)
        return {"CPU": share, **({"GPU": 1} if self.use_gpu else {})}

    def local_cpus(self, n_cores: int) -> int:
        """Logical CPUs of a local Ray: enough for all workers and the readers."""
        workers = self.max_workers * self.worker_resources(n_cores).get("CPU", 1)
        return max(n_cores, ceil(workers + self.reader_cpus))


def _at_least(name: str, value: float, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise ConfigError(f"{name} must be a number of at least {least}, got {value!r}.")
