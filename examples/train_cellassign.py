"""CellAssign: types of cells from a table of marker genes.

    python examples/train_cellassign.py [--cells 2000] [--epochs 100] [--workers 0]

Makes cells of three types in two batches, each with genes of its own, and finds the types again
from the table of these genes.
"""

import argparse
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scvi_dist.model import CellAssign

TYPES = ("B cell", "T cell", "monocyte")
MARKERS_EACH = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0, help="0: train in this process")
    parser.add_argument("--folder", type=Path, help="where everything goes")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="scvi_dist_example_"))
    folder.mkdir(parents=True, exist_ok=True)

    # Counts in which the markers of a cell's type stand out: the model wants e² times at least.
    rng = np.random.default_rng(0)
    n, genes = arguments.cells, [f"gene{i}" for i in range(arguments.genes)]
    kind, batch = rng.integers(len(TYPES), size=n), rng.integers(2, size=n)
    # Where markers are seen seldom, CellAssign tends to give all cells the one type.
    mean = np.full((n, len(genes)), 5.0) * np.where(batch == 0, 1.0, 1.5)[:, None]
    markers = pd.DataFrame(0, index=genes[: MARKERS_EACH * len(TYPES)], columns=list(TYPES))
    for i in range(len(TYPES)):
        of_type = slice(i * MARKERS_EACH, (i + 1) * MARKERS_EACH)
        markers.iloc[of_type, i] = 1
        mean[kind == i, of_type] *= 8
    cells = anndata.AnnData(
        csr_matrix(rng.poisson(mean).astype(np.float32)),
        obs=pd.DataFrame(
            {
                "batch": pd.Categorical(np.where(batch == 0, "one", "two")),
                "truth": pd.Categorical(np.array(TYPES)[kind]),
            },
            index=[f"cell{i}" for i in range(n)],
        ),
        var=pd.DataFrame(index=genes),
    )
    store = folder / "cells.h5ad"
    cells.write_h5ad(store)
    markers.to_csv(folder / "markers.csv")

    # Only the markers are trained on; size factors come from all genes, by one pass over the store.
    CellAssign.setup_anndata(store, batch_key="batch")
    model = CellAssign(store, markers)
    model.train(
        max_epochs=arguments.epochs,
        # Few cells make few steps of 1,024: they are larger here, and training does not end early.
        lr=0.03,
        early_stopping=False,
        num_workers=arguments.workers or None,
        run_dir=folder / "run",
    )

    probabilities = model.predict()
    print(probabilities.head())
    right = (probabilities.idxmax(axis=1).to_numpy() == cells.obs["truth"].to_numpy()).mean()
    print(f"{right:.1%} of the cells are given their type")
    model.save(folder / "model")


if __name__ == "__main__":
    main()
