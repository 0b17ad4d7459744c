"""Dask schedulers, as a user names them: one of our own, an address, a file, an object."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask.config
from distributed import Client, LocalCluster

from scvi_dist.analysis.passes.dask_engine import DaskEngine
from scvi_dist.analysis.passes.engines import EngineConfig, Executor, count_of, usable_cores
from scvi_dist.errors import ConfigError, EngineError

_CLOSE_S = 5
_ONLY_ERRORS = 40
"""Of what Dask's own processes log."""


_QUIET: dict[str, Any] = {
    # Nobody looks at what a cluster without a dashboard observes a hundred times a second, in each
    # worker and, for its scheduler and nannies, in this process: some 5 % of a core.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.system-monitor.gil.enabled": False,
    # Other heaps of the C library have 64 MiB at most, and are unmapped whenever they are empty.
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
}


@contextmanager
def own_cluster(given: str, config: EngineConfig) -> Iterator[Executor]:
    """Processes on this machine, with one thread each."""
    n_workers = count_of(given, "local", usable_cores())
    try:
        with dask.config.set(_QUIET):
            cluster = LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                # Dask's own port may be another cluster's, of which it would warn.
                scheduler_kwargs={"dashboard_address": ":0"},
                silence_logs=_ONLY_ERRORS,
            )
    except (RuntimeError, OSError) as error:
        raise EngineError(
            f"{n_workers} worker processes did not start on this machine: {error}. In a program of "
            "your own, what it does stands under if __name__ == '__main__': each worker imports it."
        ) from error
    with cluster, _connected(cluster, config) as executor:
        yield executor


@contextmanager
def at_address(given: str, config: EngineConfig) -> Iterator[Executor]:
    """The workers of a scheduler."""
    with _connected(given, config) as executor:
        yield executor


@contextmanager
def of_scheduler_file(given: str, config: EngineConfig) -> Iterator[Executor]:
    """The workers of the scheduler that wrote a file."""
    if not Path(given).is_file():
        raise ConfigError(f"dask='file:{given}': there is no such scheduler file.")
    with _connected(None, config, scheduler_file=given) as executor:
        yield executor


@contextmanager
def of_environment(given: str, config: EngineConfig) -> Iterator[Executor]:
    """The workers of the scheduler that the environment names."""
    address = os.environ.get("DASK_SCHEDULER_ADDRESS", "")
    if given or not address:
        raise ConfigError(
            "dask='env' takes the scheduler from DASK_SCHEDULER_ADDRESS, such as "
            f"tcp://host:8786; it is {address!r}."
        )
    with _connected(address, config) as executor:
        yield executor


@contextmanager
def of_cluster(given: Any, config: EngineConfig) -> Iterator[Executor]:
    """The workers of a cluster object, which is not closed."""
    if hasattr(given, "scheduler_address"):
        with _connected(given, config) as executor:
            yield executor
        return
    # It may be one that others use: it is not ours to close.
    yield DaskEngine(given.get_client(), config)


@contextmanager
def of_client(given: Client, config: EngineConfig) -> Iterator[Executor]:
    """The workers of a client, which is not closed."""
    yield DaskEngine(given, config)


@contextmanager
def _connected(target: Any, config: EngineConfig, **options: Any) -> Iterator[Executor]:
    try:
        client = Client(target, timeout=config.connect_limit_s, set_as_default=False, **options)
    except (OSError, ValueError) as error:
        where = options.get("scheduler_file", target)
        raise EngineError(
            f"no Dask scheduler answers at {where} within {config.connect_limit_s:g} s: "
            f"{error}. Is it running, and is the address right?"
        ) from error
    logger = logging.getLogger("distributed.client")
    level = logger.level
    # That a scheduler is lost is said once, by the engine.
    logger.setLevel(logging.CRITICAL)
    try:
        yield DaskEngine(client, config)
    finally:
        logger.setLevel(level)
        # A scheduler that died would be waited for, twice as long as for one that comes.
        with suppress(TimeoutError):
            client.close(timeout=_CLOSE_S)
