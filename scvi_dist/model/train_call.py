"""A call of ``train()``: scvi-tools' arguments, and where and how the run is to take place."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from scvi_dist.dataloaders.labelled_cells import LabelledConfig
from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.dataloaders.sampling_config import SamplingConfig
from scvi_dist.errors import ConfigError
from scvi_dist.global_settings import settings
from scvi_dist.model.train_arguments import (
    as_mapping,
    run_folder,
    savers_of,
    split_config,
    train_config,
)
from scvi_dist.model.training import FitSettings, starts_record
from scvi_dist.model.worker_arguments import lightning_accelerator, loader_config, ray_config
from scvi_dist.train.configs import RayConfig, TrainingPlanConfig

if TYPE_CHECKING:
    from scvi_dist.tracking import Tracker, TrackingConfig
    from scvi_dist.train.progress import OnProgress


class TrainOptions(TypedDict, total=False):
    """What every model's ``train()`` takes by name besides the arguments that it lists.

    First what is scvi_dist's own, then what goes to scvi-tools' Trainer, with its meaning.
    """

    num_workers: int | Sequence[int] | None
    """Train on so many Ray workers, or on between ``[fewest, most]`` while nodes come and go; in
    this process where neither this nor address is given."""
    use_gpu: bool | None
    """One GPU for each worker; by default where there are some."""
    address: str | None
    """Of the Ray cluster that the workers run on: ``auto`` or ``HEAD:6379`` from its hosts,
    ``ray://HEAD:10001`` from elsewhere."""
    ray: "RayConfig | Mapping[str, Any] | None"
    """All else about the workers, as ``train.ray`` of a run file has it: what each takes, where it
    may run, how long to wait. A mapping may leave out what is to be as usual."""
    run_dir: str | os.PathLike[str] | None
    """Folder for checkpoints."""
    resume: bool
    """Go on from the last checkpoint in ``run_dir``."""
    tracking: "Tracker | TrackingConfig | str | None"
    """Record the run in MLflow: a tracker, a config, or ``"auto"`` or a URI."""
    engine: str
    """What reads the cells: ``"auto"``, ``"local"`` or ``"ray"``."""
    sampling: "SamplingConfig | Mapping[str, Any] | None"
    """Which training cells an epoch draws, and how often: class-balanced, capped, weighted, or in
    given shares of several stores; also ``datasplitter_kwargs["sampling"]``."""
    budget_bytes: int
    """What one worker may hold in cells, whatever the size of the store."""
    loader: "LoaderConfig | Mapping[str, Any] | None"
    """All else about reading, as ``train.loader`` of a run file has it: threads, readers and where
    they may run, how long to wait. A mapping may leave out what is to be as usual."""
    seed: int
    """Of split, order and noise; by default ``scvi_dist.settings.seed``, and 0 without one."""
    on_progress: "OnProgress | None"
    """Called every few steps and after each epoch."""

    max_steps: int | None
    """Optimizer steps; whichever limit is reached first ends the run."""
    precision: Any
    gradient_clip_val: float | None
    gradient_clip_algorithm: str
    check_val_every_n_epoch: int | None
    log_every_n_steps: int
    checkpoint_every_n_steps: int | None
    checkpoint_every_s: float
    checkpoint_within_s: float
    keep_checkpoints: int
    sync_batchnorm: bool
    early_stopping_monitor: str
    early_stopping_min_delta: float
    early_stopping_patience: int
    early_stopping_mode: str
    early_stopping_warmup_epochs: int
    enable_progress_bar: bool
    progress_bar_refresh_rate: int
    simple_progress_bar: bool
    enable_model_summary: bool
    enable_checkpointing: bool
    checkpointing_monitor: str
    num_sanity_val_steps: int
    benchmark: bool
    learning_rate_monitor: bool
    log_save_dir: str | None
    default_root_dir: str | None
    logger: Any
    strategy: Any
    callbacks: Sequence[Any] | None
    ckpt_path: Any


