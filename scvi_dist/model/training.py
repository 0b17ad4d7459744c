"""A training job, and its run: in this process or on Ray workers."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.schema_pass import protein_reader
from scvi_dist.data.store import StoreLocator
from scvi_dist.dataloaders.labelled_cells import LabelledConfig, is_labelled
from scvi_dist.dataloaders.loader import make_plan, training_part
from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.dataloaders.sampling_config import SamplingConfig
from scvi_dist.dataloaders.source import CellSource, OpenSource, is_in_memory
from scvi_dist.dataloaders.split import (
    Split,
    SplitConfig,
    split_by_label,
    split_rows,
    uses_hash,
)
from scvi_dist.errors import ConfigError, StoreError
from scvi_dist.module.base import BaseModule
from scvi_dist.train.configs import RayConfig, TrainConfig, TrainingPlanConfig

if TYPE_CHECKING:
    from scvi_dist.tracking import Tracker, TrackingConfig
    from scvi_dist.train.fit_job import FitResult
    from scvi_dist.train.progress import OnProgress


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a model is trained: the configs of those who do the work, side by side."""

    train: TrainConfig
    plan: TrainingPlanConfig
    split: SplitConfig | Split
    loader: LoaderConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Which training cells an epoch draws, and how often; by default each once."""
    labelled: LabelledConfig | None = None
    """Learn from labels too, and split cells with and without a label apart; ``None``: do not."""
    ray: RayConfig | None = None
    """Train on Ray workers; ``None``: in this process."""
    run_dir: str | None = None
    """Where checkpoints go; on a disk that all hosts see where there are several."""
    resume: bool = False
    """Go on from the last checkpoint in ``run_dir``."""

    def __post_init__(self) -> None:
        if self.ray is not None and self.run_dir is None:
            raise ConfigError("training on workers needs run_dir, a folder for checkpoints.")


def run(
    module: BaseModule,
    manager: AnnDataManager,
    settings: FitSettings,
    *,
    check_counts: bool = True,
    tracker: "Tracker | None" = None,
    on_progress: "OnProgress | None" = None,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
) -> "tuple[FitResult, Split]":
    """Train a module on a manager's cells.

    In this process the module is trained in place; from workers its weights come back in the
    result.

    Parameters
    ----------
    callbacks, loggers
        Lightning's; only in this process.

    Warns
    -----
    WarmUpWarning
        Training ends before the warm-up of the KL divergence.
    PrecisionWarning
        Mixed precision is asked for where it gains nothing.
    """
    from scvi_dist.train.fit_job import FitJob
    from scvi_dist.train.precision import warn_of_mixed_precision
    from scvi_dist.train.warm_up import warn_of_unfinished_warm_up

    split = _split_of(manager, settings)
    locator, loader = _reachable(manager, settings, split)
    job = FitJob(
        module=module,
        source=CellSource(locator, manager.schema, check_counts),
        split=split,
        loader=loader,
        train=settings.train,
        plan=settings.plan,
        labelled=settings.labelled,
        sampling=settings.sampling,
        run_dir=settings.run_dir,
        tracking=None if tracker is None else tracker.ref,
        resume=settings.resume,
    )
    warn_of_unfinished_warm_up(job)
    warn_of_mixed_precision(job.train)
    if settings.ray is None:
        return _run_here(job, tracker, on_progress, callbacks, loggers), split
    if callbacks or loggers:
        what = "callbacks" if callbacks else "loggers"
        raise ConfigError(f"{what} do not reach workers: train in this process to use them.")
    from scvi_dist.train import ray_train

    return ray_train.run(job, settings.ray, on_progress), split


def _split_of(manager: AnnDataManager, settings: FitSettings) -> Split:
    """Which cells train and validate."""
    given, batch_size = settings.split, settings.train.batch_size
    if isinstance(given, Split):
        return given
    n_obs = manager.store.n_obs
    if settings.labelled is None or uses_hash(n_obs, given):
        # A keyed hash takes the same share of labelled cells but for chance.
        return split_rows(n_obs, given, batch_size)
    cells = OpenSource(manager.store, manager.schema, coded_obs=manager.coded_obs())
    return split_by_label(np.concatenate(list(is_labelled(cells))), given, batch_size)


def _run_here(
    job: Any,
    tracker: "Tracker | None",
    on_progress: "OnProgress | None",
    callbacks: Sequence[Any],
    loggers: Sequence[Any],
) -> "FitResult":
    from scvi_dist.tracking import NullTracker
    from scvi_dist.train.configs import World
    from scvi_dist.train.fit import fit
    from scvi_dist.train.fit_job import TrainerExtras

    extras = TrainerExtras(callbacks=tuple(callbacks), loggers=tuple(loggers))
    return fit(job, World(), tracker or NullTracker(), on_progress, extras)


def _reachable(
    manager: AnnDataManager, settings: FitSettings, split: Split
) -> tuple[StoreLocator, LoaderConfig]:
    """Where those who train find the cells: workers cannot see into this process's memory."""
    locator, loader = manager.store.locator, settings.loader
    if settings.ray is None or not is_in_memory(locator):
        return locator, loader
    from scvi_dist.data.open import open_store
    from scvi_dist.data.writing.writer import write_zarr

    assert settings.run_dir is not None, "checked with the settings"
    path = Path(settings.run_dir) / "data" / f"{_name_of(manager)}.zarr"
    try:
        copy = open_store(path)
    except StoreError:
        # Not there, or only in part: its root is marked last.
        path.parent.mkdir(parents=True, exist_ok=True)
        write_zarr(manager.store, path, overwrite=True)
        copy = open_store(path)
    # The order of cells follows from the blocks, and is to be the order without workers.
    plan = make_plan(
        split.train,
        manager.store,
        training_part(loader, manager.store.n_obs),
        batch_size=settings.train.batch_size,
        dense_bytes=manager.schema.dense_bytes_per_cell,
    )
    return copy.locator, replace(loader, block_rows=plan.config.block_rows)


