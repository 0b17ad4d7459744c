"""The loop of :mod:`scvi_dist.train.fit` in Ray Train workers, on one host or many."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from scvi_dist.dataloaders.engine import EngineChoice, choose_engine
from scvi_dist.dataloaders.source import is_in_memory
from scvi_dist.errors import ConfigError, TrainingFailed
from scvi_dist.train.callbacks import handler_restored
from scvi_dist.train.collector import Collector, WorkerFailure
from scvi_dist.train.configs import RayConfig, World
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, FitResult, TrainerExtras
from scvi_dist.train.local_ray import quiet_ray, start_local_ray
from scvi_dist.train.progress import OnProgress, TrainProgress
from scvi_dist.train.ray_address import join_cluster
from scvi_dist.train.start import starting_point

ANSWER_S = 60.0
"""Longest wait for an answer of the collector, which does nothing that takes time."""
POLL_S = 0.25
"""Between two looks for news of the workers."""
START_ATTEMPTS = 10
"""How often Ray Train tries to get all workers, a minute each time."""

QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Environment of Ray Train while a run goes on, unless the user has set these."""

_OUR_NODES: set[str] = set()
"""Nodes of the local Rays that this process has started."""

log = logging.getLogger(__name__)


def run(job: FitJob, config: RayConfig, on_progress: OnProgress | None = None) -> FitResult:
    """Train on Ray workers; the result's weights are on the CPU of this process.

    A Ray that runs already is used; else a local one is started, and stays for the next run
    unless ``config.shutdown`` says otherwise. A worker that dies is replaced, and training goes on
    from the newest checkpoint. SIGTERM to this process means: checkpoint, then stop.

    Raises
    ------
    ConfigError
        If the workers cannot be had, or cannot see the cells.
    TrainingFailed
        If a worker failed, or died too often. Errors of our own kind are raised as they are, with
        that rank's traceback as a note.
    """
    if is_in_memory(job.source.locator):
        raise ConfigError(
            "The cells are an AnnData in this process's memory, where Ray's workers cannot read. "
            "Write them to a store first (scvi_dist.data.writer.write_zarr)."
        )
    starting_point(job)
    if job.run_dir is not None:
        job = replace(job, run_dir=str(Path(job.run_dir).absolute()), resume=True)
    with _connected(config) as is_ours:
        return _run_connected(job, config, on_progress, is_ours)


def engine_for(job: FitJob, config: RayConfig, cluster_cpus: float | None = None) -> EngineChoice:
    """Who will read the cells, and why; needs no running Ray.

    Parameters
    ----------
    cluster_cpus
        CPUs of a cluster that runs already; ``None``: of this host, where Ray would be started.
    """
    return choose_engine(
        job.loader,
        job.source.locator,
        under_ray=True,
        n_cpus=cluster_cpus or os.cpu_count() or 1,
        world=config.num_workers,
    )


