"""Cells and SCVI models for tests: small, and of every kind of store."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

from scvi_dist.data import open_store
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.model import SCVI

N, G = 60, 8
SETUP = {"batch_key": "batch", "labels_key": "label"}


def make_adata(seed: int = 0, n: int = N) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3.0, (n, G)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["b0", "b1"], n), categories=["b0", "b1"]),
            "label": pd.Categorical(rng.choice(["x", "y", "z"], n), categories=["x", "y", "z"]),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(G)])
    adata = anndata.AnnData(csr_matrix(counts), obs=obs, var=var)
    adata.layers["counts"] = adata.X.copy()
    return adata


def make_model(data: Any, seed: int = 0, **arguments: Any) -> SCVI:
    """A model that counts as trained, with the weights of a seed."""
    SCVI.setup_anndata(data, **SETUP)
    torch.manual_seed(seed)
    model = SCVI(data, n_hidden=8, n_latent=3, **arguments)
    model.is_trained = True
    return model


def sources_of(adata: anndata.AnnData, folder: Path) -> dict[str, Any]:
    adata.write_h5ad(folder / "a.h5ad")
    write_zarr(open_store(adata), folder / "a.zarr", overwrite=True)
    for i, rows in enumerate((slice(0, 25), slice(25, N))):
        adata[rows].copy().write_h5ad(folder / f"{i}.h5ad")
    return {
        "AnnData": adata.copy(),
        "backed AnnData": anndata.read_h5ad(folder / "a.h5ad", backed="r"),
        "path": folder / "a.h5ad",
        "string": str(folder / "a.zarr"),
        "URL": f"file://{folder / 'a.zarr'}",
        "list": [str(folder / "0.h5ad"), str(folder / "1.h5ad")],
        "store": open_store(folder / "a.zarr"),
    }
