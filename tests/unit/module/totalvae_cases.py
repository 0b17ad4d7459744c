"""TOTALVAEs of every kind, and minibatches for them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, SparseCounts
from scvi_dist.module import TOTALVAE

N, G, P = 12, 9, 4
SIZES: dict[str, Any] = {
    "n_input_genes": G,
    "n_input_proteins": P,
    "n_batch": 3,
    "n_labels": 2,
    "n_hidden": 16,
    "n_latent": 4,
}
LIBRARY = {
    "use_observed_lib_size": False,
    "library_log_means": np.full((1, 3), 3.0),
    "library_log_vars": np.full((1, 3), 0.5),
}
COVARIATES = {"n_continuous_cov": 2, "n_cats_per_cov": [2, 3]}
MEASURED = {"0": [True] * P, 1: np.array([True, False, True, False]), "2": (False,) * P}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zinb, per batch, missing proteins": {
        "gene_likelihood": "zinb",
        "gene_dispersion": "gene-batch",
        "protein_dispersion": "protein-batch",
        "protein_batch_mask": MEASURED,
    },
    "per label, latent library": {
        "gene_dispersion": "gene-label",
        "protein_dispersion": "protein-label",
        **LIBRARY,
    },
    "ln, size factor": {"latent_distribution": "ln", "use_size_factor_key": True},
    "covariates": {**COVARIATES, "encode_covariates": False, "n_layers_decoder": 2},
    "encoded covariates, one prior, two panels": {
        **COVARIATES,
        "n_panel": 2,
        "panel_key": "panel",
        "protein_batch_mask": {0: [False] * P},
        "protein_background_prior_mean": np.ones((P, 1)),
        "protein_background_prior_scale": np.full((P, 1), 0.5),
    },
    "no batches": {"n_batch": 0, "n_labels": 0},
}
each_variant = pytest.mark.parametrize("args", VARIANTS.values(), ids=VARIANTS)


def build(**args: Any) -> TOTALVAE:
    torch.manual_seed(0)
    return TOTALVAE(**{**SIZES, **args})


def cells(n: int = N, n_padding: int = 0, **args: Any) -> CellBatch:
    """A sparse minibatch with the covariates that ``args`` ask for; padding repeats its start."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(0.5, 6.0, (n, G))).astype(np.float32)
    n_batch = args.get("n_batch", 3)
    fields = {
        REGISTRY_KEYS.PROTEIN_EXP_KEY: rng.poisson(rng.gamma(0.5, 40, (n, P))).astype(np.float32),
        REGISTRY_KEYS.BATCH_KEY: rng.integers(0, max(n_batch, 1), (n, 1)),
        REGISTRY_KEYS.LABELS_KEY: rng.integers(0, 2, (n, 1)),
        REGISTRY_KEYS.SIZE_FACTOR_KEY: rng.uniform(0.5, 2, (n, 1)).astype(np.float32),
    }
    if "n_panel" in args:
        fields["panel"] = rng.integers(0, 2, (n, 1)).astype(np.float32)
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


def with_field(cells: CellBatch, key: str, value: Tensor) -> CellBatch:
    return replace(cells, fields={**cells.fields, key: value})


def bound_loss(module: TOTALVAE, batch: CellBatch, **loss_kwargs: Any) -> Any:
    """The loss with the noise bound to the batch's cells."""
    module.noise.at(3, 0, batch.start, batch.start + batch.n_cells, batch.n_global)
    loss = module(batch, loss_kwargs=loss_kwargs)[2]
    module.noise.unbind()
    return loss


def gradients(module: TOTALVAE, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}
