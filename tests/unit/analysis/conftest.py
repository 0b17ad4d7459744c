"""A small atlas in every kind of store, and a module that has seen no training."""

import warnings
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from scvi_dist.data import Store, open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.module import VAE

N_CELLS, N_GENES = 60, 12
SETUP = SetupArgs(
    batch_key="batch",
    labels_key="label",
    categorical_covariate_keys=("donor",),
    continuous_covariate_keys=("age",),
)
KINDS = ("memory", "h5ad csr", "h5ad dense", "zarr csr", "zarr dense", "collection", "subset")


def make_adata(n_cells: int = N_CELLS, seed: int = 0) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.7, 2.0, (n_cells, N_GENES))).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["b0", "b1", "b2"], n_cells)),
            "label": pd.Categorical(rng.choice(["x", "y"], n_cells)),
            "donor": pd.Categorical(rng.choice(["d0", "d1"], n_cells)),
            "age": rng.normal(size=n_cells).astype(np.float32),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    return anndata.AnnData(csr_matrix(counts), obs=obs, var=var)


@pytest.fixture(scope="session")
def adata() -> anndata.AnnData:
    return make_adata()


@pytest.fixture(scope="session")
def stores(adata: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("stores")
    dense = adata.copy()
    dense.X = adata.X.toarray()
    adata.write_h5ad(folder / "csr.h5ad")
    dense.write_h5ad(folder / "dense.h5ad")
    with warnings.catch_warnings():
        # anndata and zarr announce their next formats here.
        warnings.simplefilter("ignore")
        adata.write_zarr(folder / "csr.zarr")
        dense.write_zarr(folder / "dense.zarr")
    parts = [folder / f"part{i}.h5ad" for i in range(3)]
    for path, rows in zip(parts, np.array_split(np.arange(N_CELLS), 3), strict=True):
        adata[rows].copy().write_h5ad(path)
    doubled = anndata.concat([make_adata(30, seed=9), adata], index_unique="-", merge="same")
    doubled.obs["part"] = ["other"] * 30 + ["this"] * N_CELLS
    doubled.write_h5ad(folder / "doubled.h5ad")
    return {
        "memory": open_store(adata),
        "h5ad csr": open_store(folder / "csr.h5ad"),
        "h5ad dense": open_store(folder / "dense.h5ad"),
        "zarr csr": open_store(folder / "csr.zarr"),
        "zarr dense": open_store(folder / "dense.zarr"),
        "collection": open_store([str(p) for p in parts]),
        "subset": open_store(folder / "doubled.h5ad", obs_filter="part == 'this'"),
    }


@pytest.fixture(scope="session")
def source(stores: dict[str, Store]) -> OpenSource:
    return OpenSource(stores["h5ad csr"], fit_schema(stores["h5ad csr"], SETUP))


def make_module(**arguments: Any) -> VAE:
    """A module of the atlas's sizes in evaluation mode, with running statistics of its own."""
    torch.manual_seed(0)
    sizes = {"n_batch": 3, "n_labels": 2, "n_cats_per_cov": [2], "n_continuous_cov": 1}
    module = VAE(N_GENES, **sizes, n_hidden=16, n_latent=4, **arguments)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return module.eval()


@pytest.fixture(scope="session")
def module() -> VAE:
    return make_module()
