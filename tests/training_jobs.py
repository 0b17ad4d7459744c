"""Small training jobs, for tests of training in one process, in several, and under Ray."""

import os
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
    """A VAE that leaves the number of each process that trains it in a folder."""

    folder = ""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        path = Path(self.folder) / str(os.getpid())
        if self.folder and not path.exists():
            path.touch()
        return super().forward(*args, **kwargs)


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
    **train: Any,
) -> FitJob:
    """A job with freshly drawn weights; the defaults make 5 steps an epoch of 126 cells.

    Parameters
    ----------
    plan, loader, train
        Fields of the configs of those names.
    job
        Fields of the job itself.
    """
    store = open_store(cells)
    schema = fit_schema(store, SetupArgs(batch_key="batch"))
    config = TrainConfig(**{"accelerator": "cpu", "batch_size": 26, "max_epochs": 3} | train)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TellingVAE(schema.n_vars, n_batch=schema.n_batch, n_hidden=8, n_latent=3)
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
