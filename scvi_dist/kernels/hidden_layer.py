"""A hidden layer as one differentiable function: linear, batch norm, ReLU, dropout. For CPUs.

Axis suffixes: ``n`` cells, ``k`` inputs, ``h`` hidden units.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scvi_dist.kernels.hidden_rows import Moments, Norm, activate, deactivate
from scvi_dist.kernels.sparse_linear import SparseColumns

Input: TypeAlias = Tensor | SparseColumns


def hidden_layer(
    x: Input, linear: nn.Linear, norm: nn.BatchNorm1d, keep_nh: Tensor | None, factor: float
) -> Tensor:
    """The units ``[n, h]`` of a layer that is trained.

    Parameters
    ----------
    x
        ``[n, k]``.
    linear, norm
        The norm is moved, as in each training step.
    keep_nh
        1 where a unit is kept, else 0; None where all are.
    factor
        What kept units are multiplied by.
    """
    first_trained = linear.in_features - getattr(linear, "n_trained", linear.in_features)
    layer = _Layer(x, norm, keep_nh, factor, first_trained)
    dense = x.dense_nc if isinstance(x, SparseColumns) else x
    return _HiddenLayer.apply(layer, linear.weight, linear.bias, norm.weight, norm.bias, dense)


@dataclass(frozen=True, slots=True)
class _Layer:
    x: Input
    norm: nn.BatchNorm1d
    keep_nh: Tensor | None
    factor: float
    first_trained: int

    def activated(
        self, units_nh: Tensor, bias_h: Tensor | None, weight_h: Tensor, offset_h: Tensor
    ) -> tuple[Tensor, Moments]:
        """The units, and the moments that they were normalised by."""
        norm, h = self.norm, units_nh.shape[1]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.numpy()[...] += 1
        out_nh = torch.empty_like(units_nh)
        real = out_nh.numpy().dtype
        moments = Moments(np.empty(h), np.empty(h))
        activate(
            units_nh.numpy(),
            np.zeros(h, real) if bias_h is None else bias_h.numpy(),
            Norm(*(t.numpy() for t in (weight_h, offset_h, norm.running_mean, norm.running_var))),
            np.empty((0, 0), real) if self.keep_nh is None else self.keep_nh.numpy(),
            (norm.eps, float(norm.momentum or 0.0), self.factor),
            moments,
            out_nh.numpy(),
        )
        return out_nh, moments


class _HiddenLayer(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        layer: _Layer,
        weight_hk: Tensor,
        bias_h: Tensor | None,
        norm_weight_h: Tensor,
        norm_bias_h: Tensor,
        dense_nk: Tensor | None,
    ) -> Tensor:
        x = layer.x
        if isinstance(x, SparseColumns):
            dense = None if dense_nk is None else dense_nk.detach()
            units_nh = replace(x, dense_nc=dense).times(weight_hk.detach())
        else:
            units_nh = torch.mm(x.detach(), weight_hk.detach().t())
        plain = (None if t is None else t.detach() for t in (bias_h, norm_weight_h, norm_bias_h))
        out_nh, ctx.moments = layer.activated(units_nh, *plain)  # type: ignore[arg-type]
        ctx.layer = layer
        ctx.save_for_backward(weight_hk, norm_weight_h, dense_nk, units_nh, out_nh)
        return out_nh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_nh: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight_hk, norm_weight_h, dense_nk, units_nh, out_nh = ctx.saved_tensors
        _, needs_weight, needs_bias, needs_norm, needs_offset, needs_dense = ctx.needs_input_grad
        gradient_nh = torch.empty_like(units_nh)
        sums_3h = np.empty((3, units_nh.shape[1]))
        deactivate(
            slope_nh.contiguous().numpy(),
            units_nh.numpy(),
            out_nh.numpy(),
            norm_weight_h.numpy(),
            ctx.layer.factor,
            ctx.moments,
            gradient_nh.numpy(),
            sums_3h,
        )
        by_offset, by_norm, by_bias = torch.from_numpy(sums_3h).to(units_nh.dtype).unbind()
        by_weight, x, first_dense = None, ctx.layer.x, 0
        if isinstance(x, SparseColumns):
            first_dense = x.sparse.n_genes
            if needs_weight:
                x = replace(x, dense_nc=dense_nk)
                by_weight = x.weight_gradient(gradient_nh, weight_hk, ctx.layer.first_trained)
        elif needs_weight:
            by_weight = torch.mm(gradient_nh.t(), dense_nk)
        return (
            None,
            by_weight,
            by_bias if needs_bias else None,
            by_norm if needs_norm else None,
            by_offset if needs_offset else None,
            torch.mm(gradient_nh, weight_hk[:, first_dense:]) if needs_dense else None,
        )
