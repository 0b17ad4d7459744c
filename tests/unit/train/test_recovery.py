"""What a run does for those that may have to go on for it, and tells when it goes on for others."""

import time
from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import pytest
from training_jobs import toy_cells, toy_job

from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.read_plan import PlanConfig
from scvi_dist.errors import CheckpointError
from scvi_dist.tracking import NullTracker
from scvi_dist.train.checkpoint import list_checkpoints
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import Recovery, TrainerExtras
from scvi_dist.train.progress import TrainProgress
from scvi_dist.train.writer_claim import WriterClaim


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return toy_cells()


class Heard(NullTracker):
    """Remembers metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((dict(metrics), step))


def test_a_run_that_goes_on_for_others_says_once_how_long_there_was_no_training(
    cells: ad.AnnData,
) -> None:
    told: list[TrainProgress] = []
    tracker = Heard()
    began_s = time.monotonic()
    extras = TrainerExtras(recovery=Recovery(5.0, began_s))
    fit(toy_job(cells, max_epochs=1), None, tracker, told.append, extras)
    took_s = time.monotonic() - began_s
    (first,) = [p for p in told if p.recovery_s is not None]
    assert first is told[0]
    assert (first.step, first.workers) == (1, 1)
    assert 5.0 < first.recovery_s < 5.0 + took_s
    logged = [(m["perf/recovery_s"], step) for m, step in tracker.metrics if "perf/recovery_s" in m]
    assert logged == [(first.recovery_s, 1)]


@pytest.mark.parametrize(("within_s", "steps"), [(0.0, [1, 2, 3, 4, 5]), (1e6, [5])])
def test_no_more_training_than_asked_can_be_lost(
    within_s: float, steps: list[int], cells: ad.AnnData, tmp_path: Path
) -> None:
    more = {"checkpoint_within_s": within_s, "keep_checkpoints": 9, "max_epochs": 1}
    fit(toy_job(cells, job={"run_dir": str(tmp_path)}, **more))
    assert [c.cursor.global_step for c in list_checkpoints(tmp_path)] == steps


def test_a_checkpoint_is_written_when_it_is_asked_for(cells: ad.AnnData, tmp_path: Path) -> None:
    wanted = [False, True, False, False]
    saved: list[int] = []
    extras = TrainerExtras(
        save_asked=lambda: wanted.pop(0) if wanted else False,
        on_saved=lambda: saved.append(len(wanted)),
    )
    job = toy_job(cells, job={"run_dir": str(tmp_path)}, max_epochs=1, keep_checkpoints=9)
    fit(job, extras=extras)
    assert [c.cursor.global_step for c in list_checkpoints(tmp_path)] == [2, 5]
    assert len(saved) == 2


def test_who_was_replaced_stops_without_writing(cells: ad.AnnData, tmp_path: Path) -> None:
    def replace_it(progress: TrainProgress) -> None:
        if progress.step == 2:
            WriterClaim(tmp_path)

    job = toy_job(cells, job={"run_dir": str(tmp_path)}, max_epochs=1, log_every_n_steps=1)
    with pytest.raises(CheckpointError, match="Another process trains"):
        fit(job, on_progress=replace_it)
    assert list_checkpoints(tmp_path) == []


def test_a_plan_for_the_fewest_ranks_is_the_same_for_any_number(cells: ad.AnnData) -> None:
    job = toy_job(cells, loader={"budget_bytes": 40_000, "window_cells": 10_000})

    def plan(world: int, plan_world: int | None) -> PlanConfig:
        data = CellDataModule(
            job.source, job.split, 8, config=job.loader, world=world, plan_world=plan_world
        )
        return data.train_plan.config

    assert plan(1, None) != plan(4, None), "the budget decides here"
    assert plan(1, 1) == plan(4, 1) == plan(1, None)
