"""Small training jobs on cells in memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
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
from scvi_dist.train.fit_job import FitJob

N_CELLS, N_GENES = 140, 12

MakeJob = Callable[..., FitJob]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose by waiting for threads on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_cells() -> ad.AnnData:
    """Counts of a few cells from two batches."""
    rng = np.random.default_rng(0)
    counts_ng = rng.poisson(rng.gamma(1.0, 2.0, size=(N_CELLS, N_GENES))).astype(np.float32)
    batch = pd.Categorical(rng.choice(["a", "b"], N_CELLS))
    names = [f"cell{i}" for i in range(N_CELLS)]
    return ad.AnnData(sp.csr_matrix(counts_ng), obs=pd.DataFrame({"batch": batch}, index=names))


@pytest.fixture
def make_job(toy_cells: ad.AnnData) -> MakeJob:
    """A job of 5 steps an epoch: 126 training and 14 validation cells, freshly drawn weights."""

    def make(
        plan: dict[str, Any] | None = None,
        job: dict[str, Any] | None = None,
        adata: ad.AnnData = toy_cells,
        split: SplitConfig | None = None,
        **train: Any,
    ) -> FitJob:
        store = open_store(adata)
        schema = fit_schema(store, SetupArgs(batch_key="batch"))
        config = TrainConfig(**{"accelerator": "cpu", "batch_size": 26, "max_epochs": 3} | train)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = VAE(schema.n_vars, n_batch=schema.n_batch, n_hidden=8, n_latent=3)
        made = FitJob(
            module=module,
            source=CellSource(store.locator, schema),
            split=split_rows(store.n_obs, split or SplitConfig(), config.batch_size),
            loader=LoaderConfig(engine="local", window_cells=60),
            train=config,
            plan=TrainingPlanConfig(**plan or {}),
        )
        return replace(made, **job or {})

    return make
