"""Small VAEs and minibatches for them."""

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, SparseCounts
from scvi_dist.module import VAE

N, G = 12, 9
SIZES: dict[str, Any] = {"n_input": G, "n_batch": 3, "n_labels": 2, "n_hidden": 16, "n_latent": 4}
LIBRARY = {
    "use_observed_lib_size": False,
    "library_log_means": np.full((1, 3), 3.0),
    "library_log_vars": np.full((1, 3), 0.5),
}
EMBEDDING = {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 2}}
COVARIATES = {"n_continuous_cov": 2, "n_cats_per_cov": [2, 3], "encode_covariates": True}


def build(**args: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(**{**SIZES, **args})


def cells(n: int = N, n_padding: int = 0, **args: Any) -> CellBatch:
    """A sparse minibatch with the covariates that ``args`` ask for; padding repeats its start."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(0.5, 6.0, (n, G))).astype(np.float32)
    fields = {
        REGISTRY_KEYS.BATCH_KEY: rng.integers(0, 3, (n, 1)),
        REGISTRY_KEYS.LABELS_KEY: rng.integers(0, 2, (n, 1)),
        REGISTRY_KEYS.SIZE_FACTOR_KEY: rng.uniform(0.5, 2, (n, 1)).astype(np.float32),
    }
    if "n_cats_per_cov" in args:
        fields[REGISTRY_KEYS.CAT_COVS_KEY] = rng.integers(0, 2, (n, 2))
        fields[REGISTRY_KEYS.CONT_COVS_KEY] = rng.normal(size=(n, 2)).astype(np.float32)
    order = np.concatenate([np.arange(n), np.arange(n_padding)])
    csr = csr_matrix(counts[order])
    arrays = (csr.indptr.astype(np.int64), csr.indices, csr.data)
    return CellBatch(
        SparseCounts(*map(torch.from_numpy, arrays), G),
        {key: torch.from_numpy(value[order]) for key, value in fields.items()},
        order,
        n_global=n,
        n_padding=n_padding,
    )
