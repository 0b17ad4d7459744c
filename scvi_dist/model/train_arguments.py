"""scvi-tools' arguments of ``train()``, as the configs of those who do the work."""

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scvi_dist.dataloaders.split import Split, SplitConfig, split_from_indices
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.train.configs import EarlyStoppingConfig, TrainConfig, TrainingPlanConfig
from scvi_dist.train.save_checkpoint import SaveCheckpoint

RUNS_DIR = "scvi_dist_runs"
"""Folder of the working directory for runs that need a folder and were given none."""

_STOPPING = {f"early_stopping_{f.name}": f.name for f in fields(EarlyStoppingConfig)}
_PASSED_ON = (
    "max_steps",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "learning_rate_monitor",
    "checkpoint_every_n_steps",
    "checkpoint_every_s",
    "checkpoint_within_s",
    "keep_checkpoints",
    "sync_batchnorm",
)
_USED_ELSEWHERE = (
    "enable_progress_bar",
    "enable_checkpointing",
    "checkpointing_monitor",
    "callbacks",
    "logger",
)
_WITHOUT_EFFECT = (
    "progress_bar_refresh_rate",
    "simple_progress_bar",
    "enable_model_summary",
    "num_sanity_val_steps",
    "benchmark",
    "deterministic",
    "default_root_dir",
    "strategy",
    "use_distributed_sampler",
    "num_nodes",
)
"""Arguments of scvi-tools' and Lightning's Trainer about looks or speed, or about what is decided
by the number of workers; a run is deterministic anyway."""
_SPLIT = "Choose the cells by train_size and validation_size, or open the store with a filter."
_OTHERWISE = {
    "ckpt_path": "Give run_dir=… and resume=True: training goes on from its last checkpoint.",
    "log_save_dir": "Give tracking=…, or logger=CSVLogger(…) from lightning.pytorch.loggers.",
    "accumulate_grad_batches": "batch_size is the cells of one step over all workers: multiply it.",
    "min_epochs": "Give early_stopping_warmup_epochs=…",
    "min_steps": "Give early_stopping_warmup_epochs=…",
    "max_time": "A run that gets SIGTERM writes a checkpoint and stops; resume=True goes on.",
    "limit_train_batches": _SPLIT,
    "limit_val_batches": _SPLIT,
    "overfit_batches": _SPLIT,
    "fast_dev_run": "Give max_steps=…",
    "val_check_interval": "Give check_val_every_n_epoch=…",
    "detect_anomaly": "Set torch.autograd.set_detect_anomaly(True) around train().",
    "profiler": "Profile with torch.profiler around train().",
    "plugins": "Give precision=…, or num_workers=… for several devices.",
}
_NOTHING_ASKED = (None, False, 1, 1.0, 0)
_PRECISION = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Lightning's short names."""
_READING = ("pin_memory", "num_workers", "persistent_workers", "drop_last", "distributed_sampler")
"""Arguments of scvi-tools' DataSplitter about how torch reads, which are not needed here."""


def train_config(
    trainer_kwargs: Mapping[str, Any], *, early_stopping: bool, **given: Any
) -> TrainConfig:
    """The training config that scvi-tools' Trainer arguments describe.

    Raises
    ------
    ConfigError
        For an argument that is not known, with the nearest one.
    """
    known = (*_STOPPING, *_PASSED_ON, *_USED_ELSEWHERE, *_WITHOUT_EFFECT, "early_stopping")
    for name, value in trainer_kwargs.items():
        if name in _OTHERWISE:
            if value not in _NOTHING_ASKED:
                raise ConfigError(f"{name}={value!r} has another way here. {_OTHERWISE[name]}")
        elif name not in known:
            raise ConfigError(f"train() takes no argument {name!r}; {did_you_mean(name, known)}")
    stopping = {own: trainer_kwargs[n] for n, own in _STOPPING.items() if n in trainer_kwargs}
    stops = bool(trainer_kwargs.get("early_stopping", early_stopping))
    passed_on = {name: trainer_kwargs[name] for name in _PASSED_ON if name in trainer_kwargs}
    if "precision" in passed_on:
        asked = str(passed_on["precision"] or "32-true")
        passed_on["precision"] = _PRECISION.get(asked, asked)
    for saver in savers_of(trainer_kwargs):
        passed_on["checkpoint_monitor"] = saver.monitor
        passed_on["checkpoint_mode"] = saver.mode
        passed_on["keep_best_checkpoints"] = saver.save_top_k
    if passed_on.get("learning_rate_monitor"):
        # scvi-tools' Trainer validates each epoch then, unless told otherwise.
        passed_on["check_val_every_n_epoch"] = passed_on.get("check_val_every_n_epoch") or 1
    return TrainConfig(
        early_stopping=EarlyStoppingConfig(**stopping) if stops else None, **passed_on, **given
    )


