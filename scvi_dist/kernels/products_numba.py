"""Products of sparse rows with dense ones by compiled loops. For CPUs."""

from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from scvi_dist.batch import SparseCounts
from scvi_dist.kernels import sparse_rows, threads
from scvi_dist.kernels.workspace import Workspace

LEAST_PRODUCTS_OF_PART = 1_000_000
"""They take some 50 microseconds: fewer are not worth a thread."""
_SPACE = Workspace()


Csr: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""``indptr``, ``indices`` and values."""


def csr_of(x: SparseCounts, dtype: torch.dtype) -> Csr:
    """Arrays that share memory with these rows; values are of this type."""
    return x.indptr.numpy(), x.indices.numpy(), x.data.to(dtype).numpy()


def multiply(x: SparseCounts, weight_gh: Tensor) -> Tensor:
    """``[n, h]``, of the dtype of the weights."""
    matrix_gh = weight_gh.contiguous().numpy()
    return torch.from_numpy(product_of(csr_of(x, weight_gh.dtype), matrix_gh))


def product_of(csr: Csr, matrix_kh: np.ndarray) -> np.ndarray:
    """Sparse rows times a contiguous matrix."""
    out_nh = np.empty((len(csr[0]) - 1, matrix_kh.shape[1]), matrix_kh.dtype)
    _multiply(csr, matrix_kh, out_nh)
    return out_nh


def scatter(x: SparseCounts, slope_nh: Tensor, gradient_gh: Tensor) -> None:
    """Fill the gradient, which is contiguous, with the transposed rows times the slopes."""
    csr = csr_of(x, slope_nh.dtype)
    fill_transposed_product(csr, slope_nh.contiguous().numpy(), gradient_gh.numpy())


def fill_transposed_product(csr: Csr, slope_nh: np.ndarray, gradient_gh: np.ndarray) -> None:
    """Fill a contiguous matrix with transposed sparse rows times contiguous ones.

    Each place is summed in the order of the rows, however many threads there are.
    """
    entries, (g, h) = len(csr[1]), gradient_gh.shape
    rows = _SPACE.array("rows", (entries,), np.int32)
    values = _SPACE.array("values", (entries,), slope_nh.dtype)
    are_sorted = sparse_rows.are_sorted(*csr[:2])
    spans = _spans(g, entries * h) if are_sorted else [(0, g)]
    # One more than the columns of each span, and no two begin at the same place.
    starts = _SPACE.array("starts", (g + len(spans),), np.int64)
    parts = [starts[a + k : b + k + 1] for k, (a, b) in enumerate(spans)]

    def scatter_columns(k: int) -> None:
        transposed = parts[k], rows, values
        sparse_rows.transpose(spans[k], csr, are_sorted, transposed)
        if are_sorted:
            a, b = spans[k]
            sparse_rows.multiply_rows(0, b - a, *transposed, slope_nh, gradient_gh[a:b])

    threads.run([partial(scatter_columns, k) for k in range(len(spans))])
    if not are_sorted:
        _multiply((starts, rows, values), slope_nh, gradient_gh)


def _multiply(csr: Csr, matrix_kh: np.ndarray, out_nh: np.ndarray) -> None:
    spans = _spans(len(out_nh), len(csr[1]) * matrix_kh.shape[1])
    arrays = *csr, matrix_kh, out_nh
    threads.run([partial(sparse_rows.multiply_rows, *ab, *arrays) for ab in spans])


def _spans(n: int, n_products: int) -> list[tuple[int, int]]:
    """The rows of a product for each thread."""
    return threads.cuts(0, n, threads.n_parts(n_products, LEAST_PRODUCTS_OF_PART))


def log1p(x: SparseCounts) -> SparseCounts:
    """The logarithm of one plus each entry."""
    data = x.data.numpy()
    logs = np.empty_like(data)
    sparse_rows.log1p_entries(data, logs)
    return SparseCounts(x.indptr, x.indices, torch.from_numpy(logs), x.n_genes)


def log_row_sums(x: SparseCounts) -> Tensor:
    """The logarithm ``[n]`` of the sum of each row, of the dtype of the entries."""
    sums = np.empty(x.shape[0], x.data.numpy().dtype)
    sparse_rows.log_row_sums(x.indptr.numpy(), x.data.numpy(), sums)
    return torch.from_numpy(sums)


def row_sums(x: SparseCounts) -> Tensor:
    """The sum ``[n]`` of each row, of the dtype of the entries."""
    sums = np.empty(x.shape[0])
    sparse_rows.row_sums(x.indptr.numpy(), x.data.numpy(), sums)
    return torch.from_numpy(sums).to(x.data.dtype)
