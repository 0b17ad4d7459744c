"""Small jobs that learn from labels, for tests in one process, in several, and under Ray."""

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
from scvi_dist.dataloaders.labelled_cells import LabelledConfig
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.source import CellSource
from scvi_dist.dataloaders.split import SplitConfig, split_by_label
from scvi_dist.module.scanvae import SCANVAE
from scvi_dist.train.configs import TrainConfig, TrainingPlanConfig
from scvi_dist.train.fit_job import FitJob
from scvi_dist.train.semi_supervised_config import SemiSupervisedPlanConfig

UNKNOWN = "unknown"


def labelled_cells(n_cells: int = 140, n_genes: int = 12) -> ad.AnnData:
    """Counts of two batches and three kinds of cells, of which a third is known."""
    rng = np.random.default_rng(0)
    kind = rng.choice(3, n_cells, p=[0.5, 0.3, 0.2])
    rate = rng.gamma(1.0, 2.0, (3, n_genes))[kind] + 0.1
    known = np.where(rng.random(n_cells) < 0.35, np.array(["B", "NK", "T"])[kind], UNKNOWN)
    obs = pd.DataFrame(
        {"batch": rng.choice(["a", "b"], n_cells), "kind": known},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    return ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)


def label_job(
    cells: ad.AnnData | str | Path,
    *,
    plan: TrainingPlanConfig | None = None,
    labelled: LabelledConfig | None = None,
    split: SplitConfig | None = None,
    run_dir: str | None = None,
    resume: bool = False,
    engine: str = "local",
    module: torch.nn.Module | None = None,
    **train: Any,
) -> FitJob:
    """A job with freshly drawn weights; ``train`` are fields of that config."""
    store = open_store(cells)
    schema = fit_schema(
        store, SetupArgs(batch_key="batch", labels_key="kind", unlabeled_category=UNKNOWN)
    )
    settings = {"accelerator": "cpu", "batch_size": 26, "max_epochs": 3}
    config = TrainConfig(**settings | {"check_val_every_n_epoch": 1} | train)
    kinds = store.read_obs(["kind"], 0, store.n_obs)["kind"].to_numpy()
    return FitJob(
        module=module or new_scanvae(schema.n_vars),
        source=CellSource(store.locator, schema),
        split=split_by_label(kinds != UNKNOWN, split or SplitConfig(), config.batch_size),
        loader=LoaderConfig(engine=engine, window_cells=60, readers=1),
        train=config,
        plan=plan or SemiSupervisedPlanConfig(n_epochs_kl_warmup=4),
        labelled=labelled or LabelledConfig(),
        run_dir=run_dir,
        resume=resume,
    )


def new_scanvae(n_genes: int, **given: Any) -> SCANVAE:
    """A small module for three kinds of cells in two batches; always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SCANVAE(n_genes, n_batch=2, n_labels=3, n_hidden=8, n_latent=3, **given)
