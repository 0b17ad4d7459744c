"""What surrounds the module in a training step, beside scvi-tools': CPU time at one thread.

    python tests/bench/train/bench_step_overhead.py [--genes 100] [--batch-size 128] [--repeats 7]

Interleaved: ``model.train()`` of scvi-tools and of scvi_dist on the same AnnData, scvi_dist's from
a Zarr store, and for both the module alone: loss and derivatives of minibatches that are there
already. The fixed cost is what ``train()`` takes beyond its module: loader, loop, metrics,
callbacks, optimizer. Few genes, so that the module does not drown it.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

from scvi_dist.data import open_store
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.dataloaders.ordered_loader import OrderedLoader
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.model import SCVI

N_CELLS, EPOCHS = 12_800, 3

Loop = Callable[[], object]


def ours(cells: ad.AnnData | str, batch_size: int) -> Loop:
    SCVI.setup_anndata(cells)
    model = SCVI(cells, gene_likelihood="nb")
    return lambda: model.train(
        EPOCHS, train_size=1.0, accelerator="cpu", enable_progress_bar=False, batch_size=batch_size
    )


def our_module(cells: ad.AnnData, batch_size: int) -> Loop:
    SCVI.setup_anndata(cells)
    model = SCVI(cells, gene_likelihood="nb")
    manager = model.adata_manager
    source = OpenSource(manager.store, manager.schema, coded_obs=manager.coded_obs())
    batches = list(OrderedLoader(source, batch_size=batch_size))
    module = model.module.train()
    # As an epoch's steps ask it; derivatives come with the loss.
    objective = module.steps_objective(with_graph=False)

    def steps() -> None:
        for epoch in range(EPOCHS):
            for batch in batches:
                # As in training: noise of its own for each step, counts made dense anew.
                module.noise.at(0, epoch * N_CELLS + batch.step, 0, batch.n_cells, batch.n_cells)
                batch._dense.clear()
                module.zero_grad()
                for parameter, gradient in objective(batch, kl_weight=1.0).gradients.items():
                    parameter.grad = gradient
        module.noise.unbind()

    return steps


def theirs(cells: ad.AnnData, batch_size: int) -> Loop:
    import scvi

    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells, gene_likelihood="nb")
    return lambda: model.train(
        EPOCHS, train_size=1.0, accelerator="cpu", enable_progress_bar=False, batch_size=batch_size
    )


def their_module(cells: ad.AnnData, batch_size: int) -> Loop:
    import scvi

    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells, gene_likelihood="nb")
    loader = scvi.dataloaders.AnnDataLoader(
        model.adata_manager, batch_size=batch_size, shuffle=True
    )
    batches = list(loader)
    module = model.module.train()

    def steps() -> None:
        for _ in range(EPOCHS):
            for batch in batches:
                module.zero_grad()
                module(batch, loss_kwargs={"kl_weight": 1.0})[2].loss.backward()

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts_ng = np.random.default_rng(0).poisson(1.0, (N_CELLS, args.genes)).astype(np.float32)
    counts_ng[:, 0] += 1
    cells = ad.AnnData(sp.csr_matrix(counts_ng))
    n_steps = -(-N_CELLS // args.batch_size) * EPOCHS
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "cells.zarr")
        write_zarr(open_store(cells), path)
        loops: dict[str, Callable[[], Loop]] = {
            "scvi-tools": lambda: theirs(cells.copy(), args.batch_size),
            "its module": lambda: their_module(cells.copy(), args.batch_size),
            "scvi_dist": lambda: ours(cells, args.batch_size),
            "from Zarr": lambda: ours(path, args.batch_size),
            "our module": lambda: our_module(cells, args.batch_size),
        }
        times_ms = measured(loops, args.repeats, n_steps)
    median = {name: statistics.median(values) for name, values in times_ms.items()}
    for name, values in times_ms.items():
        print(f"{name:12s} {median[name]:6.2f} ms of CPU a step (least {min(values):.2f})")
    fixed = {
        name: fixed_cost(times_ms[name], times_ms[module])
        for name, module in (
            ("scvi-tools", "its module"),
            ("scvi_dist", "our module"),
            ("from Zarr", "our module"),
        )
    }
    for name, cost_ms in fixed.items():
        ratio = fixed["scvi-tools"] / cost_ms
        print(f"around the module, {name:10s} {cost_ms:5.2f} ms a step   {ratio:4.1f} x")


def measured(
    loops: dict[str, Callable[[], Loop]], repeats: int, n_steps: int
) -> dict[str, list[float]]:
    """Milliseconds of CPU a step of each loop, in each round; a first round warms up."""
    times_ms: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repeats + 1):
        for name, make in loops.items():
            run = make()
            start_s = time.process_time()
            run()
            times_ms[name].append((time.process_time() - start_s) / n_steps * 1e3)
    return {name: values[1:] for name, values in times_ms.items()}


def fixed_cost(whole_ms: list[float], module_ms: list[float]) -> float:
    """Median over rounds of the difference: what was next to each other had the same neighbours."""
    return statistics.median(w - m for w, m in zip(whole_ms, module_ms, strict=True))


if __name__ == "__main__":
    main()
