"""The loop of :mod:`scvi_dist.train.fit` in Ray Train workers, on one host or many."""

import pickle
import signal
import tempfile
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scvi_dist.dataloaders.engine import EngineChoice, choose_engine
from scvi_dist.dataloaders.source import is_in_memory
from scvi_dist.errors import ConfigError, ScviDistError, TrainingFailed
from scvi_dist.train.callbacks import handler_restored
from scvi_dist.train.checkpoint import latest_checkpoint
from scvi_dist.train.collector import Collector, WorkerFailure
from scvi_dist.train.configs import RayConfig
from scvi_dist.train.fit_job import FitJob, FitResult
from scvi_dist.train.progress import OnProgress
from scvi_dist.train.ray_connection import check_resources, connected, environment, n_cores
from scvi_dist.train.ray_controller import KeepRunning, ask
from scvi_dist.train.ray_watch import Watch
from scvi_dist.train.ray_worker import WorkerTask, work
from scvi_dist.train.start import starting_point
from scvi_dist.train.writer_claim import WriterClaim

PLACE_S = 10
"""How long Ray Train waits for places for its workers until it looks at the cluster anew."""

START_FAILURES = 10
"""How often workers may fail before they train."""

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(PLACE_S),
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Environment of Ray Train while a run goes on, unless the user has set these."""


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
            "Write them to a store first (scvi_dist.data.write_zarr)."
        )
    starting_point(job)
    if job.run_dir is not None:
        job = replace(job, run_dir=str(Path(job.run_dir).absolute()), resume=True)
        # Workers of a driver that was killed may still be at work there: they write no more.
        WriterClaim(str(job.run_dir))
    with connected(config) as is_ours:
        try:
            return _run_connected(job, config, on_progress, is_ours)
        except TrainingFailed as error:
            _restore_good_weights(job, error)
            raise


def _restore_good_weights(job: FitJob, error: TrainingFailed) -> None:
    """Let the module have the weights of the last checkpoint: no step after it is known to be good.

    The error says so.
    """
    good = latest_checkpoint(job.run_dir) if job.run_dir else None
    if good is not None:
        job.module.load_state_dict(good.load()["module"])
        error.add_note(f"The model has the weights of step {good.cursor.global_step}.")


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
        n_cpus=cluster_cpus or n_cores(),
        world=config.max_workers,
    )


def _run_connected(
    job: FitJob, config: RayConfig, on_progress: OnProgress | None, is_ours: bool
) -> FitResult:
    resources = config.worker_resources(n_cores() if is_ours else config.max_workers)
    config = replace(config, resources_per_worker=resources)
    if config.address is None:
        check_resources(config.min_workers, resources)
    cluster_cpus = None if is_ours else ray.cluster_resources().get("CPU")
    # On the driver's node: the run ends with that one anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    collector = ray.remote(Collector).options(num_cpus=0, scheduling_strategy=here).remote()
    task = WorkerTask(
        job=ray.put(job),
        collector=collector,
        engine=engine_for(job, config, cluster_cpus),
        config=config,
    )
    with tempfile.TemporaryDirectory(prefix="scvi_dist-ray-") as scratch, environment(SETTINGS):
        storage = Path(job.run_dir) / "ray" if job.run_dir else Path(scratch)
        trainer = TorchTrainer(
            work,
            train_loop_config={"task": task},
            torch_config=TorchConfig(
                backend="nccl" if config.use_gpu else "gloo",
                timeout_s=int(config.collective_timeout_s),
            ),
            scaling_config=_scaling(config),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(storage),
                failure_config=ray.train.FailureConfig(
                    max_failures=config.max_failures,
                    # How long it waits for places is for KeepRunning to say.
                    controller_failure_limit=START_FAILURES
                    + ceil(config.start_timeout_s / PLACE_S),
                ),
                callbacks=[KeepRunning(collector, config)],
                worker_runtime_env={"env_vars": dict(config.env_vars)},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        return _watched(trainer, collector, on_progress)


def _scaling(config: RayConfig) -> "ray.train.ScalingConfig":
    return ray.train.ScalingConfig(
        num_workers=config.num_workers if config.is_elastic else config.max_workers,
        use_gpu=config.use_gpu,
        resources_per_worker=dict(config.resources_per_worker or {}),
        label_selector=dict(config.worker_labels) or None,
        placement_strategy=config.placement_strategy,
        elastic_resize_monitor_interval_s=config.resize_interval_s,
    )


def _watched(trainer: TorchTrainer, collector: Any, on_progress: OnProgress | None) -> FitResult:
    """Run a trainer to its end, passing on news, requests to stop, and what went wrong."""
    lost: Exception | None = None
    with Watch(collector, on_progress), handler_restored(signal.SIGINT):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            lost = error
        except SystemExit:
            # Ray Train turns Ctrl-C into the end of the process, which is not for it to decide.
            raise KeyboardInterrupt from None
    culprit: WorkerFailure | None = ask(collector.culprit)
    result: bytes | None = ask(collector.result)
    if result is not None and lost is None:
        # Of our own workers.
        trained: FitResult = pickle.loads(result)
        return trained
    reason = getattr(lost, "controller_failure", None)
    if isinstance(reason, ScviDistError) and not (culprit and culprit.is_permanent):
        raise reason from lost
    if culprit is not None and (lost is not None or culprit.is_permanent):
        raise culprit.error() from lost
    if lost is not None:
        raise TrainingFailed(
            f"Workers died without a word, more often than max_failures allows: {lost}"
        ) from lost
    raise KeyboardInterrupt  # Ray Train ends a run on Ctrl-C without an error.
