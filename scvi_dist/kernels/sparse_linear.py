"""A linear layer whose input is mostly zeros: counts, with a few dense columns at their right.

Axis suffixes: ``n`` cells, ``g`` genes, ``c`` dense columns, ``k`` all columns, ``h`` units.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scvi_dist.batch import SparseCounts


class Products(Protocol):
    """Products of sparse rows with dense ones, and perhaps whole layers."""

    @property
    def hidden_layer(self) -> Any:
        """See :class:`~scvi_dist.kernels.choice.Kernel`, as for ``posterior`` and ``fold_norm``."""

    @property
    def posterior(self) -> Any: ...

    @property
    def fold_norm(self) -> Any: ...

    def multiply(self, x: SparseCounts, weight_gh: Tensor) -> Tensor:
        """``[n, h]``, of the dtype of the weights."""

    def scatter(self, x: SparseCounts, slope_nh: Tensor, gradient_gh: Tensor) -> None:
        """Fill the gradient with the product of the transposed rows with the slopes."""


@dataclass(frozen=True, slots=True)
class SparseColumns:
    """What a layer sees of some cells: the columns of a sparse matrix, then dense ones."""

    sparse: SparseCounts
    dense_nc: Tensor | None
    products: Products

    @property
    def dtype(self) -> torch.dtype:
        return self.sparse.data.dtype

    @property
    def shape(self) -> tuple[int, int]:
        n, g = self.sparse.shape
        return n, g if self.dense_nc is None else g + self.dense_nc.shape[1]

    def dim(self) -> int:
        """Axes: cells and columns."""
        return 2

    def with_columns(self, *columns: Tensor) -> "SparseColumns":
        """Dense columns more, at the right."""
        dense = [] if self.dense_nc is None else [self.dense_nc]
        return replace(self, dense_nc=torch.cat([*dense, *columns], dim=-1))

    def linear(self, weight_hk: Tensor, bias_h: Tensor | None, first_trained: int = 0) -> Tensor:
        """``x weightᵀ + bias``, ``[n, h]``.

        Parameters
        ----------
        weight_hk
            Fastest where its transpose is contiguous; see :func:`column_major`.
        first_trained
            The columns of the weights before this one have a gradient of 0.
        """
        return _SparseLinear.apply(self, weight_hk, bias_h, self.dense_nc, first_trained)

    def times(self, weight_hk: Tensor) -> Tensor:
        """``x weightᵀ``, ``[n, h]``; records no graph."""
        weight_kh, g = weight_hk.t().contiguous(), self.sparse.n_genes
        out_nh = self.products.multiply(self.sparse, weight_kh[:g])
        return out_nh if self.dense_nc is None else out_nh.addmm_(self.dense_nc, weight_kh[g:])

    def weight_gradient(
        self, slope_nh: Tensor, weight_hk: Tensor, first_trained: int = 0
    ) -> Tensor:
        """Derivatives by the weights from those by the product."""
        like = weight_hk.t()
        gradient_kh = torch.empty_like(like, memory_format=torch.contiguous_format)
        g = self.sparse.n_genes
        if first_trained < g:
            self.products.scatter(self.sparse, slope_nh, gradient_kh[:g])
        if self.dense_nc is not None:
            torch.mm(self.dense_nc.t(), slope_nh, out=gradient_kh[g:])
        if first_trained:
            gradient_kh[:first_trained] = 0
        return gradient_kh.t()


def column_major(weight_hk: Tensor) -> Tensor:
    """The same weights, with those of a column side by side in memory."""
    return weight_hk.t().contiguous().t()


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: SparseColumns,
        weight_hk: Tensor,
        bias_h: Tensor | None,
        dense_nc: Tensor | None,
        first_trained: int,
    ) -> Tensor:
        dense = None if dense_nc is None else dense_nc.detach()
        out_nh = replace(x, dense_nc=dense).times(weight_hk.detach())
        if bias_h is not None:
            out_nh += bias_h.detach()
        ctx.x, ctx.first_trained = x, first_trained
        ctx.save_for_backward(weight_hk, dense_nc)
        return out_nh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_nh: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight_hk, dense_nc = ctx.saved_tensors
        _, needs_weight, needs_bias, needs_dense, _ = ctx.needs_input_grad
        slope_nh, g = slope_nh.contiguous(), ctx.x.sparse.n_genes
        gradient_hk = None
        if needs_weight:
            x = replace(ctx.x, dense_nc=dense_nc)
            gradient_hk = x.weight_gradient(slope_nh, weight_hk, ctx.first_trained)
        return (
            None,
            gradient_hk,
            slope_nh.sum(0) if needs_bias else None,
            slope_nh @ weight_hk[:, g:] if needs_dense else None,
            None,
        )
