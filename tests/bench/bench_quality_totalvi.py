"""Does totalVI, trained by two workers, impute hidden proteins as well as scvi-tools' does?

    python tests/bench/bench_quality_totalvi.py --data DIR [--epochs 40] [--genes 2000]

Of the PBMC10k cells of ``pbmc_citeseq_10k5k.h5ad`` a random half is made a batch of its own whose
proteins are hidden (all zeros, as a batch without proteins looks). Both sides train on the very
same cells (scvi-tools' own split for the seed), for as many epochs, with the same settings and the
same number of latent draws. Printed is, for each protein, Pearson's r between the logarithms
``log(1 + y)`` of the imputed and the true counts of the hidden cells, and its mean over proteins.

``--truth FILE`` (a CSV of counts, hidden cells x proteins, named as in the file) takes the PBMC5k
cells for the hidden batch instead, as the paper does; their counts are not in the file.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PROTEINS = "protein_expression"
MEASURED, HIDDEN = "measured", "hidden"
WARM_UP_EPOCHS = 10
N_SAMPLES = 25


def load(path: Path, truth: Path | None, n_genes: int, seed: int) -> tuple[Any, pd.DataFrame]:
    """Cells with ``obs["batch"]``, and the true counts of the hidden ones."""
    import anndata

    adata = anndata.read_h5ad(path)
    if truth is None:
        adata = adata[adata.obs["batch"] == "PBMC10k"].copy()
        is_hidden = np.random.default_rng(seed).permutation(adata.n_obs) % 2 == 1
        counts = adata.obsm[PROTEINS].loc[is_hidden].copy()
    else:
        is_hidden = (adata.obs["batch"] == "PBMC5k").to_numpy()
        counts = pd.read_csv(truth, index_col=0).loc[adata.obs_names[is_hidden]]
        counts = counts[adata.obsm[PROTEINS].columns]
    adata.obs["batch"] = pd.Categorical(np.where(is_hidden, HIDDEN, MEASURED))
    adata.obsm[PROTEINS].loc[is_hidden] = 0
    log_x = adata.X.log1p()
    variance = np.asarray(log_x.multiply(log_x).mean(0) - np.square(log_x.mean(0))).ravel()
    keep = np.sort(np.argsort(variance)[::-1][:n_genes])
    return adata[:, keep].copy(), counts


def settings_of(epochs: int) -> dict[str, Any]:
    """What both sides are told of training."""
    return {
        "max_epochs": epochs,
        "train_size": 0.9,
        "batch_size": 256,
        "early_stopping": False,
        "n_epochs_kl_warmup": WARM_UP_EPOCHS,
    }


def ours(adata: Any, epochs: int, seed: int) -> tuple[Any, np.ndarray]:
    """A model trained by two workers, and its validation cells."""
    from scvi_dist import settings
    from scvi_dist.model import TOTALVI

    settings.seed = seed
    TOTALVI.setup_anndata(adata, PROTEINS, batch_key="batch")
    model = TOTALVI(adata)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = str(Path(folder) / "run")
        model.train(**settings_of(epochs), seed=seed, num_workers=2, run_dir=run_dir)
    return model, np.sort(model.validation_indices)


def theirs(adata: Any, epochs: int, seed: int) -> tuple[Any, np.ndarray]:
    """The same of scvi-tools in one process."""
    import scvi

    scvi.settings.seed = seed
    copy = adata.copy()
    scvi.model.TOTALVI.setup_anndata(copy, PROTEINS, batch_key="batch")
    model = scvi.model.TOTALVI(copy)
    model.train(**settings_of(epochs), enable_progress_bar=False, accelerator="cpu")
    return model, np.sort(model.validation_indices)


def correlations(model: Any, hidden: np.ndarray, counts: pd.DataFrame) -> pd.Series:
    """Pearson's r of each protein over the hidden cells, between logarithms of counts."""
    _, imputed = model.get_normalized_expression(
        indices=hidden,
        transform_batch=MEASURED,
        n_samples=N_SAMPLES,
        include_protein_background=True,
    )
    return np.log1p(imputed).corrwith(np.log1p(counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--truth", type=Path, help="counts of the PBMC5k cells' proteins")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")

    path = given.data / "pbmc_citeseq_10k5k.h5ad"
    adata, counts = load(path, given.truth, given.genes, given.seed)
    hidden = np.flatnonzero(adata.obs["batch"] == HIDDEN)
    table, report, splits = {}, {}, []
    for name, train in (("scvi_dist", ours), ("scvi_tools", theirs)):
        started = time.perf_counter()
        model, validation = train(adata, given.epochs, given.seed)
        splits.append(validation)
        report[name] = {
            "seconds": round(time.perf_counter() - started, 1),
            "elbo_validation": round(float(model.history["elbo_validation"].iloc[-1, 0]), 2),
        }
        table[name] = correlations(model, hidden, counts)
        report[name]["mean_pearson_r"] = round(float(table[name].mean()), 4)
    assert np.array_equal(*splits), "the splits differ"
    print(pd.DataFrame(table).round(3).to_string())
    print(json.dumps({"epochs": given.epochs, "genes": adata.n_vars, **report}, indent=2))


if __name__ == "__main__":
    main()
