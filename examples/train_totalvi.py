"""TOTALVI: genes and surface proteins of the same cells in one latent space.

    python examples/train_totalvi.py [--cells 2000] [--epochs 20] [--workers 0]

Makes cells of two batches, of which one has no proteins, and imputes them.
"""

import argparse
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scvi_dist.model import TOTALVI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--proteins", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0, help="0: train in this process")
    parser.add_argument("--folder", type=Path, help="where everything goes")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="scvi_dist_example_"))
    folder.mkdir(parents=True, exist_ok=True)

    # Four programs of genes, each with proteins that follow them.
    rng = np.random.default_rng(0)
    n, n_genes, n_proteins = arguments.cells, arguments.genes, arguments.proteins
    program, batch = rng.integers(4, size=n), rng.integers(2, size=n)
    genes = rng.poisson(rng.gamma(1.0, size=(4, n_genes))[program]).astype(np.float32)
    proteins = rng.poisson(5 + rng.gamma(0.5, 60.0, size=(4, n_proteins))[program])
    # A protein that no cell of a batch has a count of was not measured there.
    seen = pd.DataFrame(
        np.where(batch[:, None] == 0, proteins, 0).astype(np.float32),
        index=[f"cell{i}" for i in range(n)],
        columns=[f"protein{i}" for i in range(n_proteins)],
    )
    cells = anndata.AnnData(
        csr_matrix(genes),
        obs=pd.DataFrame(
            {"batch": pd.Categorical(np.where(batch == 0, "with", "without"))}, index=seen.index
        ),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]),
        obsm={"proteins": seen},
    )
    store = folder / "cells.h5ad"
    cells.write_h5ad(store)

    TOTALVI.setup_anndata(store, protein_expression_obsm_key="proteins", batch_key="batch")
    model = TOTALVI(store)
    model.train(
        max_epochs=arguments.epochs,
        n_epochs_kl_warmup=arguments.epochs,
        num_workers=arguments.workers or None,
        run_dir=folder / "run",
    )

    # Every cell as if it were of the batch with proteins.
    hidden = np.flatnonzero(batch == 1)
    _, imputed = model.get_normalized_expression(
        indices=hidden, transform_batch="with", n_samples=10, include_protein_background=True
    )
    scores = [
        np.corrcoef(imputed.iloc[:, p], np.log1p(proteins[hidden, p]))[0, 1]
        for p in range(n_proteins)
    ]
    print(f"imputed and true proteins: mean correlation {np.mean(scores):.2f}")
    print(model.get_latent_representation().shape)
    model.save(folder / "model")


if __name__ == "__main__":
    main()
