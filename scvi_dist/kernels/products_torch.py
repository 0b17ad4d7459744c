"""Products of sparse rows with dense ones by torch, on any device.

Rows are made dense: torch's own sparse products are slower where one entry in twenty is no zero.
"""

import torch
from torch import Tensor

from scvi_dist.batch import SparseCounts


def multiply(x: SparseCounts, weight_gh: Tensor) -> Tensor:
    """``[n, h]``, of the dtype of the weights."""
    return x.to_dense().to(weight_gh.dtype) @ weight_gh


def scatter(x: SparseCounts, slope_nh: Tensor, gradient_gh: Tensor) -> None:
    """Fill the gradient with the product of the transposed rows with the slopes."""
    torch.mm(x.to_dense().to(slope_nh.dtype).t(), slope_nh, out=gradient_gh)


def log1p(x: SparseCounts) -> SparseCounts:
    """The logarithm of one plus each entry."""
    return SparseCounts(x.indptr, x.indices, torch.log1p(x.data), x.n_genes)


def row_sums(x: SparseCounts) -> Tensor:
    """The sum ``[n]`` of each row, of the dtype of the entries."""
    rows = torch.repeat_interleave(
        torch.arange(x.shape[0], device=x.data.device), x.indptr.diff(), output_size=len(x.data)
    )
    sums = torch.zeros(x.shape[0], dtype=torch.float64, device=x.data.device)
    return sums.index_add_(0, rows, x.data.double()).to(x.data.dtype)
