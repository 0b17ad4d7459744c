"""SCVI from a store to a latent space, as in a notebook.

    python examples/train_scvi.py [--cells 3000] [--epochs 5] [--workers 0]

Makes a small atlas, trains on it, writes the latent space next to it, and saves a model that
scvi-tools opens too. With ``--workers 2`` the very same calls train by Ray Train workers.
"""

import argparse
import tempfile
from pathlib import Path

from scvi_dist import open_store
from scvi_dist.data import simulate_atlas
from scvi_dist.model import SCVI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="0: train in this process")
    parser.add_argument("--folder", type=Path, help="where everything goes")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="scvi_dist_example_"))

    # An atlas on disk. Yours may be any h5ad or Zarr store, or an AnnData in memory.
    files = simulate_atlas(folder / "atlas", n_cells=arguments.cells, n_genes=arguments.genes)
    atlas = open_store(files.zarr)
    print(f"{atlas.n_obs:,} cells x {atlas.n_vars:,} genes; obs has {', '.join(atlas.obs_columns)}")

    # As in scvi-tools.
    SCVI.setup_anndata(atlas, batch_key="batch")
    model = SCVI(atlas, gene_likelihood="nb")
    model.train(
        max_epochs=arguments.epochs,
        early_stopping=True,
        plan_kwargs={"n_epochs_kl_warmup": arguments.epochs},
        num_workers=arguments.workers or None,
        run_dir=folder / "run",
    )
    print(model.history["elbo_validation"])

    # Results come back as arrays, or go to a store shard by shard.
    latent_nk = model.get_latent_representation()
    model.get_latent_representation(out=folder / "latent.zarr")
    print(f"latent space {latent_nk.shape}, also in {folder / 'latent.zarr'}")

    # `scvi.model.SCVI.load` opens this folder as well.
    model.save(folder / "model")
    again = SCVI.load(folder / "model", adata=atlas)
    print(again)


if __name__ == "__main__":
    main()