def _run_connected(
    job: FitJob, config: RayConfig, on_progress: OnProgress | None, is_ours: bool
) -> FitResult:
    resources = config.worker_resources(_cores() if is_ours else config.num_workers)
    if config.address is None:
        _check_resources(config.num_workers, resources)
    cluster_cpus = None if is_ours else ray.cluster_resources().get("CPU")
    collector = ray.remote(Collector).options(num_cpus=0).remote()
    task = WorkerTask(
        job=ray.put(job),
        collector=collector,
        engine=engine_for(job, config, cluster_cpus),
        use_gpu=config.use_gpu,
    )
    with tempfile.TemporaryDirectory(prefix="scvi_dist-ray-") as scratch, _environment(QUIET):
        storage = Path(job.run_dir) / "ray" if job.run_dir else Path(scratch)
        trainer = TorchTrainer(
            _work,
            train_loop_config={"task": task},
            torch_config=TorchConfig(
                backend="nccl" if config.use_gpu else "gloo",
                timeout_s=int(config.collective_timeout_s),
            ),
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=config.use_gpu,
                resources_per_worker=resources,
                placement_strategy=config.placement_strategy,
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(storage),
                failure_config=ray.train.FailureConfig(
                    max_failures=config.max_failures, controller_failure_limit=START_ATTEMPTS
                ),
                worker_runtime_env={"env_vars": dict(config.env_vars)},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        return _watched(trainer, collector, on_progress)


def _watched(trainer: TorchTrainer, collector: Any, on_progress: OnProgress | None) -> FitResult:
    """Run a trainer to its end, passing on news, requests to stop, and what went wrong."""
    lost: Exception | None = None
    with _Watch(collector, on_progress), handler_restored(signal.SIGINT):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            lost = error
        except SystemExit:
            # Ray Train turns Ctrl-C into the end of the process, which is not for it to decide.
            raise KeyboardInterrupt from None
    culprit: WorkerFailure | None = _ask(collector.culprit)
    result: FitResult | None = _ask(collector.result)
    if result is not None and lost is None:
        return result
    if culprit is not None and (lost is not None or culprit.is_permanent):
        raise culprit.error() from lost
    if lost is not None:
        raise TrainingFailed(
            f"Workers died without a word, more often than max_failures allows: {lost}"
        ) from lost
    raise KeyboardInterrupt  # Ray Train ends a run on Ctrl-C without an error.


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is given."""

    job: Any
    """Reference to the :class:`FitJob`."""
    collector: Any
    engine: EngineChoice
    use_gpu: bool


def _work(config: dict[str, Any]) -> None:
    """The loop of one worker."""
    task: WorkerTask = config["task"]
    # Ray Train starts all workers anew after any failure, also after one that would come again.
    if _ask(task.collector.is_hopeless):
        return
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), context.get_local_rank())
    try:
        _fit_and_report(task, world)
    except Exception as error:
        ray.get(task.collector.fail.remote(WorkerFailure.of(error, world.rank)), timeout=ANSWER_S)
        raise


def _fit_and_report(task: WorkerTask, world: World) -> None:
    job: FitJob = ray.get(task.job)
    train = replace(job.train, accelerator="gpu" if task.use_gpu else "cpu")
    link = _Link(task.collector)
    result = fit(
        replace(job, train=train),
        world,
        on_progress=link.tell if world.is_first else None,
        extras=_extras(task, world, train.sync_batchnorm, link),
    )
    if world.is_first:
        link.flush()
        ray.get(task.collector.finish.remote(result), timeout=ANSWER_S)


def _extras(task: WorkerTask, world: World, sync_batchnorm: bool, link: "_Link") -> TrainerExtras:
    stop_asked = link.stop_asked if world.is_first else None
    if world.size == 1:
        return TrainerExtras(engine=task.engine, stop_asked=stop_asked)
    return TrainerExtras(
        engine=task.engine,
        strategy=RayDDPStrategy(
            find_unused_parameters=False,
            forward_sync_buffers=not sync_batchnorm,
            gradient_as_bucket_view=True,
        ),
        plugins=(RayLightningEnvironment(),),
        stop_asked=stop_asked,
    )


class _Link:
    """Rank 0's side of the collector; training never waits for an answer."""

    def __init__(self, collector: Any) -> None:
        self._collector = collector
        self._unsent: list[TrainProgress] = []
        self._pending: Any = None
        self._stop = False

    def tell(self, progress: TrainProgress) -> None:
        """Send a report, or keep it until the one before has arrived."""
        if self._unsent and not self._unsent[-1].epoch_ended:
            self._unsent.pop()
        self._unsent.append(progress)
        self._look()
        if self._pending is None:
            self._pending = self._collector.tell.remote(self._unsent)
            self._unsent = []

    def stop_asked(self) -> bool:
        """Whether the driver wants the run to stop, as far as is known here."""
        self._look()
        return self._stop

    def flush(self) -> None:
        """Send what is left."""
        ray.get(self._collector.tell.remote(self._unsent), timeout=ANSWER_S)

    def _look(self) -> None:
        if self._pending is None or not ray.wait([self._pending], timeout=0)[0]:
            return
        self._stop = self._stop or ray.get(self._pending)
        self._pending = None


class _Watch:
    """The driver's side: a thread that fetches news and passes on SIGTERM."""

    def __init__(self, collector: Any, on_progress: OnProgress | None) -> None:
        self._collector, self._on_progress = collector, on_progress
        self._done, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scvi_dist-news", daemon=True)
        self._signals = handler_restored(signal.SIGTERM)

    def __enter__(self) -> "_Watch":
        self._signals.__enter__()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        self._thread.join(ANSWER_S)
        self._signals.__exit__(None, None, None)

    def _loop(self) -> None:
        try:
            while not self._done.wait(POLL_S):
                self._fetch()
            self._fetch()
        except RayError as error:
            log.warning("no more news from the workers: %s", error)

    def _fetch(self) -> None:
        if self._stop.is_set():
            ray.get(self._collector.ask_stop.remote(), timeout=ANSWER_S)
        for progress in _ask(self._collector.news):
            if self._on_progress is not None:
                self._on_progress(progress)


@contextmanager
def _connected(config: RayConfig) -> Iterator[bool]:
    """A Ray to work with; whether it is a local one that was started here."""
    if not ray.is_initialized():
        _start(config)
    is_ours = _node_id() in _OUR_NODES
    try:
        yield is_ours
    finally:
        if config.shutdown and is_ours:
            ray.shutdown()


def _start(config: RayConfig) -> None:
    if config.address is not None or "RAY_ADDRESS" in os.environ:
        quiet_ray()
        join_cluster(config.address)
        return
    start_local_ray(config.local_cpus(_cores()))
    _OUR_NODES.add(_node_id())


def _node_id() -> str:
    return ray.get_runtime_context().get_node_id()


def _check_resources(num_workers: int, resources: Mapping[str, float]) -> None:
    """Refuse what this Ray will never have, instead of waiting for it."""
    there = ray.cluster_resources()
    for name, amount in resources.items():
        if num_workers * amount > there.get(name, 0):
            raise ConfigError(
                f"{num_workers} workers with {amount:g} {name} each need {num_workers * amount:g} "
                f"{name}, but the Ray of this process has {there.get(name, 0):g}. Ask for fewer "
                "workers, set resources_per_worker, give the address of a larger cluster, or call "
                "ray.shutdown() so that a Ray that is large enough is started."
            )


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Variables that are set inside, where they were not."""
    new = {k: v for k, v in defaults.items() if k not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _ask(method: Any) -> Any:
    return ray.get(method.remote(), timeout=ANSWER_S)


def _cores() -> int:
    return os.cpu_count() or 1
