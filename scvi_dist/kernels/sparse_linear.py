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
    """Products of sparse rows with dense ones."""

    def multiply(self, x: SparseCounts, weight_gh: Tensor) -> Tensor:
        """``[n, h]``, of the dtype of the weights."""

    def scatter(self, x: SparseCounts, slope_nh: Tensor, gradient_gh: Tensor) -> None:
        """Add the product of the transposed rows with the slopes to the gradient."""


@dataclass(frozen=True, slots=True)
class SparseColumns:
    """What a layer sees of some cells: the columns of a sparse matrix, then dense ones."""

    sparse: SparseCounts
    dense_nc: Tensor | None
    products: Products

    @property
    def dtype(self) -> torch.dtype:
        return self.sparse.data.dtype

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
        weight_kh = weight_hk.detach().t().contiguous()
        g = x.sparse.n_genes
        out_nh = x.products.multiply(x.sparse, weight_kh[:g])
        if dense_nc is not None:
            out_nh.addmm_(dense_nc.detach(), weight_kh[g:])
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
        gradient_kh = None
        if needs_weight:
            gradient_kh = torch.zeros_like(weight_hk.t(), memory_format=torch.contiguous_format)
            if ctx.first_trained < g:
                ctx.x.products.scatter(ctx.x.sparse, slope_nh, gradient_kh[:g])
            if dense_nc is not None:
                torch.mm(dense_nc.t(), slope_nh, out=gradient_kh[g:])
            gradient_kh[: ctx.first_trained] = 0
        return (
            None,
            None if gradient_kh is None else gradient_kh.t(),
            slope_nh.sum(0) if needs_bias else None,
            slope_nh @ weight_hk[:, g:] if needs_dense else None,
            None,
        )