def savers_of(trainer_kwargs: Mapping[str, Any]) -> list[SaveCheckpoint]:
    """What keeps the best models: as the callbacks say, or as ``enable_checkpointing`` does.

    Raises
    ------
    ConfigError
        There is more than one, of which each would want checkpoints by a metric of its own.
    """
    callbacks = trainer_kwargs.get("callbacks") or ()
    savers = [callback for callback in callbacks if isinstance(callback, SaveCheckpoint)]
    if len(savers) > 1:
        raise ConfigError(
            f"callbacks has {len(savers)} SaveCheckpoint; a run keeps its best checkpoints by one "
            "metric. Give one, with save_top_k for more models."
        )
    if not savers and trainer_kwargs.get("enable_checkpointing"):
        monitor = trainer_kwargs.get("checkpointing_monitor") or "validation_loss"
        savers = [SaveCheckpoint(monitor=monitor)]
    return savers


def lightning_callbacks(trainer_kwargs: Mapping[str, Any]) -> list[Any]:
    """The callbacks that Lightning is to call."""
    callbacks = trainer_kwargs.get("callbacks") or ()
    return [callback for callback in callbacks if not isinstance(callback, SaveCheckpoint)]


def lightning_loggers(trainer_kwargs: Mapping[str, Any]) -> list[Any]:
    """The loggers that Lightning is to tell of metrics.

    Raises
    ------
    ConfigError
        ``logger=True``, which leaves open where to.
    """
    given = trainer_kwargs.get("logger")
    if given is True:
        raise ConfigError(
            "logger=True says neither what is written nor where. Give a logger of "
            "lightning.pytorch.loggers, such as CSVLogger('logs'), or tracking=…; the model's "
            "history is there anyway."
        )
    if not given:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


PlanConfig = TypeVar("PlanConfig", bound=TrainingPlanConfig)


def training_plan_config(
    config: Any,
    plan_kwargs: Mapping[str, Any] | None,
    kind: type[PlanConfig] = TrainingPlanConfig,  # type: ignore[assignment]
    defaults: Mapping[str, Any] | None = None,
) -> PlanConfig:
    """The training plan that a config and kwargs describe.

    Parameters
    ----------
    config
        Ours (then it is whole), scvi-tools', or a mapping.
    plan_kwargs
        scvi-tools' ``plan_kwargs``; they win over the config.
    kind
        Which plan.
    defaults
        What the model's ``train()`` says of the plan; config and kwargs win over it.
    """
    if isinstance(config, kind) and not plan_kwargs:
        return config
    merged = {
        **(defaults or {}),
        **as_mapping(config, "plan_config"),
        **as_mapping(plan_kwargs, "plan_kwargs"),
    }
    if merged.pop("update_only_decoder", False):
        raise ConfigError("update_only_decoder trains on minified data, which is not read here.")
    merged.pop("on_epoch", None)
    return kind.from_kwargs(merged)


def as_mapping(config: Any, name: str) -> dict[str, Any]:
    """A config as keyword arguments: a mapping, a dataclass, or something with ``to_kwargs``."""
    if config is None:
        return {}
    if hasattr(config, "to_kwargs"):
        return dict(config.to_kwargs())
    if is_dataclass(config) and not isinstance(config, type):
        return {f.name: getattr(config, f.name) for f in fields(config)}
    if isinstance(config, Mapping):
        return dict(config)
    raise ConfigError(f"{name} must be a mapping or a config, got {type(config).__name__}.")


def split_config(
    n_obs: int, datasplitter_kwargs: Mapping[str, Any] | None, **given: Any
) -> SplitConfig | Split:
    """The split that scvi-tools' DataSplitter arguments describe."""
    merged = dict(datasplitter_kwargs or {})
    external = merged.pop("external_indexing", None)
    for name in _READING:
        merged.pop(name, None)
    names = [f.name for f in fields(SplitConfig)]
    for name in merged:
        if name not in names:
            raise ConfigError(
                f"datasplitter_kwargs has no {name!r}; "
                f"{did_you_mean(name, [*names, 'external_indexing'])}"
            )
    if external is not None:
        parts = [np.asarray(part, dtype=np.int64) for part in external]
        return split_from_indices(n_obs, *parts)
    # What train() was given itself wins over the same thing in the kwargs.
    stated = {name: value for name, value in given.items() if value is not None}
    return SplitConfig(**{**merged, **stated})


def run_folder(run_dir: str | os.PathLike[str] | None, run_name: str | None) -> str | None:
    """Absolute path of a run's folder; with a name, one under the working directory by default."""
    if run_dir is None and run_name is None:
        return None
    return os.path.abspath(run_dir if run_dir is not None else Path(RUNS_DIR) / str(run_name))
