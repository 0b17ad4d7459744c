"""The loop of one Ray Train worker, and its line to the driver."""

import pickle
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

from scvi_dist.dataloaders.engine import EngineChoice
from scvi_dist.train.collector import Orders, WorkerFailure
from scvi_dist.train.configs import RayConfig, World
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, Recovery, TrainerExtras
from scvi_dist.train.progress import TrainProgress
from scvi_dist.train.ray_controller import ANSWER_S, ask


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is given."""

    job: Any
    """Reference to the :class:`FitJob`."""
    collector: Any
    engine: EngineChoice
    config: RayConfig


def work(config: dict[str, Any]) -> None:
    """The loop of one worker."""
    task: WorkerTask = config["task"]
    # Ray Train starts all workers anew after any failure, also after one that would come again.
    if ask(task.collector.is_hopeless):
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
    train = replace(job.train, accelerator="gpu" if task.config.use_gpu else "cpu")
    link = _Link(task.collector)
    result = fit(
        replace(job, train=train),
        world,
        on_progress=link.tell if world.is_first else None,
        extras=_extras(task, world, train.sync_batchnorm, link),
    )
    if world.is_first:
        link.flush()
        ray.get(task.collector.finish.remote(pickle.dumps(result)), timeout=ANSWER_S)


def _extras(task: WorkerTask, world: World, sync_batchnorm: bool, link: "_Link") -> TrainerExtras:
    shared = TrainerExtras(engine=task.engine, plan_world=task.config.min_workers, is_worker=True)
    if world.is_first:
        lost_s = ask(task.collector.begin)
        shared = replace(
            shared,
            stop_asked=link.stop_asked,
            save_asked=link.save_asked,
            on_saved=link.saved,
            recovery=None if lost_s is None else Recovery(lost_s, time.monotonic()),
        )
    if world.size == 1:
        return shared
    return replace(
        shared,
        strategy=RayDDPStrategy(
            find_unused_parameters=False,
            forward_sync_buffers=not sync_batchnorm,
            gradient_as_bucket_view=True,
        ),
        plugins=(RayLightningEnvironment(),),
        gradient_compression=task.config.gradient_compression,
    )


class _Link:
    """Rank 0's side of the collector; training never waits for an answer."""

    def __init__(self, collector: Any) -> None:
        self._collector = collector
        self._unsent: list[TrainProgress] = []
        self._pending: Any = None
        self._orders = Orders()
        self._n_saved = 0

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
        return self._orders.stop

    def save_asked(self) -> bool:
        """Whether the controller wants a checkpoint, because it is about to end the workers."""
        self._look()
        return self._orders.n_saves > self._n_saved

    def saved(self) -> None:
        """Tell that a checkpoint is on disk."""
        self._n_saved = self._orders.n_saves
        self._collector.saved.remote()

    def flush(self) -> None:
        """Send what is left."""
        ray.get(self._collector.tell.remote(self._unsent), timeout=ANSWER_S)

    def _look(self) -> None:
        if self._pending is None or not ray.wait([self._pending], timeout=0)[0]:
            return
        self._orders = ray.get(self._pending)
        self._pending = None
