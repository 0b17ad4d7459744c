"""What a layer sees times its weights, and the derivatives of that. For CPUs.

Axis suffixes: ``n`` cells, ``k`` inputs, ``c`` dense columns, ``h`` hidden units.
"""

import numpy as np
import torch
from torch import Tensor, nn

from scvi_dist.kernels.products_numba import csr_of, fill_transposed_product, product_of
from scvi_dist.kernels.small_products import multiply_few, multiply_few_slopes
from scvi_dist.kernels.sparse_linear import SparseColumns

FEW_INPUTS = 32
"""With so few a product takes less time than a matrix library's begins with."""


class LayerProduct:
    """The product of one minibatch after the other with weights that stay where they are.

    Parameters
    ----------
    linear
        Its bias is not looked at.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self._weight_hk = linear.weight.detach()
        self._array_hk = self._weight_hk.numpy()
        self._first_trained = linear.in_features - getattr(linear, "n_trained", linear.in_features)

    def forward(self, x: np.ndarray | SparseColumns) -> np.ndarray:
        """``x weightᵀ``, ``[n, h]``; arrays are contiguous."""
        self._x = x
        if isinstance(x, SparseColumns):
            return self._of_sparse(x)
        if x.shape[1] > FEW_INPUTS:
            return torch.mm(torch.from_numpy(x), self._weight_hk.t()).numpy()
        units_nh = np.empty((len(x), len(self._array_hk)), x.dtype)
        multiply_few(x, self._array_hk, units_nh)
        return units_nh

    def _of_sparse(self, x: SparseColumns) -> np.ndarray:
        weight_kh, g = np.ascontiguousarray(self._array_hk.T), x.sparse.n_genes
        self._csr = csr_of(x.sparse, self._weight_hk.dtype)
        units_nh = product_of(self._csr, weight_kh[:g])
        if x.dense_nc is not None:
            dense_nc, weight_ch = x.dense_nc.detach(), torch.from_numpy(weight_kh[g:])
            torch.from_numpy(units_nh).addmm_(dense_nc, weight_ch)
        return units_nh

    def backward(
        self, gradient_nh: np.ndarray, wants_weight: bool, n_dense: int
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Derivatives by the weights and by the first dense columns of the input."""
        x = self._x
        if isinstance(x, SparseColumns):
            by_weight = self._by_sparse_weight(x, gradient_nh) if wants_weight else None
            return by_weight, self._by_dense(gradient_nh, x.sparse.n_genes, n_dense)
        if x.shape[1] > FEW_INPUTS:
            by_dense = self._by_dense(gradient_nh, 0, n_dense)
            if not wants_weight:
                return None, by_dense
            by_weight_hk = torch.mm(torch.from_numpy(gradient_nh).t(), torch.from_numpy(x))
            return by_weight_hk.numpy(), by_dense
        by_weight = np.empty(self._array_hk.shape if wants_weight else (0, 0), x.dtype)
        by_x = np.empty((len(x), n_dense), x.dtype)
        multiply_few_slopes(gradient_nh, x, self._array_hk, by_weight, by_x)
        return by_weight if wants_weight else None, by_x if n_dense else None

    def _by_sparse_weight(self, x: SparseColumns, gradient_nh: np.ndarray) -> np.ndarray:
        g, first = x.sparse.n_genes, self._first_trained
        # Of each column side by side, as weights of sparse columns are.
        by_weight_kh = np.empty(self._array_hk.shape[::-1], gradient_nh.dtype)
        if first < g:
            fill_transposed_product(self._csr, gradient_nh, by_weight_kh[:g])
        if x.dense_nc is not None:
            out_ch, dense_cn = torch.from_numpy(by_weight_kh[g:]), x.dense_nc.detach().t()
            torch.mm(dense_cn, torch.from_numpy(gradient_nh), out=out_ch)
        by_weight_kh[:first] = 0.0
        return by_weight_kh.T

    def _by_dense(self, gradient_nh: np.ndarray, first: int, n_dense: int) -> np.ndarray | None:
        if not n_dense:
            return None
        weight_hc: Tensor = self._weight_hk[:, first : first + n_dense]
        return torch.mm(torch.from_numpy(gradient_nh), weight_hc).numpy()
