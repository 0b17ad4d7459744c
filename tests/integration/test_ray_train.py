"""Ray Train's workers train what one process trains, and tell the driver what happens."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import training_jobs
from training_jobs import assert_close_runs, toy_cells, toy_job

from scvi_dist.errors import BadCounts, ConfigError, OutputExists
from scvi_dist.train.checkpoint import latest_checkpoint
from scvi_dist.train.configs import EarlyStoppingConfig, RayConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, FitResult
from scvi_dist.train.progress import OnProgress, TrainProgress

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

WORKERS = RayConfig(num_workers=2, resources_per_worker={"CPU": 1.5})
STOPPING = EarlyStoppingConfig(patience=2, min_delta=1e9)


def run(
    job: FitJob, on_progress: OnProgress | None = None, workers: RayConfig = WORKERS
) -> FitResult:
    from scvi_dist.train import ray_train

    return ray_train.run(job, workers, on_progress)


@pytest.fixture(scope="module", autouse=True)
def modules_of_the_tests(local_ray: None) -> Iterator[None]:
    """Workers find only what is installed: what a test defines has to travel."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(training_jobs)
    yield
    cloudpickle.unregister_pickle_by_value(training_jobs)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    toy_cells().write_h5ad(path)
    return path


def test_two_workers_end_where_one_process_ends(cells: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "batch_size": 25,
        "max_epochs": 9,
        "early_stopping": STOPPING,
        "checkpoint_every_n_steps": 4,
        "log_every_n_steps": 2,
    }
    seen: list[TrainProgress] = []
    job = toy_job(cells, **settings, job={"run_dir": str(tmp_path)})
    job = replace(job, loader=replace(job.loader, engine="ray", readers=1))
    alone = fit(toy_job(cells, **settings))
    together = run(job, seen.append)
    assert alone.stopped_early
    assert_close_runs(together, alone)
    assert together.checkpoint == str(latest_checkpoint(tmp_path).path)
    assert [p.epoch for p in seen if p.epoch_ended] == [1, 2, 3]
    assert seen[-1].metrics["elbo_validation"] == together.history["elbo_validation"][-1][1]
    with pytest.raises(OutputExists):
        run(job)


def test_sigterm_to_the_driver_stops_the_workers_where_they_can_go_on(
    cells: Path, tmp_path: Path
) -> None:
    def job(**settings: Any) -> FitJob:
        return toy_job(cells, max_epochs=400, **settings)

    before = signal.getsignal(signal.SIGTERM)
    told = threading.Event()

    def stop(progress: TrainProgress) -> None:
        if not told.is_set():
            told.set()
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = run(job(job={"run_dir": str(tmp_path)}), stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.interrupted
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert 0 < found.cursor.global_step == stopped.steps < 2000
    limit = {"max_epochs": None, "max_steps": stopped.steps + 3}
    resumed = fit(toy_job(cells, **limit, job={"run_dir": str(tmp_path), "resume": True}))
    assert_close_runs(resumed, fit(toy_job(cells, **limit)), rtol=1e-4)


def test_what_a_worker_cannot_do_is_told_once_and_in_its_words(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    adata = toy_cells()
    adata.X.data[17] = -3.0
    adata.write_h5ad(path)
    job = toy_job(path, job={"run_dir": str(tmp_path / "run")})
    with pytest.raises(BadCounts, match="negative") as error:
        run(job, workers=replace(WORKERS, num_workers=1))
    note = "\n".join(error.value.__notes__)
    assert "Traceback of rank" in note
    assert "raise BadCounts" in note


def test_what_cannot_work_is_refused_before_anything_starts(cells: Path) -> None:
    from scvi_dist.train import ray_train

    with pytest.raises(ConfigError, match="in this process's memory"):
        run(toy_job(toy_cells()))
    many = RayConfig(num_workers=99)
    with pytest.raises(ConfigError, match=r"99 workers .* need 99 CPU, but the Ray .* has 4"):
        ray_train.run(toy_job(cells), many)
