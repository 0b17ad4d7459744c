"""SCANVI: labels for all cells of an atlas from those of a few.

    python examples/train_scanvi.py [--cells 3000] [--epochs 15] [--workers 0]

Makes a small atlas, hides most of its cell types, learns a latent space with SCVI, goes on from it
with SCANVI, and compares the predicted types with the hidden ones.
"""

import argparse
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from scvi_dist.data import simulate_atlas
from scvi_dist.model import SCANVI, SCVI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--labelled", type=float, default=0.2, help="share of cells with a label")
    parser.add_argument("--workers", type=int, default=0, help="0: train in this process")
    parser.add_argument("--folder", type=Path, help="where everything goes")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="scvi_dist_example_"))
    how = {
        "max_epochs": arguments.epochs,
        "batch_size": 64,
        "plan_kwargs": {"n_epochs_kl_warmup": arguments.epochs},
        "num_workers": arguments.workers or None,
    }

    # An atlas of which few cells are labelled.
    files = simulate_atlas(folder / "atlas", n_cells=arguments.cells, n_genes=arguments.genes)
    cells = anndata.read_zarr(files.zarr)
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    is_known = np.random.default_rng(0).random(cells.n_obs) < arguments.labelled
    cells.obs["label"] = pd.Categorical(np.where(is_known, truth, "Unknown"))
    atlas = folder / "partly_labelled.h5ad"
    cells.write_h5ad(atlas)

    # First the latent space, which needs no labels; then the labels.
    SCVI.setup_anndata(atlas, batch_key="batch", labels_key="label")
    scvi = SCVI(atlas, gene_likelihood="nb")
    scvi.train(run_dir=folder / "scvi", **how)
    scanvi = SCANVI.from_scvi_model(scvi, unlabeled_category="Unknown")
    scanvi.train(run_dir=folder / "scanvi", **how)

    predicted = scanvi.predict()
    accuracy = float((predicted == truth)[~is_known].mean())
    print(f"{is_known.sum():,} cells had a label; {accuracy:.1%} of the others are right")
    print(scanvi.predict(soft=True, indices=[0, 1, 2]))
    scanvi.predict(out=folder / "predictions.zarr")
    scanvi.save(folder / "model")


if __name__ == "__main__":
    main()
