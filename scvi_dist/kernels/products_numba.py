"""Products of sparse rows with dense ones by compiled loops. For CPUs."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from scvi_dist.batch import SparseCounts
from scvi_dist.kernels import sparse_rows, threads


def _csr(x: SparseCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return x.indptr.numpy(), x.indices.numpy(), x.data.numpy()


def multiply(x: SparseCounts, weight_gh: Tensor) -> Tensor:
    """``[n, h]``, of the dtype of the weights."""
    n, h = x.shape[0], weight_gh.shape[1]
    out_nh = torch.zeros(n, h, dtype=weight_gh.dtype)
    csr, weight, out = _csr(x), weight_gh.numpy(), out_nh.numpy()
    spans = threads.cuts(0, n, threads.n_threads())
    threads.run([partial(sparse_rows.multiply_rows, *ab, *csr, weight, out) for ab in spans])
    return out_nh


def scatter(x: SparseCounts, slope_nh: Tensor, gradient_gh: Tensor) -> None:
    """Add the product of the transposed rows with the slopes to the gradient."""
    csr, slope, gradient = _csr(x), slope_nh.numpy(), gradient_gh.numpy()
    spans = threads.cuts(0, slope.shape[1], threads.n_threads())
    threads.run([partial(sparse_rows.scatter_rows, *ab, *csr, slope, gradient) for ab in spans])


def log1p(x: SparseCounts) -> SparseCounts:
    """The logarithm of one plus each entry."""
    out = torch.empty_like(x.data)
    sparse_rows.log1p_entries(x.data.numpy(), out.numpy())
    return SparseCounts(x.indptr, x.indices, out, x.n_genes)


def row_sums(x: SparseCounts) -> Tensor:
    """The sum ``[n]`` of each row, of the dtype of the entries."""
    sums = np.empty(x.shape[0])
    sparse_rows.row_sums(x.indptr.numpy(), x.data.numpy(), sums)
    return torch.from_numpy(sums).to(x.data.dtype)
