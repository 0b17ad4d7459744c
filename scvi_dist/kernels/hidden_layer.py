"""A hidden layer as one differentiable function: linear, batch norm, ReLU, dropout. For CPUs.

Axis suffixes: ``n`` cells, ``k`` inputs, ``h`` hidden units.
"""

from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

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
    dense = x.dense_nc if isinstance(x, SparseColumns) else x
    layer = LayerPass(linear, norm, keep_nh, factor)
    return _HiddenLayer.apply(layer, x, linear.weight, linear.bias, norm.weight, norm.bias, dense)


class LayerSlopes(NamedTuple):
    """Derivatives of an objective; None by what is not trained or was not asked for."""

    weight: Tensor | None
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    dense: Tensor | None
    """By the first dense columns of the input."""


class LayerPass:
    """A layer of one minibatch, forward and then backward; no graph is recorded.

    Parameters
    ----------
    linear, norm, keep_nh, factor
        As for :func:`hidden_layer`.
    """

    def __init__(
        self, linear: nn.Linear, norm: nn.BatchNorm1d, keep_nh: Tensor | None, factor: float
    ) -> None:
        self.linear, self.norm, self.keep_nh, self.factor = linear, norm, keep_nh, factor
        self.weight_hk = linear.weight.detach()

    def forward(self, x: Input) -> Tensor:
        """The units ``[n, h]``."""
        self.x, weight_hk = x, self.weight_hk
        is_sparse = isinstance(x, SparseColumns)
        self.units_nh = x.times(weight_hk) if is_sparse else torch.mm(x, weight_hk.t())
        self.out_nh = torch.empty_like(self.units_nh)
        self.moments = self._activate(self.units_nh, self.out_nh)
        return self.out_nh

    def _activate(self, units_nh: Tensor, out_nh: Tensor) -> Moments:
        norm, h = self.norm, units_nh.shape[1]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.numpy()[...] += 1
        real = out_nh.numpy().dtype
        bias, moments = self.linear.bias, Moments(np.empty(h), np.empty(h))
        state = norm.weight, norm.bias, norm.running_mean, norm.running_var
        activate(
            units_nh.numpy(),
            np.zeros(h, real) if bias is None else bias.detach().numpy(),
            Norm(*(t.detach().numpy() for t in state)),
            np.empty((0, 0), real) if self.keep_nh is None else self.keep_nh.numpy(),
            (norm.eps, float(norm.momentum or 0.0), self.factor),
            moments,
            out_nh.numpy(),
        )
        return moments

    def backward(self, slope_nh: Tensor, n_dense: int) -> LayerSlopes:
        """From derivatives by the units.

        Parameters
        ----------
        n_dense
            Dense columns of the input by which derivatives are asked for.
        """
        linear, norm, units_nh = self.linear, self.norm, self.units_nh
        gradient_nh = torch.empty_like(units_nh)
        sums_3h = np.empty((3, units_nh.shape[1]))
        deactivate(
            slope_nh.contiguous().numpy(),
            units_nh.numpy(),
            self.out_nh.numpy(),
            norm.weight.detach().numpy(),
            self.factor,
            self.moments,
            gradient_nh.numpy(),
            sums_3h,
        )
        by_offset, by_norm, by_bias = torch.from_numpy(sums_3h).to(units_nh.dtype).unbind()
        first_dense = self.x.sparse.n_genes if isinstance(self.x, SparseColumns) else 0
        by_dense = None
        if n_dense:
            dense_hc = self.weight_hk[:, first_dense : first_dense + n_dense]
            by_dense = torch.mm(gradient_nh, dense_hc)
        return LayerSlopes(
            self._by_weight(gradient_nh) if linear.weight.requires_grad else None,
            by_bias if linear.bias is not None and linear.bias.requires_grad else None,
            by_norm if norm.weight.requires_grad else None,
            by_offset if norm.bias.requires_grad else None,
            by_dense,
        )

    def _by_weight(self, gradient_nh: Tensor) -> Tensor:
        if not isinstance(self.x, SparseColumns):
            return torch.mm(gradient_nh.t(), self.x)
        linear = self.linear
        first_trained = linear.in_features - getattr(linear, "n_trained", linear.in_features)
        return self.x.weight_gradient(gradient_nh, self.weight_hk, first_trained)


class _HiddenLayer(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, layer: LayerPass, x: Input, *tensors: Tensor | None
    ) -> Tensor:
        ctx.layer = layer
        if not isinstance(x, SparseColumns):
            x = x.detach()
        elif x.dense_nc is not None:
            x = replace(x, dense_nc=x.dense_nc.detach())
        out_nh = layer.forward(x)
        # A change of these before the derivatives are asked for is an error.
        ctx.save_for_backward(out_nh, *tensors)
        return out_nh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_nh: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *_, dense = ctx.saved_tensors
        n_dense = dense.shape[1] if ctx.needs_input_grad[-1] else 0
        return (None, None, *ctx.layer.backward(slope_nh, n_dense))
