"""What streaming from a Zarr store costs a training step, beside the same cells in memory.

    python tests/bench/train/bench_streaming.py [--batches 128 1024] [--genes 4000] [--repeats 3]

``model.train()`` on an AnnData in memory and on a Zarr store of the same cells, interleaved, torch
at one thread. CPU time counts what the reading threads do; wall time shows whether reading hides
behind the steps; ``waiting`` is the share of the wall time in which steps waited for cells. Both
batches of cells are the same, so weights are too. The limit is 1.10.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

from scvi_dist.data import open_store
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.model import SCVI
from scvi_dist.train.progress import TrainProgress

LIMIT = 1.10
DENSITY = 0.06


@dataclass
class Times:
    """Milliseconds a step of each run, and the share of time in which steps waited."""

    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)


def new_cells(n_cells: int, n_genes: int) -> ad.AnnData:
    """Counts with 6 % of non-zeros, of which most are small."""
    rng = np.random.default_rng(0)
    counts = sp.random(n_cells, n_genes, DENSITY, "csr", np.float32, random_state=0)
    counts.data[:] = 1 + rng.poisson(rng.gamma(0.3, 1.5, counts.nnz))
    return ad.AnnData(counts)


def train(cells: ad.AnnData | str, batch_size: int, epochs: int, likelihood: str) -> Times:
    """One run's times."""
    SCVI.setup_anndata(cells)
    torch.manual_seed(0)
    model = SCVI(cells, gene_likelihood=likelihood)
    told: list[TrainProgress] = []
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    model.train(
        epochs,
        train_size=1.0,
        accelerator="cpu",
        enable_progress_bar=False,
        batch_size=batch_size,
        on_progress=told.append,
    )
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    n_steps = told[-1].step
    return Times([cpu_s / n_steps * 1e3], [wall_s / n_steps * 1e3], [told[-1].wait_fraction])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--genes", type=int, default=4000)
    parser.add_argument("--cells", type=int, default=20_480)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--likelihood", choices=("zinb", "nb"), default="nb")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cells = new_cells(args.cells, args.genes)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "cells.zarr")
        write_zarr(open_store(cells), path)
        for batch_size in args.batches:
            times = {"memory": Times(), "Zarr": Times()}
            for round_number in range(args.repeats + 1):  # the first one warms up
                for name, where in (("memory", cells), ("Zarr", path)):
                    found = train(where, batch_size, args.epochs, args.likelihood)
                    if round_number:
                        times[name].cpu_ms += found.cpu_ms
                        times[name].wall_ms += found.wall_ms
                        times[name].waiting += found.waiting
            report(batch_size, times)


def report(batch_size: int, times: dict[str, Times]) -> None:
    """Print what a batch size takes, and the ratio of neighbours."""
    for name, found in times.items():
        cpu, wall, waiting = (
            statistics.median(v) for v in (found.cpu_ms, found.wall_ms, found.waiting)
        )
        print(
            f"batch {batch_size:5d} from {name:6s}: {cpu:7.2f} ms of CPU, {wall:7.2f} ms of wall "
            f"a step, {waiting:.1%} waiting"
        )
    ratios = [
        statistics.median(z / m for z, m in zip(zarr, memory, strict=True))
        for zarr, memory in (
            (times["Zarr"].cpu_ms, times["memory"].cpu_ms),
            (times["Zarr"].wall_ms, times["memory"].wall_ms),
        )
    ]
    verdict = "within" if max(ratios) <= LIMIT else "NOT within"
    print(
        f"batch {batch_size:5d}: Zarr takes {ratios[0]:.3f} x the CPU and {ratios[1]:.3f} x the "
        f"wall time of memory, {verdict} {LIMIT:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
