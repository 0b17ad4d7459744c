"""A process that is killed costs the steps since its last checkpoint, and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import training_jobs
from fault_proxy import Fault, fault_proxy
from range_server import range_server
from training_jobs import (
    assert_close_runs,
    assert_each_cell_once,
    told_steps,
    toy_cells,
    toy_job,
)

from scvi_dist.errors import TrainingFailed, WaitTimeout
from scvi_dist.train.checkpoint import MANIFEST, checkpoints_dir, latest_checkpoint
from scvi_dist.train.configs import RayConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, FitResult
from scvi_dist.train.progress import TrainProgress

pytestmark = [
    pytest.mark.fault,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "max_epochs": 6,
    "check_val_every_n_epoch": 2,
    "checkpoint_every_n_steps": 5,
    "log_every_n_steps": 5,
}
PACE_S = {"2": 0.03}
"""Steps of two workers take so long that they are met at work."""
WORKERS = RayConfig(num_workers=2, resources_per_worker={"CPU": 1})
LIMIT_S = 900.0

CHILD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch, training_jobs
from ray import cloudpickle
from training_jobs import toy_job
from scvi_dist.train.configs import RayConfig
from scvi_dist.train.fit import fit
torch.set_num_threads(1)
cells, run_dir, told, address = sys.argv[1:]
job = toy_job(cells, job={{"run_dir": run_dir, "resume": True}}, **{SETTINGS!r})
job.module.folder, job.module.pace_s = told, {PACE_S!r}
if not address:
    fit(job)
else:
    from scvi_dist.train import ray_train
    cloudpickle.register_pickle_by_value(training_jobs)
    config = RayConfig(num_workers=2, resources_per_worker={{"CPU": 1}}, address=address)
    ray_train.run(job, config)
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    toy_cells().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(cells: Path) -> FitResult:
    return fit(toy_job(cells, **SETTINGS))


@pytest.fixture(scope="module")
def workers(local_ray: None) -> Iterator[None]:
    """Workers find only what is installed: what a test defines has to travel."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(training_jobs)
    yield
    cloudpickle.unregister_pickle_by_value(training_jobs)


def told_job(cells: Any, folder: Path, **more: Any) -> FitJob:
    """A job that goes on from what is in a folder, and tells there what it does."""
    (folder / "told").mkdir(exist_ok=True)
    job = toy_job(cells, job={"run_dir": str(folder / "run"), "resume": True}, **SETTINGS, **more)
    job.module.folder = str(folder / "told")
    return job


def newest_step(run_dir: Path) -> int:
    """Step of the newest manifest; -1 before there is one."""
    found = [p.parent.name for p in checkpoints_dir(run_dir).glob(f"step-*/{MANIFEST}")]
    return max((int(name.removeprefix("step-")) for name in found), default=-1)


