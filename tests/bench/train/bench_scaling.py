"""Expected efficiency of 1 to 256 ranks from measured times, beside 1 and 2 ranks that were run.

    python tests/bench/train/bench_scaling.py [--genes 2000] [--batch 256]

Measured on one thread a process: a step for several numbers of cells (a line through them),
reading, and all-reduces of several sizes between two gloo processes (a line again). Assumed: a ring
of P ranks moves 2 (P - 1) / P of the gradients and waits 2 (P - 1) times for the network; what
batch norms exchange waits 2 log2 P times each; nothing of it is hidden behind computing; each rank
reads for itself. Two tables: the batch grows with the ranks, or stays what it is for one.
"""

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp

# As Ray and torchrun set it. gloo copies gradients in threads of its own; with more than one OpenMP
# thread in each, those spin between two copies and take the cores from the steps.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from scvi_dist.data import open_store
from scvi_dist.data.schema import fit_schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.source import CellSource
from scvi_dist.dataloaders.split import SplitConfig, split_rows
from scvi_dist.module import VAE
from scvi_dist.train.configs import TrainConfig, TrainingPlanConfig, World
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STEPS = 40
SIZES = (256, 1 << 16, 1 << 20, 1 << 22)
"""Numbers that are all-reduced, float32."""
LIMIT_S = 300


@dataclass(frozen=True, kw_only=True)
class Times:
    """What was measured."""

    step_s: float
    """Of a step, however few cells it has."""
    cell_s: float
    """More for each cell of a rank."""
    read_s: float
    """To read a cell, in background threads beside the step."""
    latency_s: float
    """Of one message."""
    number_s: float
    """To send one number of an all-reduce between two ranks."""
    n_parameters: int
    n_exchanges: int
    """Of batch norms in a step, forward and backward."""

    def seconds(self, ranks: int, batch: int) -> float:
        """Of a step of so many ranks with so many cells over all of them."""
        cells = batch / ranks
        compute = self.step_s + self.cell_s * cells
        if ranks > 1:
            ring = 2 * (ranks - 1)
            sent = ring / ranks * self.n_parameters * self.number_s
            waits = ring + self.n_exchanges * 2 * math.log2(ranks)
            compute += sent + waits * self.latency_s
        return max(compute, self.read_s * cells)


def new_job(path: str, batch: int) -> FitJob:
    store = open_store(path)
    schema = fit_schema(store, SetupArgs())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = VAE(schema.n_vars, gene_likelihood="nb")
    return FitJob(
        module=module,
        source=CellSource(store.locator, schema, check_counts=False),
        split=split_rows(store.n_obs, SplitConfig(train_size=1.0), batch),
        loader=LoaderConfig(engine="local", n_threads=1),
        train=TrainConfig(max_epochs=None, max_steps=STEPS, batch_size=batch, accelerator="cpu"),
        plan=TrainingPlanConfig(),
    )


def speed(path: str, batch: int, world: World) -> float:
    """Cells a second over all ranks; a first run warms up."""
    job = new_job(path, batch)
    fit(replace(job, train=replace(job.train, max_steps=5)), world)
    return fit(new_job(path, batch), world).cells_per_s


def rank_main(rank: int, path: str, batch: int, folder: str) -> None:
    """The second part: two ranks, and all-reduces between them."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=LIMIT_S),
    )
    times = []
    for size in SIZES:
        tensor = torch.zeros(size)
        dist.all_reduce(tensor)
        taken = []
        for _ in range(30):
            began_s = time.perf_counter()
            dist.all_reduce(tensor)
            taken.append(time.perf_counter() - began_s)
        times.append(float(np.median(taken)))
    found = {"reduce_s": times, "weak": speed(path, 2 * batch, World(rank, 2, rank))}
    found["strong"] = speed(path, batch, World(rank, 2, rank))
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Intercept and slope, neither below 0; small values count as much as large ones."""
    design = np.stack([np.ones(len(x)), x], axis=1) / np.asarray(y)[:, None]
    a, b = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)[0]
    return max(float(a), 0.0), max(float(b), 0.0)


def measured(path: str, batch: int, folder: str) -> tuple[Times, dict[str, float]]:
    batches = [batch // 4, batch // 2, batch, 2 * batch]
    speeds = {n: speed(path, n, World()) for n in batches}
    step_s, cell_s = line([float(n) for n in batches], [n / speeds[n] for n in batches])
    job = new_job(path, batch)
    data = CellDataModule(job.source, job.split, batch, config=job.loader)
    began_s, n_read = time.perf_counter(), 0
    for found in data.train_loader:
        n_read += found.n_cells
    read_s = (time.perf_counter() - began_s) / n_read
    mp.spawn(rank_main, (path, batch, folder), nprocs=2)
    two = json.loads(Path(folder, "found.json").read_text())
    latency, number = line([float(n) for n in SIZES], two["reduce_s"])
    norms = [m for m in job.module.modules() if "BatchNorm" in type(m).__name__]
    times = Times(
        step_s=step_s,
        cell_s=cell_s,
        read_s=read_s,
        # Two ranks wait for 2 (P - 1) = 2 messages, and send 2 (P - 1) / P = 1 times all numbers.
        latency_s=latency / 2,
        number_s=number,
        n_parameters=sum(p.numel() for p in job.module.parameters()),
        n_exchanges=2 * len(norms),
    )
    return times, {"one": speeds[batch], "weak": two["weak"], "strong": two["strong"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--cells", type=int, default=8_192)
    parser.add_argument("--batch", type=int, default=256, help="cells of a step of one rank")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rng = np.random.default_rng(0)
    counts = sp.random(args.cells, args.genes, 0.1, "csr", np.float32, rng)
    counts.data = rng.poisson(2.0, counts.nnz).astype(np.float32) + 1
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/cells.h5ad"
        ad.AnnData(counts).write_h5ad(path)
        times, ran = measured(path, args.batch, folder)
    print(times)
    one = args.batch / times.seconds(1, args.batch)
    print(f"\n{'ranks':>5} {'batch grows':>24} {'batch stays':>24}   (cells/s, efficiency)")
    for ranks in RANKS:
        cells = []
        for batch in (args.batch * ranks, args.batch):
            rate = batch / times.seconds(ranks, batch)
            cells.append(f"{rate:14,.0f} {rate / ranks / one:8.0%} ")
        print(f"{ranks:>5} {cells[0]:>24} {cells[1]:>24}")
    print(f"\nran, on this machine (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores):")
    print(f"{1:>5} {ran['one']:14,.0f} {1:8.0%}")
    weak, strong = (ran[name] for name in ("weak", "strong"))
    halves = [f"{rate:14,.0f} {rate / 2 / ran['one']:8.0%} " for rate in (weak, strong)]
    print(f"{2:>5} {halves[0]:>24} {halves[1]:>24}")


if __name__ == "__main__":
    main()
