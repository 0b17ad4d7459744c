"""Two ranks train a TOTALVAE and its adversary to where one rank does."""

import pickle
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from training_jobs import N_GENES, assert_close_runs, toy_cells, toy_job

from scvi_dist.batch import CellBatch
from scvi_dist.module import TOTALVAE
from scvi_dist.train.adversarial_config import AdversarialPlanConfig
from scvi_dist.train.checkpoint import latest_checkpoint
from scvi_dist.train.configs import World
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, FitResult

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WORLD = 2
N_PROTEINS = 4
JOBS: dict[str, dict[str, Any]] = {
    # 25 cells are 12 and 13. The weight of the adversary falls, and is 0 in the last epoch.
    "unequal shares": {
        "batch_size": 25,
        "max_epochs": 3,
        "check_val_every_n_epoch": 1,
        "gradient_clip_val": 5.0,
        "adversary": {"n_epochs_kl_warmup": 2},
    },
    # Seven cells are 3 and 4: the first rank's batch is filled up. Few steps: a bias in front of a
    # batch norm has a gradient of rounding alone, with which it walks.
    "padding": {"batch_size": 7, "max_steps": 5, "adversary": {"scale_adversarial_loss": 3.0}},
    "a rank without cells": {"batch_size": 1, "max_steps": 9, "networks": "none", "adversary": {}},
}


class Split(TOTALVAE):
    """Takes the first columns of the counts for proteins."""

    def forward(self, tensors: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        assert isinstance(tensors, CellBatch)
        x = tensors["X"]
        fields = {**tensors.fields, "proteins": x[:, :N_PROTEINS]}
        cells = replace(tensors, x=x[:, N_PROTEINS:], fields=fields, _dense=[])
        return super().forward(cells, *args, **kwargs)


def job_of(
    cells: str, adversary: dict[str, Any], networks: str = "both", **settings: Any
) -> FitJob:
    job = toy_job(cells, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Split(
            N_GENES - N_PROTEINS,
            N_PROTEINS,
            n_batch=2,
            n_hidden=8,
            n_latent=3,
            protein_batch_mask={"1": np.arange(N_PROTEINS) < 2},
            use_batch_norm=networks,
        )
        given: nn.Module | bool = True
        if networks == "none":  # a minibatch of one cell has no variance
            given = nn.Linear(3, 2)
    plan = AdversarialPlanConfig(adversarial_classifier=given, lr=4e-3, **adversary)
    return replace(job, module=module, plan=plan)


def rank_fits(rank: int, folder: str) -> None:
    """All jobs on one rank; what comes out goes to files."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    world = World(rank, WORLD, rank)
    for name, settings in JOBS.items():
        run = {"run_dir": f"{folder}/{name}"}
        result = fit(job_of(f"{folder}/cells.h5ad", job=run, **settings), world)
        Path(folder, f"{name}-{rank}.pkl").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds what all ranks ended with."""
    path = tmp_path_factory.mktemp("ranks")
    toy_cells().write_h5ad(path / "cells.h5ad")
    server = get_context("forkserver")
    server.set_forkserver_preload(["training_jobs", "scvi_dist.train.fit"])
    mp.start_processes(rank_fits, args=(str(path),), nprocs=WORLD, start_method="forkserver")
    return path


@pytest.mark.parametrize("name", JOBS)
def test_ranks_end_where_one_rank_ends(folder: Path, name: str) -> None:
    run = {"run_dir": str(folder / f"{name} alone")}
    alone = fit(job_of(f"{folder}/cells.h5ad", job=run, **JOBS[name]))
    for rank in range(WORLD):
        result: FitResult = pickle.loads((folder / f"{name}-{rank}.pkl").read_bytes())
        assert_close_runs(result, alone)
    states = [latest_checkpoint(folder / f"{name}{suffix}") for suffix in ("", " alone")]
    adversaries = [found.load()["beside_module"] for found in states if found is not None]
    assert adversaries[0]
    torch.testing.assert_close(*adversaries, rtol=1e-5, atol=1e-6)
