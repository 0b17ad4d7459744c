"""CPU time of a training step beside scvi-tools', for a model so small that the loop counts.

    python tests/bench/bench_training_step.py [--genes 100] [--repeats 5]

Three loops over the same cells, interleaved, one thread: scvi-tools' ``train``, ours, and ours
without Lightning, metrics or checkpoints (loader, module, optimizer), which is the floor.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import anndata as ad
import numpy as np
import torch

from scvi_dist.data import open_store
from scvi_dist.data.schema import fit_schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.source import CellSource
from scvi_dist.dataloaders.split import SplitConfig, split_rows
from scvi_dist.module import VAE
from scvi_dist.train.configs import TrainConfig, TrainingPlanConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob

N_CELLS, BATCH_SIZE, EPOCHS = 6_400, 128, 4
STEPS = N_CELLS // BATCH_SIZE * EPOCHS


def new_job(cells: ad.AnnData) -> FitJob:
    store = open_store(cells)
    schema = fit_schema(store, SetupArgs())
    return FitJob(
        module=VAE(schema.n_vars, gene_likelihood="nb"),
        source=CellSource(store.locator, schema, check_counts=False),
        split=split_rows(store.n_obs, SplitConfig(train_size=1.0), BATCH_SIZE),
        loader=LoaderConfig(engine="local", n_threads=1),
        train=TrainConfig(max_epochs=EPOCHS, batch_size=BATCH_SIZE, accelerator="cpu"),
        plan=TrainingPlanConfig(),
    )


def ours(cells: ad.AnnData) -> Callable[[], object]:
    job = new_job(cells)
    return lambda: fit(job)


def bare(cells: ad.AnnData) -> Callable[[], object]:
    job = new_job(cells)
    data = CellDataModule(job.source, job.split, BATCH_SIZE, config=job.loader)
    params = [p for p in job.module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=1e-3, eps=0.01, weight_decay=1e-6, fused=True)

    def train() -> None:
        for _ in range(EPOCHS):
            for batch in data.train_loader:
                optimizer.zero_grad()
                job.module(batch, loss_kwargs={"kl_weight": 1.0})[2].loss.backward()
                optimizer.step()

    return train


def scvi_tools(cells: ad.AnnData) -> Callable[[], object]:
    import scvi

    copy = cells.copy()
    scvi.model.SCVI.setup_anndata(copy)
    model = scvi.model.SCVI(copy, gene_likelihood="nb")
    return lambda: model.train(
        EPOCHS, train_size=1.0, accelerator="cpu", enable_progress_bar=False, batch_size=BATCH_SIZE
    )


LOOPS = {"scvi-tools": scvi_tools, "scvi_dist": ours, "bare loop": bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts_ng = np.random.default_rng(0).poisson(1.0, (N_CELLS, args.genes)).astype(np.float32)
    counts_ng[:, 0] += 1
    cells = ad.AnnData(counts_ng)
    times_ms: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _ in range(args.repeats + 1):  # interleaved; the first round warms everything up
        for name, make in LOOPS.items():
            train = make(cells)
            start = time.process_time()
            train()
            times_ms[name].append((time.process_time() - start) / STEPS * 1e3)
    peer = statistics.median(times_ms["scvi-tools"][1:])
    for name, values in times_ms.items():
        median = statistics.median(values[1:])
        print(f"{name:12s} {median:6.2f} ms CPU a step   {peer / median:4.1f} x scvi-tools")


if __name__ == "__main__":
    main()
