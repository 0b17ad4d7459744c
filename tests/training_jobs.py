"""Small training jobs, for tests of training in one process, in several, and under Ray."""

import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scvi_dist.data import open_store
from scvi_dist.data.schema import fit_schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.source import CellSource
from scvi_dist.dataloaders.split import SplitConfig, split_rows
from scvi_dist.module import VAE
from scvi_dist.train.configs import TrainConfig, TrainingPlanConfig
from scvi_dist.train.fit_job import FitJob, FitResult

N_CELLS, N_GENES = 140, 12


class TellingVAE(VAE):
    """A VAE that tells which process trains on which cells, and misbehaves where it is told to."""

    folder = ""
    """Where each process has a file of its own, a line for each step."""
    job_name = ""
    fails: tuple[str, int] | None = None
    """Rank, as text, and step: there it raises an error."""
    pace_s: Mapping[str, float] = {}
    """World size, as text, -> seconds that a step takes at least."""
    hurry = ""
    """A file; once it is there the pace is kept no more."""

    def forward(self, batch: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if self.training and self.folder:
            self._tell(batch)
        return super().forward(batch, *args, **kwargs)

    def _tell(self, batch: Any) -> None:
        step, rank = self.noise._binding.step, os.environ.get("RANK", "0")
        line = {
            # Workers that were started together have the same; a job that is made anew has not.
            "attempt": f"{self.job_name} {os.environ.get('MASTER_PORT', os.getpid())}",
            "time": time.time(),
            "pid": os.getpid(),
            "world": int(os.environ.get("WORLD_SIZE", "1")),
            "step": step,
            "rows": batch.rows[: batch.n_real].tolist(),
        }
        with open(Path(self.folder) / str(os.getpid()), "a") as file:
            file.write(json.dumps(line) + "\n")
        if self.fails == (rank, step):
            raise ValueError(f"bad luck in step {step}")
        if not (self.hurry and os.path.exists(self.hurry)):
            threading.Event().wait(self.pace_s.get(os.environ.get("WORLD_SIZE", "1"), 0.0))


def told_steps(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of all processes, by time; one that was being written is left out."""
    lines = [
        json.loads(line)
        for path in Path(folder).iterdir()
        for line in path.read_text().splitlines()
        if line.endswith("}")
    ]
    return sorted(lines, key=lambda line: line["time"])


def assert_each_cell_once(folder: str | Path, job: FitJob, n_steps: int) -> None:
    """In what counts of the run, each epoch has each training cell exactly once.

    ``n_steps`` are looked at, whole epochs.
    """
    lines = [line for line in told_steps(folder) if line["step"] < n_steps]
    steps: dict[int, list[int]] = {}
    for attempt in dict.fromkeys(line["attempt"] for line in lines):
        mine = [line for line in lines if line["attempt"] == attempt]
        first = min(line["step"] for line in mine)
        # What came after the checkpoint that this attempt began with is gone.
        steps = {step: rows for step, rows in steps.items() if step < first}
        for line in mine:
            steps.setdefault(line["step"], []).extend(line["rows"])
    assert sorted(steps) == list(range(n_steps))
    train = job.split.train
    expected = np.sort(train.members_of(np.array([0]), np.array([train.n_store])))
    per_epoch = -(-train.n // job.train.batch_size)
    for epoch in range(n_steps // per_epoch):
        span = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        rows = sorted(row for step in span for row in steps[step])
        np.testing.assert_array_equal(rows, expected, err_msg=f"epoch {epoch}")


def toy_cells() -> ad.AnnData:
    """Counts of a few cells from two batches."""
    rng = np.random.default_rng(0)
    counts_ng = rng.poisson(rng.gamma(1.0, 2.0, size=(N_CELLS, N_GENES))).astype(np.float32)
    batch = pd.Categorical(rng.choice(["a", "b"], N_CELLS))
    names = [f"cell{i}" for i in range(N_CELLS)]
    return ad.AnnData(sp.csr_matrix(counts_ng), obs=pd.DataFrame({"batch": batch}, index=names))


def toy_job(
    cells: ad.AnnData | str | Path,
    *,
    plan: dict[str, Any] | None = None,
    job: dict[str, Any] | None = None,
    loader: dict[str, Any] | None = None,
    split: SplitConfig | None = None,
    options: dict[str, Any] | None = None,
    **train: Any,
) -> FitJob:
    """A job with freshly drawn weights; the defaults make 5 steps an epoch of 126 cells.

    Parameters
    ----------
    plan, loader, train
        Fields of the configs of those names.
    job
        Fields of the job itself.
    options
        Storage options of the cells.
    """
    store = open_store(cells, storage_options=options)
    schema = fit_schema(store, SetupArgs(batch_key="batch"))
    config = TrainConfig(**{"accelerator": "cpu", "batch_size": 26, "max_epochs": 3} | train)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TellingVAE(schema.n_vars, n_batch=schema.n_batch, n_hidden=8, n_latent=3)
    module.job_name = uuid.uuid4().hex
    made = FitJob(
        module=module,
        source=CellSource(store.locator, schema),
        split=split_rows(store.n_obs, split or SplitConfig(), config.batch_size),
        loader=LoaderConfig(**{"engine": "local", "window_cells": 60} | (loader or {})),
        train=config,
        plan=TrainingPlanConfig(**plan or {}),
    )
    return replace(made, **job or {})


def assert_close_runs(left: FitResult, right: FitResult, rtol: float = 1e-5) -> None:
    """Weights and history are equal to float tolerance."""
    torch.testing.assert_close(left.state_dict, right.state_dict, rtol=rtol, atol=1e-6)
    assert (left.epochs, left.steps) == (right.epochs, right.steps)
    assert left.stopped_early == right.stopped_early
    assert left.history.keys() == right.history.keys()
    for name, points in left.history.items():
        there = right.history[name]
        assert [i for i, _ in points] == [i for i, _ in there], name
        values, others = [[v for _, v in p] for p in (points, there)]
        np.testing.assert_allclose(values, others, rtol=rtol, atol=1e-6, err_msg=name)
