"""A small AnnData with a bit of everything, for tests and examples of stores."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData


def small_atlas(
    n: int = 57,
    g: int = 23,
    seed: int = 0,
    *,
    density: float = 0.25,
    x: Literal["csr", "dense"] = "csr",
) -> "AnnData":
    """A synthetic AnnData with a bit of everything that a store has to read.

    Counts with empty cells, layers ``counts`` (CSR) and ``spliced`` (dense), raw with more genes
    than X; obs with categories (not sorted, unused, missing), text, numbers, nullable numbers and
    booleans; obsm with an array and a table.
    """
    from anndata import AnnData

    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(index=[f"cell-{i}" for i in range(n)])
    batch = pd.Categorical.from_codes(rng.integers(0, 3, n), ["late", "early", "mid", "never"])
    obs["batch"] = batch
    obs["donor"] = pd.Categorical.from_codes(rng.integers(-1, 2, n), ["d1", "d0"])
    obs["plate"] = pd.Categorical.from_codes(rng.integers(0, 2, n), [7, 3], ordered=True)
    obs["barcode"] = [f"ÄC{i}" for i in range(n)]
    obs["depth"] = rng.gamma(2.0, 3.0, n)
    obs["n_reads"] = rng.integers(0, 1000, n)
    obs["age"] = pd.array([None if i % 5 == 1 else int(i) for i in range(n)], dtype="Int64")
    obs["is_doublet"] = rng.random(n) < 0.3

    def counts(genes: int) -> sparse.csr_matrix:
        dense = rng.poisson(3.0, (n, genes)) * (rng.random((n, genes)) < density)
        dense[1::7] = 0  # cells without a count
        return sparse.csr_matrix(dense.astype(np.float32))

    adata = AnnData(counts(g + 4), obs=obs, var=pd.DataFrame(index=gene_names(g + 4)))
    adata.raw = adata
    adata = adata[:, 2 : g + 2].copy()
    adata.obs = obs  # copying an AnnData drops unused categories
    adata.layers["counts"] = counts(g)
    adata.layers["spliced"] = counts(g).toarray()
    adata.obsm["pca"] = rng.normal(size=(n, 5))
    proteins = rng.integers(0, 50, (n, 3))
    adata.obsm["proteins"] = pd.DataFrame(proteins, index=obs.index, columns=["CD3", "CD4", "CD8"])
    if x == "dense":
        adata.X = adata.X.toarray()
    return adata


def gene_names(g: int) -> list[str]:
    """Names that do not sort in the order of the columns."""
    return [f"gene{(7 * i) % 101}-{i}" for i in range(g)]


def write_atlas(adata: "AnnData", path: Path, *, zarr_format: int = 3, **options: Any) -> Path:
    """Write with anndata, by the suffix of the path, without its warnings; returns the path."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".h5ad":
            adata.copy().write_h5ad(path, **options)
        else:
            with anndata.settings.override(zarr_write_format=zarr_format):
                adata.copy().write_zarr(path, **options)
    return path


def dense_of(adata: "AnnData", layer: str | None = None) -> np.ndarray:
    """The matrix of a layer as an array, in the way of :class:`StoreLocator`'s ``layer``."""
    if layer == "raw":
        values = adata.raw.X
    else:
        values = adata.X if layer is None else adata.layers[layer]
    return values.toarray() if sparse.issparse(values) else np.asarray(values)
