"""A process that is killed costs the steps since its last checkpoint, and nothing else."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import training_jobs
from training_jobs import assert_close_runs, toy_cells, toy_job

from scvi_dist.train.checkpoint import MANIFEST, checkpoints_dir, latest_checkpoint
from scvi_dist.train.configs import RayConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.progress import TrainProgress

pytestmark = [pytest.mark.fault, pytest.mark.integration]

SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "max_epochs": 8,
    "check_val_every_n_epoch": 2,
    "checkpoint_every_n_steps": 5,
}
LIMIT_S = 300.0

CHILD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from training_jobs import toy_job
from scvi_dist.train.fit import fit
torch.set_num_threads(1)
fit(toy_job(sys.argv[1], job={{"run_dir": sys.argv[2], "resume": True}}, **{SETTINGS!r}))
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    toy_cells().write_h5ad(path)
    return path


def newest_step(run_dir: Path) -> int:
    """Step of the newest manifest; -1 before there is one."""
    folder = checkpoints_dir(run_dir)
    found = [p.parent.name for p in folder.glob(f"step-*/{MANIFEST}")]
    return max((int(name.removeprefix("step-")) for name in found), default=-1)


def kill_after(run_dir: Path, cells: Path, step: int) -> None:
    """Train in a process of its own and kill it once a checkpoint of ``step`` or later is there."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(cells), str(run_dir)])
    try:
        for _ in range(int(LIMIT_S / 0.002)):
            if newest_step(run_dir) >= step:
                break
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(timeout=0.002)
    finally:
        child.kill()
    assert child.wait(timeout=LIMIT_S) == -signal.SIGKILL


@pytest.mark.slow
def test_a_process_that_is_killed_resumes_at_the_next_batch(cells: Path, tmp_path: Path) -> None:
    undisturbed = fit(toy_job(cells, **SETTINGS))
    last = -1
    for step in (20, 130):
        kill_after(tmp_path, cells, step)
        found = latest_checkpoint(tmp_path)
        assert found is not None
        assert last < found.cursor.global_step < undisturbed.steps
        last = found.cursor.global_step
    job = toy_job(cells, job={"run_dir": str(tmp_path), "resume": True}, **SETTINGS)
    assert_close_runs(fit(job), undisturbed, rtol=0)


@pytest.fixture
def tests_travel(frail_ray: None) -> Iterator[None]:
    """Workers find only what is installed: what a test defines has to travel."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(training_jobs)
    yield
    cloudpickle.unregister_pickle_by_value(training_jobs)


@pytest.mark.slow
@pytest.mark.usefixtures("tests_travel")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_ray_worker_that_is_killed_is_replaced(cells: Path, tmp_path: Path) -> None:
    from scvi_dist.train import ray_train

    pids, run_dir = tmp_path / "pids", tmp_path / "run"
    pids.mkdir()
    job = toy_job(cells, job={"run_dir": str(run_dir)}, **SETTINGS)
    job.module.folder = str(pids)
    killed: list[int] = []

    def kill_one(progress: TrainProgress) -> None:
        if not killed and newest_step(run_dir) > 0:
            killed.extend(int(p.name) for p in pids.iterdir())
            os.kill(killed[0], signal.SIGKILL)

    result = ray_train.run(job, RayConfig(num_workers=2, resources_per_worker={"CPU": 1}), kill_one)
    assert len(killed) == 2
    assert len(list(pids.iterdir())) == 4, "both workers were started anew"
    assert_close_runs(result, fit(toy_job(cells, **SETTINGS)), rtol=1e-4)
