"""CPU time of CellAssign's training, and the memory of its step, beside scvi-tools'.

    python tests/bench/train/bench_cellassign.py [--cells 8192] [--epochs 2] [--repeats 3]

Five types with a hundred markers each, minibatches of 1024 cells, one thread. Both models train
with ``train()`` as a user calls it, on the same cells in memory, with a validation pass in each
epoch, in turns. Memory is that of one step above what the process held after a tiny one, each in
a process of its own.
"""

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

sys.path.insert(0, str(Path(__file__).parent))
from interleaved import Training, forget_peak, median_cpu_s, peak_mb, report

N_TYPES, MARKERS_OF_A_TYPE, BATCH_SIZE = 5, 100, 1024


def new_cells(n_cells: int) -> tuple[ad.AnnData, pd.DataFrame]:
    """Cells of five types, and the table of their markers."""
    rng = np.random.default_rng(0)
    n_genes = N_TYPES * MARKERS_OF_A_TYPE
    rho_gc = np.repeat(np.eye(N_TYPES, dtype=int), MARKERS_OF_A_TYPE, axis=0)
    types_n = rng.integers(0, N_TYPES, n_cells)
    size_n = rng.lognormal(0, 0.3, n_cells)
    base_g = rng.gamma(0.5, 1.0, n_genes) + 0.02
    mean_ng = size_n[:, None] * base_g * np.where(rho_gc[:, types_n].T, 6.0, 1.0)
    counts_ng = rng.poisson(rng.gamma(2.0, mean_ng / 2.0)).astype(np.float32)
    genes = [f"g{j}" for j in range(n_genes)]
    cells = ad.AnnData(sp.csr_matrix(counts_ng), var=pd.DataFrame(index=genes))
    cells.obs["size_factor"] = size_n
    markers = pd.DataFrame(rho_gc, index=genes, columns=[f"type {c}" for c in range(N_TYPES)])
    return cells, markers


def ours(n_cells: int, epochs: int) -> Callable[[], Training]:
    from scvi_dist.model import CellAssign

    return _trainings(CellAssign, n_cells, epochs)


def scvi_tools(n_cells: int, epochs: int) -> Callable[[], Training]:
    from scvi.external import CellAssign

    return _trainings(CellAssign, n_cells, epochs)


def _trainings(kind: type, n_cells: int, epochs: int) -> Callable[[], Training]:
    cells, markers = new_cells(n_cells)
    kind.setup_anndata(cells, size_factor_key="size_factor")

    def new() -> Training:
        torch.manual_seed(0)
        model = kind(cells, markers)
        return lambda: model.train(
            epochs, batch_size=BATCH_SIZE, accelerator="cpu", enable_progress_bar=False
        )

    return new


SIDES = {"scvi-tools": scvi_tools, "scvi_dist": ours}


def print_peak(side: str) -> None:
    """The memory of one step of a module, after one of eight cells."""
    if side == "scvi_dist":
        from scvi_dist.module.cellassign import CellAssignModule
    else:
        from scvi.external.cellassign import CellAssignModule
    cells, markers = new_cells(BATCH_SIZE)
    counts_ng = torch.from_numpy(cells.X.toarray())
    centres = np.linspace(0, float(counts_ng.max()), 10)
    rho_gc = torch.from_numpy(markers.to_numpy(np.float32))
    module = CellAssignModule(len(markers), rho_gc, centres, n_batch=1)
    size_n1 = torch.from_numpy(cells.obs["size_factor"].to_numpy(np.float32))[:, None]
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained)

    def step(n: int) -> None:
        batch = {
            "X": counts_ng[:n],
            "size_factor": size_n1[:n],
            "batch": torch.zeros(n, 1, dtype=torch.long),
        }
        optimizer.zero_grad()
        module(batch, loss_kwargs={"n_obs": 10_000})[2].loss.backward()
        optimizer.step()

    step(8)
    forget_peak()
    before = peak_mb()
    step(BATCH_SIZE)
    print(peak_mb() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.peak:
        print_peak(args.peak)
        return
    trainings = {name: make(args.cells, args.epochs) for name, make in SIDES.items()}
    n_steps = -(-int(args.cells * 0.9) // BATCH_SIZE) * args.epochs
    report(median_cpu_s(trainings, args.repeats), "scvi-tools", n_steps)
    for name in SIDES:
        command = [sys.executable, __file__, "--peak", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{name:12s} {float(done.stdout.split()[-1]):8.1f} MB for a step")


if __name__ == "__main__":
    main()
