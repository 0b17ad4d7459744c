"""What a CellAssign module is built from, and what it takes from a minibatch.

Axis suffixes: ``n`` cells, ``g`` genes, ``c`` types, ``p`` columns of the design matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, SparseCounts
from scvi_dist.errors import ConfigError, FieldNotFound
from scvi_dist.kernels.cell_types import N_BASIS
from scvi_dist.module.base import Tensors
from scvi_dist.nn import one_hot


def size_factor_of(tensors: Tensors) -> Tensor:
    """Size factors ``[n, 1]``."""
    values = tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
    if values is None:
        raise FieldNotFound(
            f"CellAssign needs size factors, but the minibatch has no "
            f"{REGISTRY_KEYS.SIZE_FACTOR_KEY!r}: name their obs column as size_factor_key when "
            "the data is set up."
        )
    return values


def counts_of(tensors: Tensors) -> SparseCounts | Tensor:
    """The counts as they came, sparse or not."""
    return tensors.x if isinstance(tensors, CellBatch) else tensors[REGISTRY_KEYS.X_KEY]


def design_matrix_of(
    tensors: Tensors, n_batch: int, n_cats_per_cov: Sequence[int], dtype: torch.dtype
) -> Tensor | None:
    """``[n, p]``: indicators of the batch, continuous covariates, indicators of the others."""
    columns = []
    if n_batch:
        columns.append(one_hot(tensors[REGISTRY_KEYS.BATCH_KEY], n_batch, dtype))
    continuous = tensors.get(REGISTRY_KEYS.CONT_COVS_KEY)
    if continuous is not None:
        columns.append(continuous.to(dtype))
    codes = tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
    if codes is not None:
        split = torch.split(codes, 1, dim=1)
        columns += [one_hot(c, size, dtype) for c, size in zip(split, n_cats_per_cov, strict=True)]
    return torch.cat(columns, dim=1) if columns else None


def check_arguments(n_genes: int, rho: Tensor, means_b: Tensor, b_g_0: Tensor | None) -> None:
    """Refuse arguments of a module whose shapes do not fit together."""
    if rho.dim() != 2 or rho.shape[0] != n_genes or rho.shape[1] < 1:
        raise ConfigError(
            f"rho is a table of {n_genes} genes (rows) by cell types (columns); its shape is "
            f"{list(rho.shape)}."
        )
    if means_b.shape != (N_BASIS,):
        raise ConfigError(f"basis_means holds {N_BASIS} values; its shape is {list(means_b.shape)}")
    if b_g_0 is not None and b_g_0.shape != (n_genes,):
        raise ConfigError(
            f"b_g_0 has a value for each of {n_genes} genes, not {list(b_g_0.shape)}."
        )
