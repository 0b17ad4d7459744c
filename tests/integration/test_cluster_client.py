"""A notebook outside of a cluster trains on it by ``address="ray://…"``, again and again.

Needs root and network namespaces; the hosts are those of ``cluster/local.sh``.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from local_hosts import Hosts, run
from training_jobs import toy_cells

from scvi_dist.model import SCVI

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ARGUMENTS: dict[str, Any] = {
    "max_epochs": 2,
    "batch_size": 26,
    "check_val_every_n_epoch": 1,
    "accelerator": "cpu",
}
SPREAD: dict[str, Any] = {"placement_strategy": "SPREAD"}
READERS = {
    "readers": 1,
    "reader_cpus": 0.5,
    "reader_resources": {"reader": 1},
    "reader_labels": {"role": "reader"},
    "object_store_bytes": 50_000_000,
}
RUNS: list[dict[str, Any]] = [
    # Both workers on one host, by its label, and those that read for them on the other.
    {
        "num_workers": 2,
        "ray": {**SPREAD, "worker_labels": {"role": "trainer"}},
        "engine": "ray",
        "loader": READERS,
    },
    # Each worker on a host of its own.
    {"num_workers": 2, "ray": SPREAD, "engine": "local"},
]

NOTEBOOK = f"""
import socket, sys, time, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
import ray, torch
from ray.util.client import worker as ray_client
from ray.util.state import list_actors, list_tasks
from test_cluster_client import ARGUMENTS, RUNS, model_of
from training_jobs import toy_cells
from scvi_dist.errors import ClusterUnreachable, ConfigError

path, folder, head = sys.argv[1:]
there = f"ray://{{head}}:10001"
found, told = [], []
# A file that the hosts see too, and cells in the memory of this process.
for number, cells in enumerate((path, toy_cells())):
    seen = []
    model = model_of(cells, number)
    model.train(
        **ARGUMENTS, **RUNS[number], address=there, run_dir=f"{{folder}}/run{{number}}",
        on_progress=seen.append,
    )
    found.append((model.module.state_dict(), model.history, model.get_latent_representation()))
    told.append((seen[-1].fraction, seen[-1].workers))

roles = {{node["NodeID"]: node["Labels"].get("role", "head") for node in ray.nodes()}}
mine = [("job_id", "=", ray.get_runtime_context().get_job_id())]
at = {{"address": f"http://{{head}}:8265", "filters": mine, "limit": 10_000}}
workers = sorted(roles[a.node_id] for a in list_actors(**at) if a.class_name == "RayTrainWorker")
# Ray tells of a task seconds after it.
deadline = time.monotonic() + 60
while not (reads := [t for t in list_tasks(**at, detail=True) if t.name.startswith("Read")]):
    assert time.monotonic() < deadline
reads = [(roles[t.node_id], t.required_resources) for t in reads if t.node_id]

def refusal(kind, address):
    try:
        model_of(path, 0).train(**ARGUMENTS, address=address, run_dir=f"{{folder}}/none")
    except kind as error:
        return str(error)

refused = [refusal(ConfigError, f"ray://{{head}}:10002")]
ray.shutdown()
refused.append(refusal(ClusterUnreachable, f"ray://{{head}}:9"))
# Ray would wait for half a minute for an answer.
ray_client.INITIAL_TIMEOUT_SEC = ray_client.MAX_TIMEOUT_SEC = 1
with socket.create_server(("127.0.0.1", 0)) as deaf:
    refused.append(refusal(ClusterUnreachable, f"ray://127.0.0.1:{{deaf.getsockname()[1]}}"))
# What could not be reached is not asked for anything later.
here = model_of(path, 0)
here.train(**ARGUMENTS, engine="local")
assert not ray.is_initialized()
torch.save(
    {{"found": found, "told": told, "workers": workers, "reads": reads, "refused": refused}},
    f"{{folder}}/found.pt",
)
"""


def model_of(cells: Any, number: int) -> SCVI:
    SCVI.setup_anndata(cells, batch_key="batch")
    torch.manual_seed(0)
    return SCVI(cells, n_hidden=8, n_latent=3 + number)


def test_models_are_trained_one_after_the_other_over_rays_client(
    hosts: Hosts, tmp_path: Path
) -> None:
    cells = tmp_path / "cells.h5ad"
    toy_cells().write_h5ad(cells)
    command = [sys.executable, "-c", NOTEBOOK, str(cells), str(tmp_path), hosts.head]
    done = run(command, hosts.shell(), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    notebook = torch.load(tmp_path / "found.pt", weights_only=False)
    assert notebook["told"] == [(1.0, 2)] * len(RUNS)
    for number, (weights, history, z_nk) in enumerate(notebook["found"]):
        here = model_of(cells, number)
        here.train(**ARGUMENTS)
        torch.testing.assert_close(weights, here.module.state_dict(), rtol=1e-4, atol=1e-5)
        assert history.keys() == here.history.keys()
        for name, values in here.history.items():
            torch.testing.assert_close(
                torch.tensor(history[name].to_numpy()),
                torch.tensor(values.to_numpy()),
                rtol=1e-4,
                atol=1e-5,
            )
        torch.testing.assert_close(
            torch.tensor(z_nk), torch.tensor(here.get_latent_representation()), rtol=1e-3, atol=1e-4
        )
    assert notebook["workers"] == ["reader", "trainer", "trainer", "trainer"]
    assert {role for role, _ in notebook["reads"]} == {"reader"}
    for _, resources in notebook["reads"]:
        assert (resources["reader"], resources["CPU"]) == (1, 0.5)
    another, closed, deaf = notebook["refused"]
    assert "connected to another Ray than" in another
    assert "no Ray cluster answers at" in closed
    assert "refused" in closed
    assert "no Ray cluster lets this process join at" in deaf
