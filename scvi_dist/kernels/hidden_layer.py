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
from scvi_dist.kernels.small_products import multiply_few, multiply_few_slopes
from scvi_dist.kernels.sparse_linear import SparseColumns

Input: TypeAlias = Tensor | SparseColumns

FEW_INPUTS = 32
"""With so few a product takes less time than a matrix library's begins with."""


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
    layer = LayerPass(linear, norm)
    return _HiddenLayer.apply(layer, (keep_nh, factor), x, *layer.parameters, dense)


class LayerSlopes(NamedTuple):
    """Derivatives of an objective; None by what is not trained or was not asked for."""

    weight: Tensor | None
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    dense: Tensor | None
    """By the first dense columns of the input."""


class LayerPass:
    """A layer of a minibatch, forward and then backward; no graph is recorded.

    It can be used for one minibatch after the other while parameters and state of the layer have
    their place in memory.

    Parameters
    ----------
    linear, norm
        As for :func:`hidden_layer`.
    """

    def __init__(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> None:
        bias, n_batches = linear.bias, norm.num_batches_tracked
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert n_batches is not None
        self.parameters = linear.weight, bias, norm.weight, norm.bias
        self._are_trained = tuple(p is not None and p.requires_grad for p in self.parameters)
        self._weight_hk = linear.weight.detach()
        self.n_units = linear.out_features
        self._real = self._weight_hk.numpy().dtype
        none = np.zeros(linear.out_features, self._real)
        self._bias_h = none if bias is None else bias.detach().numpy()
        state = norm.weight, norm.bias, norm.running_mean, norm.running_var, n_batches.view(1)
        self._norm = Norm(*(t.detach().numpy() for t in state))
        self._rates = norm.eps, float(norm.momentum or 0.0)
        self._first_trained = linear.in_features - getattr(linear, "n_trained", linear.in_features)

    def forward(self, x: Input, keep_nh: Tensor | None, factor: float) -> Tensor:
        """The units ``[n, h]``; ``keep_nh`` and ``factor`` as for :func:`hidden_layer`."""
        self._x, self._factor = x, factor
        units_nh = self._product(x)
        out_nh = torch.empty_like(units_nh)
        self._units_nh, self._out_nh = units_nh.numpy(), out_nh.numpy()
        self._moments = Moments(np.empty(self.n_units), np.empty(self.n_units))
        keep = np.empty((0, 0), self._real) if keep_nh is None else keep_nh.numpy()
        numbers = (*self._rates, factor)
        rest = self._norm, keep, numbers, self._moments, self._out_nh
        activate(self._units_nh, self._bias_h, *rest)
        return out_nh

    def _product(self, x: Input) -> Tensor:
        if isinstance(x, SparseColumns):
            return x.times(self._weight_hk)
        if x.shape[1] > FEW_INPUTS:
            return torch.mm(x, self._weight_hk.t())
        units_nh = x.new_empty(x.shape[0], self.n_units)
        self._x = x.contiguous()
        multiply_few(self._x.numpy(), self._weight_hk.numpy(), units_nh.numpy())
        return units_nh

    def backward(self, slope_nh: Tensor, n_dense: int) -> LayerSlopes:
        """From derivatives by the units.

        Parameters
        ----------
        n_dense
            Dense columns of the input by which derivatives are asked for.
        """
        gradient_nh = torch.empty_like(slope_nh, memory_format=torch.contiguous_format)
        sums_3h = np.empty((3, self.n_units), self._real)
        deactivate(
            slope_nh.contiguous().numpy(),
            self._units_nh,
            self._out_nh,
            self._norm.weight,
            self._factor,
            self._moments,
            gradient_nh.numpy(),
            sums_3h,
        )
        by_weight, by_dense = self._factors(gradient_nh, n_dense)
        by_bias, by_norm, by_offset = (
            torch.from_numpy(by) if is_trained else None
            for by, is_trained in zip(sums_3h, self._are_trained[1:], strict=True)
        )
        return LayerSlopes(by_weight, by_bias, by_norm, by_offset, by_dense)

    def _factors(self, gradient_nh: Tensor, n_dense: int) -> tuple[Tensor | None, Tensor | None]:
        """Derivatives by the weights and by dense columns."""
        x, weight_hk, is_trained = self._x, self._weight_hk, self._are_trained[0]
        by_weight, by_dense, first_dense = None, None, 0
        if isinstance(x, SparseColumns):
            first_dense = x.sparse.n_genes
            if is_trained:
                by_weight = x.weight_gradient(gradient_nh, weight_hk, self._first_trained)
        elif x.shape[1] <= FEW_INPUTS:
            by_weight = torch.empty_like(weight_hk) if is_trained else weight_hk.new_empty(0, 0)
            by_dense = x.new_empty(x.shape[0], n_dense)
            given = gradient_nh.numpy(), x.numpy(), weight_hk.numpy()
            multiply_few_slopes(*given, by_weight.numpy(), by_dense.numpy())
            return by_weight if is_trained else None, by_dense if n_dense else None
        elif is_trained:
            by_weight = torch.mm(gradient_nh.t(), x)
        if n_dense:
            by_dense = torch.mm(gradient_nh, weight_hk[:, first_dense : first_dense + n_dense])
        return by_weight, by_dense


class _HiddenLayer(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        layer: LayerPass,
        dropout: tuple[Tensor | None, float],
        x: Input,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.layer = layer
        if not isinstance(x, SparseColumns):
            x = x.detach()
        elif x.dense_nc is not None:
            x = replace(x, dense_nc=x.dense_nc.detach())
        out_nh = layer.forward(x, *dropout)
        # A change of these before the derivatives are asked for is an error.
        ctx.save_for_backward(out_nh, *tensors)
        return out_nh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_nh: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *_, dense = ctx.saved_tensors
        n_dense = dense.shape[1] if ctx.needs_input_grad[-1] else 0
        return (None, None, None, *ctx.layer.backward(slope_nh, n_dense))
