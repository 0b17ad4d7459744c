"""Validation ELBO that equal CPU time buys, by batch size, on a real data set.

    python tests/bench/train/bench_batch_size.py --data DIR [--budgets 4 12] [--seeds 0]

For each batch size a short run measures the CPU time of a step; then as many steps as each budget
pays for are made, with the KL warm-up over their first third, once at the default learning rate
and once at one that grows with the root of the batch size. One thread, the same split for all.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData, read_h5ad

from scvi_dist.model import SCVI

DEFAULT_BATCH, DEFAULT_LR = 128, 1e-3
CALIBRATION_CELLS = 4_096


def root_scaled(batch_size: int) -> float:
    """A learning rate that grows with the root of the batch size."""
    return DEFAULT_LR * (batch_size / DEFAULT_BATCH) ** 0.5


def train(
    adata: AnnData, batch_size: int, lr: float, n_steps: int, seed: int
) -> tuple[SCVI, float]:
    """A model after so many steps, and the CPU seconds of them."""
    torch.manual_seed(seed)
    model = SCVI(adata)
    start_s = time.process_time()
    model.train(
        max_epochs=10**6,
        max_steps=n_steps,
        batch_size=batch_size,
        seed=seed,
        accelerator="cpu",
        enable_progress_bar=False,
        plan_kwargs={
            "lr": lr,
            "n_epochs_kl_warmup": None,
            "n_steps_kl_warmup": max(1, n_steps // 3),
        },
    )
    return model, time.process_time() - start_s


def step_seconds(adata: AnnData, batch_size: int) -> float:
    """CPU seconds of a step, without what a run costs once."""
    few = max(2, CALIBRATION_CELLS // batch_size)
    short_s, long_s = (
        train(adata, batch_size, DEFAULT_LR, n_steps, 0)[1] for n_steps in (few, 3 * few)
    )
    return (long_s - short_s) / (2 * few)


def elbo_of(model: SCVI) -> float:
    """Validation ELBO, with the same draws for all."""
    torch.manual_seed(0)
    return float(model.get_elbo(indices=model.validation_indices, batch_size=1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--budgets", type=float, nargs="+", default=[4, 12], help="CPU seconds")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    adata = read_h5ad(args.data / "pbmc_citeseq_10k5k.h5ad")
    del adata.obsm["protein_expression"]
    SCVI.setup_anndata(adata, batch_key="batch")
    train(adata, DEFAULT_BATCH, DEFAULT_LR, 3, 0)  # warms everything up
    budgets = "".join(f"{f'ELBO at {budget:g} s':>16s}" for budget in args.budgets)
    print(f"{'batch':>6s} {'lr':>8s} {'cells/CPU-s':>12s}{budgets}", flush=True)
    for batch_size in args.batches:
        step_s = step_seconds(adata, batch_size)
        for lr in dict.fromkeys((DEFAULT_LR, root_scaled(batch_size))):
            means = []
            for budget_s in args.budgets:
                n_steps = max(1, round(budget_s / step_s))
                runs = [train(adata, batch_size, lr, n_steps, seed)[0] for seed in args.seeds]
                means.append(float(np.mean([elbo_of(model) for model in runs])))
            shown = "".join(f"{mean:16.2f}" for mean in means)
            print(f"{batch_size:6d} {lr:8.2g} {batch_size / step_s:12.0f}{shown}", flush=True)


if __name__ == "__main__":
    main()
