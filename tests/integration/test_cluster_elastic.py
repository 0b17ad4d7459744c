"""A node that goes and one that comes: the run goes on with those that are there."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_hosts import SCRIPT, Hosts
from training_jobs import assert_close_runs, assert_each_cell_once, told_steps, toy_cells, toy_job

from scvi_dist.train.checkpoint import MANIFEST
from scvi_dist.train.fit import fit

pytestmark = [
    pytest.mark.fault,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

LIMIT_S = 900.0
SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "max_epochs": 6,
    "checkpoint_every_n_steps": 5,
    "log_every_n_steps": 2,
}
# A worker takes a host to itself. Alone it is slow, so that the other has time to come back.
DRIVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import logging, torch, training_jobs
from ray import cloudpickle
from training_jobs import toy_job
from scvi_dist.train import ray_train
from scvi_dist.train.configs import RayConfig
cells, folder, address = sys.argv[1:]
logging.basicConfig(level=logging.WARNING)
cloudpickle.register_pickle_by_value(training_jobs)
job = toy_job(cells, job={{"run_dir": folder + "/run", "resume": True}}, **{SETTINGS!r})
job.module.folder, job.module.pace_s = folder + "/told", {{"1": 1.0}}
config = RayConfig(
    num_workers=(1, 2),
    resources_per_worker={{"CPU": 2}},
    placement_strategy="SPREAD",
    address=address,
    resize_interval_s=2,
)
recoveries = []
def note(progress):
    if progress.recovery_s is not None:
        recoveries.append((progress.workers, progress.recovery_s))
result = ray_train.run(job, config, note)
torch.save({{"result": result, "recoveries": recoveries}}, folder + "/result.pt")
"""


def wait_until(condition: Callable[[], Any], driver: "subprocess.Popen[Any]") -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
    return found


def test_a_run_outlives_a_node_and_takes_it_back(hosts: Hosts, tmp_path: Path) -> None:
    cells, told = tmp_path / "cells.h5ad", tmp_path / "told"
    toy_cells().write_h5ad(cells)
    told.mkdir()
    code = tmp_path / "driver.py"
    code.write_text(DRIVER)
    command = [str(SCRIPT), "run", "head", sys.executable, str(code), str(cells), str(tmp_path)]
    driver = subprocess.Popen([*command, f"{hosts.head}:6379"], env=hosts.environment)
    try:
        wait_until(lambda: list((tmp_path / "run").glob(f"*/step-*/{MANIFEST}")), driver)
        hosts.change("kill", "worker2")
        wait_until(lambda: [s for s in told_steps(told) if s["world"] == 1], driver)
        hosts.change("up")
        assert driver.wait(LIMIT_S) == 0
    finally:
        driver.kill()
    found = torch.load(tmp_path / "result.pt", weights_only=False)
    worlds = list({s["attempt"]: s["world"] for s in told_steps(told)}.values())
    print(f"worlds {worlds}, recoveries {found['recoveries']}")
    assert worlds == [2, 1, 2]
    assert [workers for workers, _ in found["recoveries"]] == [1, 2]
    job = toy_job(cells, **SETTINGS)
    undisturbed = fit(job)
    assert_close_runs(found["result"], undisturbed, rtol=1e-4)
    assert_each_cell_once(told, job, undisturbed.steps)
