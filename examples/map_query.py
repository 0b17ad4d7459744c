"""Query mapping: new cells in the latent space of a trained model, which stays as it is.

    python examples/map_query.py [--cells 3000] [--epochs 10]

Trains a reference on two batches, takes a third one that lacks some of the genes, and maps it:
only the weights of the new batch are trained.
"""

import argparse
import tempfile
from pathlib import Path

import anndata

from scvi_dist.data import simulate_atlas
from scvi_dist.model import SCVI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where everything goes")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="scvi_dist_example_"))

    files = simulate_atlas(folder / "atlas", n_cells=arguments.cells, n_genes=arguments.genes)
    cells = anndata.read_zarr(files.zarr)
    *known, new = cells.obs["batch"].cat.categories
    reference_cells = cells[cells.obs["batch"].isin(known)].copy()
    n_measured = int(0.9 * cells.n_vars)
    query_cells = cells[cells.obs["batch"] == new, :n_measured].copy()

    # Two layers into which the batch is injected, so that the encoder can be adapted too.
    SCVI.setup_anndata(reference_cells, batch_key="batch")
    reference = SCVI(reference_cells, n_layers=2, encode_covariates=True)
    warm_up = {"n_epochs_kl_warmup": arguments.epochs}
    reference.train(max_epochs=arguments.epochs, plan_kwargs=warm_up)
    reference.save(folder / "reference")

    # Genes that the query lacks become zeros. A store is given the same way; it is not changed.
    SCVI.prepare_query_anndata(query_cells, folder / "reference")
    query = SCVI.load_query_data(query_cells, folder / "reference")
    # Without weight decay nothing of the reference moves.
    query.train(max_epochs=arguments.epochs, plan_kwargs={**warm_up, "weight_decay": 0.0})

    latent_nk = query.get_latent_representation()
    print(f"{len(latent_nk):,} cells of batch {new!r} in {latent_nk.shape[1]} dimensions")
    query.save(folder / "query")


if __name__ == "__main__":
    main()
