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
N_LATENT = (3, 4)

NOTEBOOK = f"""
import socket, sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
import ray, torch
from ray.util.client import worker as ray_client
from test_cluster_client import ARGUMENTS, N_LATENT, model_of
from training_jobs import toy_cells
from scvi_dist.errors import ClusterUnreachable, ConfigError

path, folder, head = sys.argv[1:]
there = f"ray://{{head}}:10001"
# A file that the hosts see too, and cells in the memory of this process; one worker, and two that
# are on hosts of their own.
cells = (path, toy_cells())
workers = ({{"num_workers": 1}}, {{"num_workers": 2, "ray": {{"placement_strategy": "SPREAD"}}}})
found, told = [], []
for number, n_latent in enumerate(N_LATENT):
    seen = []
    model = model_of(cells[number], n_latent)
    model.train(
        **ARGUMENTS, **workers[number], address=there, run_dir=f"{{folder}}/run{{number}}",
        on_progress=seen.append,
    )
    found.append((model.module.state_dict(), model.history, model.get_latent_representation()))
    told.append((seen[-1].fraction, seen[-1].workers))

def refusal(kind, address):
    try:
        model_of(path, 3).train(**ARGUMENTS, address=address, run_dir=f"{{folder}}/none")
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
here = model_of(path, 3)
here.train(**ARGUMENTS, engine="local")
assert not ray.is_initialized()
torch.save({{"found": found, "told": told, "refused": refused}}, f"{{folder}}/found.pt")
"""


def model_of(cells: Any, n_latent: int) -> SCVI:
    SCVI.setup_anndata(cells, batch_key="batch")
    torch.manual_seed(0)
    return SCVI(cells, n_hidden=8, n_latent=n_latent)


def test_models_are_trained_one_after_the_other_over_rays_client(
    hosts: Hosts, tmp_path: Path
) -> None:
    cells = tmp_path / "cells.h5ad"
    toy_cells().write_h5ad(cells)
    command = [sys.executable, "-c", NOTEBOOK, str(cells), str(tmp_path), hosts.head]
    done = run(command, hosts.shell(), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    notebook = torch.load(tmp_path / "found.pt", weights_only=False)
    assert notebook["told"] == [(1.0, 1), (1.0, 2)]
    for n_latent, (weights, history, z_nk) in zip(N_LATENT, notebook["found"], strict=True):
        here = model_of(cells, n_latent)
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
    another, closed, deaf = notebook["refused"]
    assert "connected to another Ray than" in another
    assert "no Ray cluster answers at" in closed
    assert "refused" in closed
    assert "no Ray cluster lets this process join at" in deaf
