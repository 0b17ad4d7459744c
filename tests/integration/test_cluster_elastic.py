"""Nodes that go, come, or say that they will go: the run goes on with those that are there."""

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
    "checkpoint_every_n_steps": 20,
    "log_every_n_steps": 2,
}
# A worker takes a host to itself. Steps are slow, so that there is time for what happens to nodes.
PACE_S = {"1": 1.0, "2": 0.25}
NOTICE_S = 5
DRIVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import logging, pathlib, threading, time, torch, ray, training_jobs
from ray import cloudpickle
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from training_jobs import toy_job
from scvi_dist.train import ray_train
from scvi_dist.train.configs import RayConfig
cells, folder, address = sys.argv[1:]
logging.basicConfig(level=logging.WARNING)
cloudpickle.register_pickle_by_value(training_jobs)
job = toy_job(cells, job={{"run_dir": folder + "/run", "resume": True}}, **{SETTINGS!r})
job.module.folder, job.module.pace_s = folder + "/told", {PACE_S!r}
job.module.hurry = folder + "/hurry"
config = RayConfig(
    num_workers=(1, 2),
    resources_per_worker={{"CPU": 2}},
    placement_strategy="SPREAD",
    address=address,
    resize_interval_s=2,
)

def announce_the_end_of_a_node():
    # As clouds do for machines that they take back.
    while not pathlib.Path(folder, "drain").exists():
        time.sleep(0.05)
    (node,) = [n for n in ray.nodes() if n["Alive"] and n["NodeManagerHostname"] == "worker2"]
    why = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    ends_ms = int(1000 * (time.time() + {NOTICE_S}))
    accepted, _ = ray._raylet.GcsClient(address).drain_node(node["NodeID"], why, "spot", ends_ms)
    pathlib.Path(folder, "announced" if accepted else "refused").touch()

threading.Thread(target=announce_the_end_of_a_node, daemon=True).start()
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


def worlds(told: Path) -> list[int]:
    """Workers of each attempt, in order."""
    return list({step["attempt"]: step["world"] for step in told_steps(told)}.values())


def steps_of(told: Path, number: int) -> list[int]:
    """What an attempt has done."""
    attempt = list(dict.fromkeys(step["attempt"] for step in told_steps(told)))[number]
    return [step["step"] for step in told_steps(told) if step["attempt"] == attempt]


def test_a_run_outlives_a_node_takes_it_back_and_leaves_it_in_time(
    hosts: Hosts, tmp_path: Path
) -> None:
    cells, told = tmp_path / "cells.h5ad", tmp_path / "told"
    toy_cells().write_h5ad(cells)
    told.mkdir()
    code = tmp_path / "driver.py"
    code.write_text(DRIVER)
    command = [str(SCRIPT), "run", "head", sys.executable, str(code), str(cells), str(tmp_path)]
    quick = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
    driver = subprocess.Popen([*command, f"{hosts.head}:6379"], env=hosts.environment | quick)
    try:
        wait_until(lambda: list((tmp_path / "run").glob(f"*/step-*/{MANIFEST}")), driver)
        hosts.change("kill", "worker2")
        wait_until(lambda: worlds(told) == [2, 1], driver)
        hosts.change("up")
        wait_until(lambda: worlds(told) == [2, 1, 2], driver)
        done = max(steps_of(told, 2))
        (tmp_path / "drain").touch()
        wait_until(lambda: worlds(told) == [2, 1, 2, 1], driver)
        (tmp_path / "hurry").touch()
        assert driver.wait(LIMIT_S) == 0
    finally:
        driver.kill()
        # A node that was to go takes no work any more.
        hosts.change("kill", "worker2")
    assert (tmp_path / "announced").exists()
    found = torch.load(tmp_path / "result.pt", weights_only=False)
    print(f"recoveries {found['recoveries']}")
    assert [workers for workers, _ in found["recoveries"]] == [1, 2, 1]
    # A checkpoint was written before the workers were ended for more of them, and at the notice.
    # At most the step that was under way is made again.
    assert min(steps_of(told, 2)) >= max(steps_of(told, 1))
    assert min(steps_of(told, 3)) > done
    job = toy_job(cells, **SETTINGS)
    undisturbed = fit(job)
    assert_close_runs(found["result"], undisturbed, rtol=1e-4)
    assert_each_cell_once(told, job, undisturbed.steps)
