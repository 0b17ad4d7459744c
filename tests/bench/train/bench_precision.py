"""Is mixed precision as good as float32, and faster? The gate that decides where it is offered.

    python tests/bench/train/bench_precision.py --data DIR [--seeds 0 1 2] [--sets pbmc mixology]

Two real data sets, the same cells, order and noise for both precisions. Printed are the validation
ELBO in float32 of both models, their relative difference and the CPU time of both, at one thread.
Mixed precision passes where no seed differs by more than 0.1 % and training is faster.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData, read_h5ad

from scvi_dist.model import SCVI

LIMIT = 1e-3
WARM_UP_EPOCHS = 3
PRECISIONS = ("32-true", "bf16-mixed")
GENES = 2000


def pbmc(folder: Path) -> AnnData:
    """Two batches of blood cells, 4000 genes."""
    adata = read_h5ad(folder / "pbmc_citeseq_10k5k.h5ad")
    del adata.obsm["protein_expression"]
    return adata


def mixology(folder: Path) -> AnnData:
    """Cells of five lines from three protocols, the most variable genes."""
    adata = read_h5ad(folder / "celllines_mixology.h5ad")
    adata = adata[adata.obs["demuxlet_cls"] == "SNG"].copy()
    variance_g = np.log1p(adata.X.toarray()).var(axis=0)
    keep = np.sort(np.argsort(variance_g)[::-1][:GENES])
    return adata[:, keep].copy()


SETS = {"pbmc": (pbmc, 6), "mixology": (mixology, 40)}
"""Name -> its cells, and epochs: about 500 steps each."""


def trained(
    adata: AnnData, precision: str, likelihood: str, epochs: int, seed: int
) -> tuple[float, float]:
    """Validation ELBO, and CPU seconds of training."""
    SCVI.setup_anndata(adata, batch_key="batch")
    torch.manual_seed(seed)
    model = SCVI(adata, gene_likelihood=likelihood)
    start_s = time.process_time()
    model.train(
        max_epochs=epochs,
        seed=seed,
        precision=precision,
        accelerator="cpu",
        enable_progress_bar=False,
        plan_kwargs={"n_epochs_kl_warmup": WARM_UP_EPOCHS},
    )
    cpu_s = time.process_time() - start_s
    torch.manual_seed(0)
    return float(model.get_elbo(indices=model.validation_indices)), cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--likelihood", choices=("zinb", "nb"), default="zinb")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in args.sets:
        load, epochs = SETS[name]
        adata, differences, ratios = load(args.data), [], []
        for precision in PRECISIONS:  # warms everything up
            trained(adata, precision, args.likelihood, 1, 0)
        for seed in args.seeds:
            (elbo, cpu_s), (mixed, mixed_s) = (
                trained(adata, precision, args.likelihood, epochs, seed) for precision in PRECISIONS
            )
            differences.append(abs(mixed - elbo) / abs(elbo))
            ratios.append(cpu_s / mixed_s)
            print(
                f"{name:9s} seed {seed}: ELBO {elbo:10.3f} in float32, {mixed:10.3f} mixed "
                f"({(mixed - elbo) / abs(elbo):+.4%}); {cpu_s:.1f} and {mixed_s:.1f} s of CPU",
                flush=True,
            )
        faster = statistics.median(ratios)
        passed = max(differences) <= LIMIT and faster > 1
        print(
            f"{name}: largest difference {max(differences):.4%} (limit {LIMIT:.1%}), mixed is "
            f"{faster:.2f} x as fast: {'passes' if passed else 'does not pass'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