def _name_of(manager: AnnDataManager) -> str:
    """16 hex digits of all that is read of these cells: counts, columns of obs, proteins."""
    facts = [manager.store.digest(), manager.schema.digest(), manager.coded_obs().digest()]
    if manager.schema.n_proteins:
        reader = protein_reader(manager.store, manager.schema.setup, manager.schema.protein_names)
        facts.append(reader.digest())
    return blake2b(" ".join(facts).encode(), digest_size=8).hexdigest()


def starts_record(tracking: "Tracker | TrackingConfig | str | None") -> bool:
    """Whether a new record is made, which needs a folder; a tracker has its own."""
    from scvi_dist.tracking import Tracker

    return tracking is not None and not isinstance(tracking, Tracker)


@contextmanager
def tracked(
    tracking: "Tracker | TrackingConfig | str | None",
    run_name: str,
    run_dir: str | os.PathLike[str] | None,
    describe: "Callable[[Tracker], None]",
) -> "Iterator[Tracker | None]":
    """The tracker that an argument means; one that is made here is described and ended here."""
    from scvi_dist.tracking import Tracker, TrackingConfig

    if tracking is None or isinstance(tracking, Tracker):
        yield tracking
        return
    if isinstance(tracking, str):
        tracking = TrackingConfig(uri=tracking, run_name=run_name)
    assert run_dir is not None, "a run that is recorded has a folder"
    tracker = Tracker.start_run(tracking, run_dir)
    status = "FAILED"
    try:
        describe(tracker)
        yield tracker
        status = "FINISHED"
    finally:
        tracker.finish(status)


def record_setup(
    tracker: "Tracker", manager: AnnDataManager, settings: FitSettings, init_params: Any
) -> None:
    """Put what a run is made of on record."""
    store = manager.store
    tracker.log_params(
        {
            "model": init_params,
            "setup": manager.schema.setup,
            "train": settings.train,
            "plan": settings.plan.facts(),
            "loader": settings.loader,
            "data": dict(manager.summary_stats),
        }
    )
    url = store.locator.redacted_url
    profile = {**manager.summary_stats, "schema": manager.schema.digest()}
    tracker.log_dataset(Path(url).name or url, url, store.digest(), profile)
