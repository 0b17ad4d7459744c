"""scvi-tools' arguments of ``train()``, as the configs of those who do the work."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scvi_dist.dataloaders.split import Split, SplitConfig, split_from_indices
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.model.device import resolve_device
from scvi_dist.train.configs import (
    EarlyStoppingConfig,
    RayConfig,
    TrainConfig,
    TrainingPlanConfig,
)

RUNS_DIR = "scvi_dist_runs"
"""Folder of the working directory for runs that need a folder and were given none."""

_STOPPING = {f"early_stopping_{f.name}": f.name for f in fields(EarlyStoppingConfig)}
_PASSED_ON = (
    "max_steps",
    "precision",
    "gradient_clip_val",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "checkpoint_every_n_steps",
    "checkpoint_every_s",
    "keep_checkpoints",
    "sync_batchnorm",
)
_WITHOUT_EFFECT = (
    "enable_progress_bar",
    "progress_bar_refresh_rate",
    "simple_progress_bar",
    "enable_model_summary",
    "num_sanity_val_steps",
    "benchmark",
    "learning_rate_monitor",
    "log_save_dir",
    "default_root_dir",
    "logger",
    "strategy",
    "callbacks",
)
"""Arguments of scvi-tools' Trainer that are about looks or speed, or are used elsewhere."""
_ELSEWHERE = {
    "ckpt_path": "Give run_dir=… and resume=True: training goes on from its last checkpoint.",
    "enable_checkpointing": "Give run_dir=…: checkpoints are written there.",
    "checkpointing_monitor": "Give run_dir=…: checkpoints are written there.",
}
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
    known = (*_STOPPING, *_PASSED_ON, *_WITHOUT_EFFECT, *_ELSEWHERE, "early_stopping")
    for name, value in trainer_kwargs.items():
        if name in _ELSEWHERE and value not in (None, False):
            raise ConfigError(f"{name}={value!r} has another way here. {_ELSEWHERE[name]}")
        if name not in known:
            raise ConfigError(f"train() takes no argument {name!r}; {did_you_mean(name, known)}")
    stopping = {own: trainer_kwargs[n] for n, own in _STOPPING.items() if n in trainer_kwargs}
    stops = bool(trainer_kwargs.get("early_stopping", early_stopping))
    passed_on = {name: trainer_kwargs[name] for name in _PASSED_ON if name in trainer_kwargs}
    return TrainConfig(
        early_stopping=EarlyStoppingConfig(**stopping) if stops else None, **passed_on, **given
    )


def training_plan_config(config: Any, plan_kwargs: Mapping[str, Any] | None) -> TrainingPlanConfig:
    """The training plan that a config (ours, scvi-tools' or a mapping) and kwargs describe."""
    if isinstance(config, TrainingPlanConfig) and not plan_kwargs:
        return config
    merged = {**as_mapping(config, "plan_config"), **as_mapping(plan_kwargs, "plan_kwargs")}
    if merged.pop("update_only_decoder", False):
        raise ConfigError("update_only_decoder trains on minified data, which is not read here.")
    if merged.pop("on_step", False):
        raise ConfigError("on_step: metrics of single steps go to on_progress and to tracking.")
    merged.pop("on_epoch", None)
    return TrainingPlanConfig.from_kwargs(merged)


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


def n_devices(devices: int | Sequence[int] | str, accelerator: str) -> int:
    """How many devices scvi-tools' ``devices`` asks for; ``auto`` is one."""
    if isinstance(devices, str) and devices != "auto":
        devices = [int(d) for d in devices.split(",")] if "," in devices else int(devices)
    if isinstance(devices, str):
        return 1
    if not isinstance(devices, int):
        return len(devices)
    if devices >= 0:
        return max(devices, 1)
    return max(1, torch.cuda.device_count()) if accelerator != "cpu" else os.cpu_count() or 1


def ray_config(
    num_workers: int | None,
    use_gpu: bool | None,
    address: str | None,
    accelerator: str,
    devices: int | Sequence[int] | str,
) -> RayConfig | None:
    """Which workers train; None for this process. Several devices are as many workers."""
    asked = n_devices(devices, accelerator)
    if num_workers is None and (asked > 1 or address is not None):
        num_workers = asked
    if num_workers is None:
        return None
    if use_gpu is None:
        # Named, it is there for the workers, wherever this process runs.
        use_gpu = accelerator in ("gpu", "cuda") or resolve_device(accelerator).type == "cuda"
    return RayConfig(num_workers=num_workers, use_gpu=use_gpu, address=address)


def lightning_accelerator(accelerator: str, ray: RayConfig | None) -> str:
    """What Lightning is told; it would take Apple's GPU for ``auto``, scvi-tools does not."""
    if ray is not None:
        return "gpu" if ray.use_gpu else "cpu"
    kind = resolve_device(accelerator).type
    return "gpu" if kind == "cuda" else kind


def run_folder(run_dir: str | os.PathLike[str] | None, run_name: str | None) -> str | None:
    """Absolute path of a run's folder; with a name, one under the working directory by default."""
    if run_dir is None and run_name is None:
        return None
    return os.path.abspath(run_dir if run_dir is not None else Path(RUNS_DIR) / str(run_name))
