"""Does SCANVI, trained by two workers, find hidden labels as well as scvi-tools'? On real cells.

    python tests/bench/bench_quality_scanvi.py --data DIR [--task some|plate] [--epochs 30 10]

Both sides train SCVI and then SCANVI on the very same cells (scvi-tools' own split for the seed),
for as many epochs, with the same global batch size and settings. Printed is the share of hidden
labels that is found, of single cells and of all (some are doublets of two lines, whose line is the
more frequent one), and the negative log-likelihood of the true labels.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

GENES = 2000
UNKNOWN = "Unknown"
BATCH_SIZE = 128


def load(folder: Path, task: str, seed: int) -> "anndata.AnnData":  # noqa: F821
    """Cells of five lines in five batches; ``obs["known"]`` hides most of the lines.

    ``some``: a fifth of the single cells is known, in all batches. ``plate``: those of one plate
    with all five lines are, and none of the other batches.
    """
    import anndata

    adata = anndata.read_h5ad(folder / "celllines_mixology.h5ad")
    log_x = np.log1p(adata.X.toarray())
    keep = np.sort(np.argsort(log_x.var(axis=0))[::-1][:GENES])
    adata = adata[:, keep].copy()
    single = (adata.obs["demuxlet_cls"] == "SNG").to_numpy()
    if task == "some":
        is_known = single & (np.random.default_rng(seed).random(adata.n_obs) < 0.2)
    else:
        is_known = single & (adata.obs["batch"] == "celseq2_5cl_p1").to_numpy()
    adata.obs["known"] = np.where(is_known, adata.obs["cell_type"].astype(str), UNKNOWN)
    return adata


def found(adata: Any, probabilities: Any) -> dict[str, float]:
    """How many of the hidden labels the probabilities find."""
    true = adata.obs["cell_type"].to_numpy().astype(str)
    names = probabilities.columns.to_numpy().astype(str)
    probs_nc = probabilities.to_numpy()
    hidden = (adata.obs["known"] == UNKNOWN).to_numpy()
    single = hidden & (adata.obs["demuxlet_cls"] == "SNG").to_numpy()
    right = names[probs_nc.argmax(axis=1)] == true
    of_true = probs_nc[np.arange(len(true)), [names.tolist().index(t) for t in true]]
    return {
        "single_cells": int(single.sum()),
        "accuracy_single_cells": float(right[single].mean()),
        "accuracy_all_hidden": float(right[hidden].mean()),
        "label_nll_single_cells": float(-np.log(np.maximum(of_true[single], 1e-12)).mean()),
    }


def ours(adata: Any, epochs: list[int], seed: int) -> tuple[Any, np.ndarray]:
    """Probabilities and validation cells of a run with two workers."""
    from scvi_dist.model import SCANVI, SCVI

    SCVI.setup_anndata(adata, batch_key="batch")
    base = SCVI(adata, gene_likelihood="nb")
    shared = {"batch_size": BATCH_SIZE, "train_size": 0.9, "seed": seed, "num_workers": 2}
    with tempfile.TemporaryDirectory() as folder:
        base.train(max_epochs=epochs[0], run_dir=Path(folder) / "scvi", **shared)
        model = SCANVI.from_scvi_model(base, UNKNOWN, "known")
        model.train(max_epochs=epochs[1], run_dir=Path(folder) / "scanvi", **shared)
    return model.predict(soft=True), np.sort(model.validation_indices)


def theirs(adata: Any, epochs: list[int], seed: int) -> tuple[Any, np.ndarray]:
    """The same of scvi-tools in one process."""
    import scvi

    scvi.settings.seed = seed
    copy = adata.copy()
    scvi.model.SCVI.setup_anndata(copy, batch_key="batch")
    base = scvi.model.SCVI(copy, gene_likelihood="nb")
    shared = {
        "batch_size": BATCH_SIZE,
        "train_size": 0.9,
        "enable_progress_bar": False,
        "accelerator": "cpu",
    }
    base.train(max_epochs=epochs[0], **shared)
    model = scvi.model.SCANVI.from_scvi_model(base, UNKNOWN, "known")
    model.train(max_epochs=epochs[1], **shared)
    return model.predict(soft=True), np.sort(model.validation_indices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--task", choices=["some", "plate"], nargs="+", default=["some", "plate"])
    parser.add_argument("--epochs", type=int, nargs=2, default=[30, 10], help="SCVI, SCANVI")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for task in arguments.task:
        for seed in arguments.seeds:
            adata = load(arguments.data, task, seed)
            report: dict[str, Any] = {"task": task, "seed": seed, "epochs": arguments.epochs}
            splits = []
            for name, run in (("scvi_dist", ours), ("scvi_tools", theirs)):
                start = time.perf_counter()
                probabilities, validation = run(adata, arguments.epochs, seed)
                report[name] = found(adata, probabilities)
                report[name]["seconds"] = round(time.perf_counter() - start, 1)
                splits.append(validation)
            assert np.array_equal(*splits), "splits differ"
            print(json.dumps(report, indent=2), flush=True)


if __name__ == "__main__":
    main()