_OWN = (
    "num_workers",
    "use_gpu",
    "address",
    "ray",
    "run_dir",
    "resume",
    "tracking",
    "engine",
    "sampling",
    "budget_bytes",
    "loader",
    "seed",
    "on_progress",
)
"""The options that are not of scvi-tools' Trainer."""


@dataclass(frozen=True, kw_only=True)
class TrainCall:
    """The arguments of a call of ``train()``; those that a model does not have stay at these."""

    max_epochs: int | None
    batch_size: int
    """Cells of a minibatch, over all workers."""
    accelerator: str = "auto"
    devices: int | Sequence[int] | str = "auto"
    """Several devices are as many workers."""
    train_size: float | None = None
    validation_size: float | None = None
    shuffle_set_split: bool = True
    early_stopping: bool = False
    datasplitter_kwargs: Mapping[str, Any] | None = None
    trainer_config: Any = None
    datamodule: Any = None
    labelled: LabelledConfig | None = None
    """How cells with a label are drawn; ``None`` for models that learn from none."""
    options: TrainOptions

    def __post_init__(self) -> None:
        if self.datamodule is not None:
            raise ConfigError(
                "train() reads the cells itself, so that workers can and that a run can go on "
                "where it stopped. Give the store that the datamodule reads (a path, a URL or an "
                "open store) to setup_anndata() and to the model, instead of datamodule=…"
            )

    @property
    def trainer_options(self) -> dict[str, Any]:
        """What goes to scvi-tools' Trainer; what is named in the call wins over a config."""
        named = {k: v for k, v in self.options.items() if k not in _OWN}
        return {**as_mapping(self.trainer_config, "trainer_config"), **named}

    @property
    def seed(self) -> int:
        """Of split, order and noise."""
        return self.options.get("seed", settings.seed or 0)

    @property
    def tracking(self) -> "Tracker | TrackingConfig | str | None":
        """What records the run."""
        given = self.options.get("tracking")
        return settings.tracking if given is None else given

    @property
    def ray(self) -> RayConfig | None:
        """Which workers train; None for this process."""
        given = self.options
        return ray_config(
            given.get("ray"),
            num_workers=given.get("num_workers"),
            use_gpu=given.get("use_gpu"),
            address=given.get("address"),
            accelerator=self.accelerator,
            devices=self.devices,
        )

    @property
    def device_after(self) -> str:
        """The accelerator that the weights end on: workers may have others than this process."""
        return self.accelerator if self.ray is None or self.accelerator == "cpu" else "auto"

    def settings(self, n_obs: int, plan: TrainingPlanConfig, run_name: str) -> FitSettings:
        """The configs of those who do the work.

        Parameters
        ----------
        n_obs
            Cells of the data.
        plan
            The training plan.
        run_name
            Names the folder of a run that needs one and was given none.
        """
        ray, given = self.ray, self.options
        splitting = dict(self.datasplitter_kwargs or {})
        sampling = splitting.pop("sampling", None)
        needs_folder = (
            ray is not None or starts_record(self.tracking) or bool(savers_of(self.trainer_options))
        )
        return FitSettings(
            train=train_config(
                self.trainer_options,
                early_stopping=self.early_stopping,
                max_epochs=self.max_epochs,
                accelerator=lightning_accelerator(self.accelerator, ray),
                batch_size=self.batch_size,
                seed=self.seed,
            ),
            plan=plan,
            split=split_config(
                n_obs,
                splitting,
                train_size=self.train_size,
                validation_size=self.validation_size,
                shuffle_set_split=self.shuffle_set_split,
                seed=self.seed,
            ),
            loader=loader_config(
                given.get("loader"),
                engine=given.get("engine"),
                budget_bytes=given.get("budget_bytes"),
                n_threads=settings.dl_num_workers or None,
            ),
            sampling=SamplingConfig.of(given.get("sampling", sampling)),
            labelled=self.labelled,
            ray=ray,
            run_dir=run_folder(given.get("run_dir"), run_name if needs_folder else None),
            resume=given.get("resume", False),
        )
