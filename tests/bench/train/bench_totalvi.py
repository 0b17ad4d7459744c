"""CPU time of TOTALVI's training beside scvi-tools'.

    python tests/bench/train/bench_totalvi.py [--cells 4096] [--epochs 2] [--repeats 3]

4,000 genes, one in twenty of whose counts is not zero, and 100 proteins, in two batches, with
minibatches of 256 cells and one thread. Both models train with ``train()`` as a user calls it, on
the same cells in memory, with a validation pass in each epoch, in turns.
"""

import argparse
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
from interleaved import Training, median_cpu_s, report

N_GENES, N_PROTEINS, BATCH_SIZE = 4_000, 100, 256


def new_cells(n_cells: int) -> ad.AnnData:
    """Cells of two batches with a few programs of genes and proteins."""
    rng = np.random.default_rng(0)
    n_programs = 8
    shares_nk = rng.dirichlet(np.full(n_programs, 0.3), n_cells)
    depth_n1 = rng.lognormal(0, 0.3, (n_cells, 1))
    gene_kg = rng.gamma(0.3, 1.0, (n_programs, N_GENES))
    protein_kp = rng.gamma(0.5, 40.0, (n_programs, N_PROTEINS)) + 3
    counts_ng = rng.poisson(0.25 * depth_n1 * (shares_nk @ gene_kg)).astype(np.float32)
    cells = ad.AnnData(sp.csr_matrix(counts_ng))
    cells.obs["batch"] = pd.Categorical(rng.integers(0, 2, n_cells).astype(str))
    cells.obsm["proteins"] = pd.DataFrame(
        rng.poisson(depth_n1 * (shares_nk @ protein_kp)).astype(np.float32),
        index=cells.obs_names,
        columns=[f"protein {k}" for k in range(N_PROTEINS)],
    )
    return cells


def _trainings(kind: type, cells: ad.AnnData, epochs: int) -> Callable[[], Training]:
    kind.setup_anndata(cells, protein_expression_obsm_key="proteins", batch_key="batch")

    def new() -> Training:
        torch.manual_seed(0)
        model = kind(cells, gene_likelihood="nb")
        return lambda: model.train(
            epochs, batch_size=BATCH_SIZE, accelerator="cpu", enable_progress_bar=False
        )

    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    from scvi.model import TOTALVI as Peer

    from scvi_dist.model import TOTALVI

    cells = new_cells(args.cells)
    print(f"{cells.X.nnz / np.prod(cells.shape):.1%} of the genes' counts are not zero")
    sides = {"scvi-tools": (Peer, cells.copy()), "scvi_dist": (TOTALVI, cells.copy())}
    trainings = {name: _trainings(*side, args.epochs) for name, side in sides.items()}
    n_steps = -(-int(args.cells * 0.9) // BATCH_SIZE) * args.epochs
    report(median_cpu_s(trainings, args.repeats), "scvi-tools", n_steps)


if __name__ == "__main__":
    main()
