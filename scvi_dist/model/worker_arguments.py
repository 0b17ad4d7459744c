"""What ``train()`` is told of its workers and of reading, as their configs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch

from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.model.device import resolve_device
from scvi_dist.model.train_arguments import as_mapping
from scvi_dist.train.configs import RayConfig

_Config = TypeVar("_Config", RayConfig, LoaderConfig)


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
    given: RayConfig | Mapping[str, Any] | None = None,
    *,
    num_workers: int | Sequence[int] | None = None,
    use_gpu: bool | None = None,
    address: str | None = None,
    accelerator: str = "auto",
    devices: int | Sequence[int] | str = "auto",
) -> RayConfig | None:
    """Which workers train; None for this process. Several devices are as many workers.

    Parameters
    ----------
    given
        A config, which is taken as it is, or a mapping of some of its fields.
    num_workers, use_gpu, address
        What is named wins over the same in ``given``. ``num_workers`` is a number, or the fewest
        and the most.

    Raises
    ------
    ConfigError
        For a field that does not exist, with the nearest one.
    """
    said = _said(RayConfig, given, "ray", num_workers=num_workers, use_gpu=use_gpu, address=address)
    asked = n_devices(devices, accelerator)
    if given is None and num_workers is None and address is None and asked == 1:
        return None
    said.setdefault("num_workers", asked)
    if not isinstance(said["num_workers"], int):
        said["num_workers"] = tuple(said["num_workers"])
    if "use_gpu" not in said:
        # Named, it is there for the workers, wherever this process runs.
        on_gpu = accelerator in ("gpu", "cuda") or resolve_device(accelerator).type == "cuda"
        said["use_gpu"] = on_gpu
    return RayConfig(**said)


def loader_config(
    given: LoaderConfig | Mapping[str, Any] | None, *, n_threads: int | None, **named: Any
) -> LoaderConfig:
    """How cells are read.

    Parameters
    ----------
    given
        A config, which is taken as it is, or a mapping of some of its fields.
    n_threads
        Where ``given`` does not say it; ``None``: as the config has it.
    **named
        Fields that win over the same in ``given``, unless they are None.

    Raises
    ------
    ConfigError
        For a field that does not exist, with the nearest one.
    """
    said = _said(LoaderConfig, given, "loader", **named)
    if n_threads is not None:
        said.setdefault("n_threads", n_threads)
    return LoaderConfig(**said)


def _said(kind: type[_Config], given: Any, name: str, **named: Any) -> dict[str, Any]:
    """The fields that an argument of ``train()`` sets, and those that the call names."""
    said, known = as_mapping(given, name), [field.name for field in fields(kind)]
    for field in said:
        if field not in known:
            raise ConfigError(f"{name} has no {field!r}; {did_you_mean(field, known)}")
    return said | {field: value for field, value in named.items() if value is not None}


def lightning_accelerator(accelerator: str, ray: RayConfig | None) -> str:
    """What Lightning is told; it would take Apple's GPU for ``auto``, scvi-tools does not."""
    if ray is not None:
        return "gpu" if ray.use_gpu else "cpu"
    kind = resolve_device(accelerator).type
    return "gpu" if kind == "cuda" else kind
