"""Where passes over cells are computed: threads here, Dask workers, Ray's workers."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from scvi_dist.analysis.passes.cell_pass import CellPass, Parts
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.module.base import BaseModule


class Executor(Protocol):
    """Computes a whole pass; the result does not depend on which executor it is."""

    def __call__(
        self,
        cell_pass: CellPass,
        module: BaseModule | None,
        cells: StoreCells,
        parts: Parts | None = None,
    ) -> dict[str, np.ndarray]:
        """The finished results of all cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What an engine keeps, and how long it waits. Times are in seconds."""

    checkpoint_dir: str | os.PathLike[str] | None = None
    """Folder for what is merged so far; the same pass goes on from there. None keeps nothing."""
    checkpoint_every_s: float = 30.0
    """Shortest time between two writes."""
    connect_limit_s: float = 60.0
    """Longest wait for a scheduler."""
    worker_limit_s: float = 300.0
    """Longest wait while there is no worker."""
    part_limit_s: float = 3600.0
    """Longest time in which no part gets done."""

    def __post_init__(self) -> None:
        limits = (self.connect_limit_s, self.worker_limit_s, self.part_limit_s)
        if min(limits) <= 0 or self.checkpoint_every_s < 0:
            raise ConfigError(
                "connect_limit_s, worker_limit_s and part_limit_s must be positive and "
                f"checkpoint_every_s at least 0, seen {limits} and {self.checkpoint_every_s}."
            )


Open = Callable[[Any, EngineConfig], AbstractContextManager[Executor]]
"""Gives an executor, from what stands behind the colon of ``dask=`` or from a Dask object."""

ENGINES: dict[str, str] = {
    "sync": "scvi_dist.analysis.passes.thread_engine:in_this_thread",
    "threads": "scvi_dist.analysis.passes.thread_engine:in_threads",
    "local": "scvi_dist.analysis.passes.dask_clusters:own_cluster",
    "tcp": "scvi_dist.analysis.passes.dask_clusters:at_address",
    "tls": "scvi_dist.analysis.passes.dask_clusters:at_address",
    "file": "scvi_dist.analysis.passes.dask_clusters:of_scheduler_file",
    "env": "scvi_dist.analysis.passes.dask_clusters:of_environment",
    "ray": "scvi_dist.analysis.passes.ray_dask_engine:on_ray",
}
"""What ``dask=`` begins with -> ``module:function``, loaded on first use."""

POSSIBLE: Mapping[str, str] = {
    "threads[:N]": "threads of this process",
    "sync": "this thread",
    "local[:N]": "N processes on this machine",
    "tcp://HOST:PORT or tls://HOST:PORT": "a Dask scheduler",
    "file:SCHEDULER.json": "a scheduler's file",
    "env": "the scheduler that DASK_SCHEDULER_ADDRESS names",
    "ray": "the Ray that is running, or one of this machine's own",
}


@contextmanager
def resolve_executor(dask: Any = None, config: EngineConfig | None = None) -> Iterator[Executor]:
    """Where to compute, as a user says it; what was started for it ends with the context.

    Parameters
    ----------
    dask
        None (threads of this process, as many as there is room for the results of), one of the
        texts of ``POSSIBLE``, a ``distributed.Client``, a cluster object (with ``get_client()``
        or ``scheduler_address``), or an executor. Nothing that is given as an object is closed.
    config
        What is kept, and how long is waited.

    Raises
    ------
    ConfigError
        It is none of these.
    EngineError
        The scheduler does not answer, there are no workers, or they lack this version of us.
    """
    if callable(dask):
        yield dask
        return
    config = EngineConfig() if config is None else config
    target, given = _target(dask)
    module, name = target.split(":")
    opener: Open = getattr(import_module(module), name)
    with opener(given, config) as executor:
        yield executor


def _target(dask: Any) -> tuple[str, Any]:
    if dask is None:
        return "scvi_dist.analysis.passes.thread_engine:as_fits", ""
    if isinstance(dask, str):
        kind, _, rest = dask.partition(":")
        if kind in ("tcp", "tls"):
            rest = dask
        if kind not in ENGINES:
            raise ConfigError(f"dask={dask!r}: {did_you_mean(kind, ENGINES)} {_possible()}")
        return ENGINES[kind], rest
    if hasattr(dask, "scheduler_address") or hasattr(dask, "get_client"):
        return "scvi_dist.analysis.passes.dask_clusters:of_cluster", dask
    if hasattr(dask, "scheduler_info") and hasattr(dask, "submit"):
        return "scvi_dist.analysis.passes.dask_clusters:of_client", dask
    raise ConfigError(f"dask= cannot be of type {type(dask).__name__}. {_possible()}")


def count_of(text: str, what: str, default: int) -> int:
    """The number behind the colon, as in ``threads:4``. Raises :class:`ConfigError`."""
    if not text:
        return default
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"dask='{what}:N' takes a number of at least 1, seen {text!r}.")
    return int(text)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _possible() -> str:
    texts = "; ".join(f"{text} ({meaning})" for text, meaning in POSSIBLE.items())
    return f"Possible are: {texts}; a distributed.Client; a cluster object; None for threads."
