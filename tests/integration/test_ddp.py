"""Several ranks train what one rank trains, with processes of any launcher."""

import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training_jobs import assert_close_runs, toy_cells, toy_job

from scvi_dist.errors import TrainingFailed
from scvi_dist.train.checkpoint import latest_checkpoint
from scvi_dist.train.configs import EarlyStoppingConfig, World
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitResult, TrainerExtras

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WORLD = 3
REDUCE_LR = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e9}
JOBS: dict[str, dict[str, Any]] = {
    # 25 cells are 8, 8 and 9; the last window has batches of 25 and 24.
    "unequal shares": {
        "batch_size": 25,
        "max_epochs": 9,
        "early_stopping": EarlyStoppingConfig(patience=2, min_delta=1e9),
        "plan": REDUCE_LR,
        "log_every_n_steps": 4,
        "gradient_clip_val": 20.0,
    },
    # Two cells for three ranks: one of them has nothing but padding in every step.
    # A step has as many cells for any number of ranks, so a warm-up by steps is the same one.
    "padding": {
        "batch_size": 2,
        "max_steps": 80,
        "check_val_every_n_epoch": 1,
        "plan": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 60},
    },
}


PLAIN: dict[str, Any] = {"sync_batchnorm": False, "max_epochs": 1}


def rank_fits(rank: int, folder: str) -> None:
    """All jobs on one rank; what comes out goes to files."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    world = World(rank, WORLD, rank)
    cells = f"{folder}/cells.h5ad"
    for name, settings in {**JOBS, "plain": PLAIN}.items():
        result = fit(toy_job(cells, **settings), world)
        Path(folder, f"{name}-{rank}.pkl").write_bytes(pickle.dumps(result))
    bf16 = fit(
        toy_job(cells, max_epochs=1), world, extras=TrainerExtras(gradient_compression="bf16")
    )
    Path(folder, f"bf16-{rank}.pkl").write_bytes(pickle.dumps(bf16))
    run_dir = f"{folder}/run"
    fit(toy_job(cells, max_steps=7, max_epochs=None, job={"run_dir": run_dir}), world)
    try:
        fit(toy_job(cells, plan={"lr": 1e30}, log_every_n_steps=1), world)
    except TrainingFailed as error:
        Path(folder, f"broken-{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds what all ranks ended with."""
    path = tmp_path_factory.mktemp("ranks")
    toy_cells().write_h5ad(path / "cells.h5ad")
    # One process imports everything and the ranks are its forks: imports are what takes time.
    server = get_context("forkserver")
    server.set_forkserver_preload(["training_jobs", "scvi_dist.train.fit"])
    mp.start_processes(rank_fits, args=(str(path),), nprocs=WORLD, start_method="forkserver")
    return path


def result_of(folder: Path, name: str, rank: int) -> FitResult:
    return pickle.loads((folder / f"{name}-{rank}.pkl").read_bytes())


@pytest.mark.parametrize("name", JOBS)
def test_ranks_end_where_one_rank_ends(folder: Path, name: str) -> None:
    alone = fit(toy_job(folder / "cells.h5ad", **JOBS[name]))
    assert alone.stopped_early == ("early_stopping" in JOBS[name])
    for rank in range(WORLD):
        assert_close_runs(result_of(folder, name, rank), alone)


def test_plain_batch_norm_keeps_ranks_together_but_not_with_one_rank(folder: Path) -> None:
    alone = fit(toy_job(folder / "cells.h5ad", **PLAIN))
    ranks = [result_of(folder, "plain", rank) for rank in range(WORLD)]
    weight = "decoder.px_scale_decoder.0.weight"
    for result in ranks:
        assert torch.equal(result.state_dict[weight], ranks[0].state_dict[weight])
        assert result.history == ranks[0].history
    difference = ranks[0].state_dict[weight] - alone.state_dict[weight]
    assert difference.abs().max() > 1e-5


def test_a_run_goes_on_with_another_number_of_ranks(folder: Path) -> None:
    found = latest_checkpoint(folder / "run")
    assert found is not None
    assert (found.cursor.epoch, found.cursor.global_step) == (1, 7)
    settings = {"max_steps": 15, "max_epochs": None}
    # Another budget would suggest other windows: the checkpoint's stay.
    resumed = fit(
        toy_job(
            folder / "cells.h5ad",
            job={"run_dir": str(folder / "run"), "resume": True},
            loader={"window_cells": 1000},
            **settings,
        )
    )
    assert_close_runs(resumed, fit(toy_job(folder / "cells.h5ad", **settings)))


def test_all_ranks_stop_at_a_broken_loss_with_one_message(folder: Path) -> None:
    messages = {(folder / f"broken-{rank}.txt").read_text() for rank in range(WORLD)}
    assert all("broken the weights" in message for message in messages)


def test_gradients_in_half_the_bytes_train_nearly_the_same_on_all_ranks(folder: Path) -> None:
    results = [pickle.loads((folder / f"bf16-{k}.pkl").read_bytes()) for k in range(WORLD)]
    for other in results[1:]:
        torch.testing.assert_close(other.state_dict, results[0].state_dict, rtol=0, atol=0)
    exact = fit(toy_job(folder / "cells.h5ad", max_epochs=1)).state_dict
    torch.testing.assert_close(results[0].state_dict, exact, rtol=0.02, atol=2e-3)
    assert any(not torch.equal(exact[k], v) for k, v in results[0].state_dict.items())
