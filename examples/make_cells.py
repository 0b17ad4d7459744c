"""Cells of known types, with proteins, for the run files of this folder.

    python examples/make_cells.py [--cells 3000] [--genes 300] [--folder scvi_dist_runs/examples]

Writes ``cells.h5ad``. run_scanvi.yaml and run_totalvi.yaml read it; your own cells need the same
columns.
"""

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from scvi_dist.data.simulated.simulate import AtlasSize, SimulatedAtlas, SimulatedStore

FOLDER = Path("scvi_dist_runs/examples")
N_TYPES, N_BATCHES = 5, 2
N_PROTEINS = 12
SHARE_KNOWN = 1 / 3


def simulated_cells(n_cells: int, n_genes: int, seed: int = 0) -> anndata.AnnData:
    """Counts with ``batch`` and ``cell_type`` in obs; a third of the types is in ``label`` too."""
    size = AtlasSize(
        n_cells=n_cells, n_genes=n_genes, n_batches=N_BATCHES, n_cell_types=N_TYPES, seed=seed
    )
    store = SimulatedStore(SimulatedAtlas(size))
    obs = store.read_obs(["batch", "cell_type"]).set_index(pd.Index(store.obs_names()))
    is_known = np.random.default_rng([seed, 3]).random(n_cells) < SHARE_KNOWN
    obs["label"] = pd.Categorical(np.where(is_known, obs["cell_type"].astype(str), "Unknown"))
    return anndata.AnnData(
        store.read_rows([(0, n_cells)]).to_scipy(),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(store.var_names)),
    )


def proteins_of(cells: anndata.AnnData, seed: int = 0) -> pd.DataFrame:
    """Counts of proteins ``[n, p]``: background in every cell, much more in one or two types."""
    rng = np.random.default_rng([seed, 4])
    type_n = cells.obs["cell_type"].cat.codes.to_numpy()
    background_p = rng.uniform(2, 8, N_PROTEINS)
    foreground_tp = np.zeros((N_TYPES, N_PROTEINS))
    for protein in range(N_PROTEINS):
        # Every type has a protein of its own; after these, proteins are shared by two.
        others = rng.choice(N_TYPES, size=2, replace=False)
        types = [protein] if protein < N_TYPES else others
        foreground_tp[types, protein] = rng.uniform(60, 150)
    return pd.DataFrame(
        rng.poisson(background_p + foreground_tp[type_n]).astype(np.float32),
        index=cells.obs_names,
        columns=[f"protein_{i:02d}" for i in range(N_PROTEINS)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files go")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    cells = simulated_cells(arguments.cells, arguments.genes)
    cells.obsm["protein_expression"] = proteins_of(cells)
    cells.write_h5ad(arguments.folder / "cells.h5ad")
    size = f"{cells.n_obs:,} cells x {cells.n_vars:,} genes and {N_PROTEINS} proteins"
    print(f"{size} in {arguments.folder}")


if __name__ == "__main__":
    main()
