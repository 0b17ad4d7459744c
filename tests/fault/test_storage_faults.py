"""Disks that are full, files that are cut off, stores out of reach, losses that are no number."""

import contextlib
import logging
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import pytest
import torch
from fault_proxy import Fault, fault_proxy
from range_server import range_server
from training_jobs import assert_close_runs, assert_each_cell_once, toy_cells, toy_job

from scvi_dist.dataloaders import patience
from scvi_dist.errors import CheckpointError, TrainingFailed
from scvi_dist.train.checkpoint import STATE, latest_checkpoint
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob, FitResult
from scvi_dist.train.progress import TrainProgress

pytestmark = pytest.mark.fault

SETTINGS: dict[str, Any] = {
    "max_epochs": 3,
    "checkpoint_every_n_steps": 3,
    "log_every_n_steps": 1,
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    toy_cells().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(cells: Path) -> FitResult:
    return fit(toy_job(cells, **SETTINGS))


def job_in(run_dir: Path, cells: Any, told: Path, **more: Any) -> FitJob:
    job = toy_job(cells, job={"run_dir": str(run_dir), "resume": True}, **SETTINGS, **more)
    told.mkdir(exist_ok=True)
    job.module.folder = str(told)
    return job


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 kB, for some checkpoints of the toy model."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(
    small_disk: Path, cells: Path, undisturbed: FitResult, tmp_path: Path
) -> None:
    ballast = small_disk / "ballast"

    def fill(progress: TrainProgress) -> None:
        if progress.step == 5:
            with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

    told = tmp_path / "told"
    with pytest.raises(CheckpointError, match=r"step 6 could be written.*No space.*make room"):
        fit(job_in(small_disk / "run", cells, told), on_progress=fill)
    found = latest_checkpoint(small_disk / "run")
    assert found is not None
    assert found.cursor.global_step in (3, 5)
    ballast.unlink()
    job = job_in(small_disk / "run", cells, told)
    assert_close_runs(fit(job), undisturbed, rtol=0)
    assert_each_cell_once(told, job, undisturbed.steps)


def test_a_checkpoint_that_was_cut_off_is_passed_over(
    cells: Path, undisturbed: FitResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = tmp_path / "told"

    def stop(progress: TrainProgress) -> None:
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = fit(job_in(tmp_path / "run", cells, told), on_progress=stop)
    assert stopped.interrupted, "SIGTERM: a checkpoint, then a clean stop"
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert newest.cursor.global_step == stopped.steps == 7
    state = newest.path / STATE
    os.truncate(state, state.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        job = job_in(tmp_path / "run", cells, told)
        resumed = fit(job)
    assert "is damaged" in caplog.text
    assert "Looking at the checkpoint before it" in caplog.text
    assert_close_runs(resumed, undisturbed, rtol=0)
    assert_each_cell_once(told, job, undisturbed.steps)


def test_a_store_out_of_reach_is_waited_for(
    cells: Path,
    undisturbed: FitResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Minutes become milliseconds; what ends the outage is that it was noticed often enough.
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    told = tmp_path / "told"
    impatient = {"scvi_dist": {"attempts": 2, "first_wait_s": 0.001}}
    with range_server(cells.parent) as (host, port), fault_proxy(host, port) as proxy:
        job = job_in(tmp_path / "run", f"{proxy.url}/{cells.name}", told, options=impatient)

        def fail(progress: TrainProgress) -> None:
            if progress.step == 4:
                proxy.faults.append(Fault("503", match=cells.name, times=12))

        with caplog.at_level(logging.WARNING):
            result = fit(job, on_progress=fail)
        assert [fault.times for fault in proxy.faults] == [0], "the outage was over"
    assert "Reading waits: out of reach for" in caplog.text
    assert_close_runs(result, undisturbed, rtol=0)
    assert_each_cell_once(told, job, undisturbed.steps)


def test_a_loss_that_is_no_number_costs_the_steps_since_and_names_its_rows(tmp_path: Path) -> None:
    bad = toy_cells()
    row = 61
    bad.X.data[bad.X.indptr[row]] = 3e38
    path = tmp_path / "bad.h5ad"
    ad.AnnData(bad.X.tocsr(), obs=bad.obs).write_h5ad(path)
    job = job_in(tmp_path / "run", path, tmp_path / "told")
    with pytest.raises(TrainingFailed, match=rf"not a finite number.*\b{row}\b") as failed:
        fit(job)
    note = next(n for n in failed.value.__notes__ if "has the weights of step" in n)
    step = int(re.findall(r"step (\d+)", note)[0])
    weights = {k: v.clone() for k, v in job.module.state_dict().items()}
    assert all(torch.isfinite(v).all() for v in weights.values())
    good = fit(toy_job(path, **{**SETTINGS, "max_steps": step}))
    torch.testing.assert_close(weights, good.state_dict, rtol=0, atol=0)
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is None or newest.cursor.global_step <= step
