"""CPU time of SCVI's training and latent space beside scvi-tools', at one thread.

    python tests/bench/train/bench_vae.py [--genes 4000] [--likelihood zinb] [--batch 128]
    python tests/bench/train/bench_vae.py --steps      # the bare step alone, while working on it
    python tests/bench/train/bench_vae.py --latent

Both models train on the same AnnData in memory with the same batches, epochs and validation, as a
user calls them; rounds are interleaved, and the first one warms everything up. Counts are drawn
from negative binomial laws with two batches; about 6 % of them are no zeros.
"""

import argparse
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch


def atlas(n_cells: int, n_genes: int, seed: int = 0) -> ad.AnnData:
    """Cells in a low-dimensional space, with library sizes of a droplet experiment."""
    rng = np.random.default_rng(seed)
    levels_g = rng.normal(-1.0, 1.8, n_genes)
    loadings_kg = rng.normal(0, 0.5, (5, n_genes))
    blocks = []
    for start in range(0, n_cells, 1_000):
        n = min(1_000, n_cells - start)
        logits_ng = levels_g + rng.normal(size=(n, 5)) @ loadings_kg
        share_ng = np.exp(logits_ng - logits_ng.max(1, keepdims=True))
        share_ng /= share_ng.sum(1, keepdims=True)
        mean_ng = share_ng * rng.lognormal(np.log(n_genes / 10), 0.4, (n, 1))
        theta = 2.0
        x_ng = rng.poisson(rng.gamma(theta, mean_ng / theta)).astype(np.float32)
        x_ng[:, 0] += 1
        blocks.append(sp.csr_matrix(x_ng))
    obs = pd.DataFrame({"batch": rng.choice(["a", "b"], n_cells)})
    obs.index = obs.index.astype(str)
    return ad.AnnData(sp.vstack(blocks).tocsr(), obs=obs)


def cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def models(cells: ad.AnnData, likelihood: str) -> dict[str, Any]:
    """A new model of each library."""
    import scvi

    from scvi_dist.model import SCVI

    found = {}
    for name, kind in (("scvi-tools", scvi.model.SCVI), ("scvi_dist", SCVI)):
        copy = cells.copy()
        kind.setup_anndata(copy, batch_key="batch")
        torch.manual_seed(0)
        found[name] = kind(copy, gene_likelihood=likelihood)
    return found


def training(cells: ad.AnnData, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    options = {
        "max_epochs": args.epochs,
        "batch_size": args.batch,
        "accelerator": "cpu",
        "train_size": 0.9,
        "enable_progress_bar": False,
    }
    return {
        name: lambda model=model: model.train(**options)
        for name, model in models(cells, args.likelihood).items()
    }


def latent(cells: ad.AnnData, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    both = models(cells, args.likelihood)
    for model in both.values():
        model.module.eval()
        model.is_trained_ = True
    theirs, ours = both.values()
    runs = {
        f"scvi-tools, {size}": lambda size=size: theirs.get_latent_representation(batch_size=size)
        for size in (128, 1024, 8192)
    }
    return runs | {"scvi_dist": ours.get_latent_representation}


def steps(cells: ad.AnnData, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """``args.n_steps`` steps of both modules on one minibatch, with their optimizers."""
    from scvi_dist.batch import CellBatch, SparseCounts

    x = cells.X[: args.batch]
    counts = SparseCounts(
        torch.from_numpy(x.indptr.astype(np.int64)),
        torch.from_numpy(x.indices.astype(np.int32)),
        torch.from_numpy(x.data),
        x.shape[1],
    )
    n = x.shape[0]
    codes = torch.from_numpy(cells.obs["batch"].astype("category").cat.codes.to_numpy()[:n].copy())
    fields = {"batch": codes.long()[:, None], "labels": torch.zeros(n, 1, dtype=torch.int64)}
    sparse = CellBatch(x=counts, fields=fields, rows=np.arange(n), n_global=n)
    dense = {"X": counts.to_dense(), **fields}
    runs = {}
    for name, model in models(cells, args.likelihood).items():
        batch: Any = sparse if name == "scvi_dist" else dense
        trained = [p for p in model.module.parameters() if p.requires_grad]
        fused = True if name == "scvi_dist" else None
        adam = torch.optim.Adam(trained, lr=1e-3, eps=0.01, weight_decay=1e-6, fused=fused)

        def loss(module: Any = model.module, batch: Any = batch) -> torch.Tensor:
            if not isinstance(batch, CellBatch):
                return module(batch, loss_kwargs={"kl_weight": 1.0})[2].loss
            module.noise.at(0, 0, 0, n, n)
            return module.objective(batch, kl_weight=1.0).loss

        def run(module: Any = model.module, loss: Any = loss, adam: Any = adam) -> None:
            module.train()
            for _ in range(args.n_steps):
                adam.zero_grad()
                loss().backward()
                adam.step()

        runs[name] = run
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=4_000)
    parser.add_argument("--cells", type=int, default=4_000)
    parser.add_argument("--likelihood", default="zinb")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--n-steps", type=int, default=5)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--latent", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cells = atlas(args.cells, args.genes)
    runs_of = steps if args.steps else latent if args.latent else training
    seconds: dict[str, list[float]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for _ in range(args.repeats + 1):
        # A trained model would go on training; the others are used again.
        runs = runs_of(cells, args) if runs_of is training or not runs else runs
        for name, run in runs.items():
            seconds.setdefault(name, []).append(cpu_seconds(run))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    ours = medians["scvi_dist"]
    density = cells.X.nnz / np.prod(cells.shape)
    print(f"{args.genes} genes, {args.likelihood}, batch {args.batch}, {density:.1%} no zeros")
    for name, value in medians.items():
        print(f"{name:18s} {value:7.3f} CPU s   {value / ours:5.2f} x scvi_dist")


if __name__ == "__main__":
    main()