def wait_until(condition: Callable[[], Any], goes_on: Callable[[], bool] = lambda: True) -> Any:
    """What the condition gives once it is true; fails when it cannot come true any more."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert goes_on()
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)
    return found


def end_driver(cells: Path, folder: Path, step: int, signum: int, address: str = "") -> int:
    """Train in a process of its own until a checkpoint of ``step`` is there, and end that process.

    Its exit status.
    """
    (folder / "told").mkdir(exist_ok=True)
    arguments = [str(cells), str(folder / "run"), str(folder / "told"), address]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments])
    try:
        wait_until(lambda: newest_step(folder / "run") >= step, lambda: child.poll() is None)
        child.send_signal(signum)
        return child.wait(timeout=LIMIT_S)
    finally:
        child.kill()


# --- workers and readers --------------------------------------------------------------------------


def training_workers(told: Path, job: FitJob, n_ended: int) -> list[int]:
    """Processes that train for a job, after others did that have ended so often."""
    steps = [s for s in told_steps(told) if s["attempt"].startswith(job.module.job_name)]
    attempts = list(dict.fromkeys(step["attempt"] for step in steps))
    return [step["pid"] for step in steps if [step["attempt"]] == attempts[n_ended:]]


def busy_readers(told: Path, job: FitJob, n_ended: int) -> list[int]:
    """Processes that read for Ray Data at this moment."""
    titles = {p.pid: p.info["cmdline"] for p in psutil.process_iter(["cmdline"])}
    return [pid for pid, title in titles.items() if title and title[0].startswith("ray::Read")]


@dataclass(frozen=True)
class ProcessFault:
    """What is done to one of which processes; when: a checkpoint of a step is on disk."""

    victims: Callable[[Path, FitJob, int], list[int]]
    after_step: int
    signum: int = signal.SIGKILL
    restarts: bool = True
    """Whether all workers start anew."""


@dataclass(frozen=True)
class Story:
    """What happens to a run, in this order."""

    faults: list[ProcessFault]
    kills_driver: bool = False
    """The run was begun by a driver that is dead now."""
    engine: str = "local"


STORIES = {
    "the driver is killed, a worker is killed, one is told to stop": Story(
        [
            ProcessFault(training_workers, after_step=50),
            ProcessFault(training_workers, after_step=110, signum=signal.SIGTERM),
        ],
        kills_driver=True,
    ),
    "a reader is killed": Story(
        [ProcessFault(busy_readers, after_step=5, restarts=False)], engine="ray"
    ),
}


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_processes_that_end_cost_nothing(
    story: Story, cells: Path, undisturbed: FitResult, tmp_path: Path
) -> None:
    import ray

    from scvi_dist.train import ray_train

    ended: list[int] = []
    told: list[TrainProgress] = []

    address = ray.get_runtime_context().gcs_address
    if story.kills_driver:
        assert end_driver(cells, tmp_path, 10, signal.SIGKILL, address) == -signal.SIGKILL

    def end_them(job: FitJob) -> None:
        for fault in story.faults:
            wait_until(lambda step=fault.after_step: newest_step(tmp_path / "run") >= step)
            found = wait_until(lambda find=fault.victims: find(tmp_path / "told", job, len(ended)))
            os.kill(found[0], fault.signum)
            ended.append(found[0])

    # Behind a slow web server a reader is busy long enough to be met at work.
    with range_server(cells.parent) as (host, port), fault_proxy(host, port) as proxy:
        source: Any = cells
        if story.engine == "ray":
            proxy.faults.append(Fault("delay", match=cells.name, delay_s=0.05))
            source = f"{proxy.url}/{cells.name}"
        job = told_job(source, tmp_path)
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        loader = replace(
            job.loader, engine=story.engine, readers=1, reader_cpus=0.5, reader_labels=here
        )
        job = replace(job, loader=loader)
        job.module.pace_s = PACE_S
        killer = threading.Thread(target=end_them, args=(job,))
        killer.start()
        # At once, though the workers of a dead driver may not have noticed yet.
        result = ray_train.run(job, WORKERS, told.append)
        killer.join(LIMIT_S)
    assert len(set(ended)) == len(story.faults)
    restarts = sum(fault.restarts for fault in story.faults)
    attempts = {line["attempt"] for line in told_steps(tmp_path / "told")}
    assert len(attempts) == 1 + story.kills_driver + restarts
    recoveries = [p.recovery_s for p in told if p.recovery_s is not None]
    print(f"went on after {recoveries} s")
    assert len(recoveries) == restarts
    assert_close_runs(result, undisturbed, rtol=1e-4)
    assert_each_cell_once(tmp_path / "told", job, undisturbed.steps)


@pytest.mark.usefixtures("workers")
def test_an_error_of_one_rank_ends_all_and_is_told_first(cells: Path, tmp_path: Path) -> None:
    from scvi_dist.train import ray_train

    job = told_job(cells, tmp_path)
    job.module.fails = ("1", 23)
    with pytest.raises(TrainingFailed, match="Rank 1 failed: ValueError: bad luck") as failed:
        # The others would wait for rank 1 for half an hour.
        ray_train.run(job, replace(WORKERS, collective_timeout_s=1800))
    ended_s = time.time()
    notes = "\n".join(failed.value.__notes__)
    assert "Traceback of rank 1" in notes
    assert "The model has the weights of step 20" in notes
    good = latest_checkpoint(tmp_path / "run")
    assert good is not None
    assert good.cursor.global_step == 20
    lines = told_steps(tmp_path / "told")
    assert len({line["attempt"] for line in lines}) == 1, "it was not tried again"
    raised_s = max(line["time"] for line in lines if line["step"] == 23)
    print(f"the run ended {ended_s - raised_s:.1f} s after the error")
    assert ended_s - raised_s < 120
    wait_until(lambda: not any(psutil.pid_exists(line["pid"]) for line in lines))


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize(
    ("workers", "told"),
    [
        (
            {"num_workers": 5},
            r"5 worker\(s\) with 1 CPU each; the cluster has .* with 4 CPU, 2 reader",
        ),
        (
            {"worker_labels": {"role": "nowhere"}},
            r"2 worker\(s\) with 1 CPU each on nodes labelled role=nowhere; the cluster has",
        ),
    ],
    ids=["too many", "of no node"],
)
def test_workers_that_cannot_be_had_are_waited_for_no_longer_than_asked(
    cells: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: dict[str, Any],
    told: str,
) -> None:
    import ray

    from scvi_dist.train import ray_train

    # Ray Train looks for places for ten seconds before anyone is asked whether to go on.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    address = ray.get_runtime_context().gcs_address
    in_vain = replace(WORKERS, address=address, start_timeout_s=1, **workers)
    with pytest.raises(WaitTimeout, match=rf"waited \d+ s for {told}"):
        ray_train.run(told_job(cells, tmp_path), in_vain)


# --- drivers, and runs without workers ------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)]
)
def test_a_process_that_is_ended_resumes_at_the_next_batch(
    cells: Path, undisturbed: FitResult, tmp_path: Path, signum: int, status: int
) -> None:
    last = -1
    for step in (20, 90):
        assert end_driver(cells, tmp_path, step, signum) == status
        found = latest_checkpoint(tmp_path / "run")
        assert found is not None
        assert last < found.cursor.global_step < undisturbed.steps
        last = found.cursor.global_step
    job = told_job(cells, tmp_path)
    assert_close_runs(fit(job), undisturbed, rtol=0)
    assert_each_cell_once(tmp_path / "told", job, undisturbed.steps)
