"""A hidden layer as one differentiable function: linear, batch norm, ReLU, dropout. For CPUs.

Axis suffixes: ``n`` cells, ``k`` inputs, ``h`` hidden units.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scvi_dist.kernels.hidden_rows import Moments, Norm, activate, deactivate, rectify
from scvi_dist.kernels.layer_product import LayerProduct
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
    layer = LayerPass(linear, norm)
    return _HiddenLayer.apply(layer, (keep_nh, factor), x, *layer.parameters, dense)


def fold_norm(units_nh: Tensor, bias_h: Tensor | None, norm: nn.BatchNorm1d) -> None:
    """Turn a product ``[n, h]`` into the units of a layer that is not trained, in place.

    Parameters
    ----------
    bias_h
        What is added to the product.
    norm
        In evaluation: one slope and one offset of each unit. A ReLU comes after it.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = norm.running_mean if bias_h is None else norm.running_mean - bias_h
    slope = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    given = units_nh, slope, norm.bias - mean * slope
    rectify(*(t.detach().numpy() for t in given))


class LayerSlopes(NamedTuple):
    """Derivatives of an objective; None by what is not trained or was not asked for."""

    weight: np.ndarray | None
    bias: np.ndarray | None
    norm_weight: np.ndarray | None
    norm_bias: np.ndarray | None
    dense: np.ndarray | None
    """By the first dense columns of the input."""


class LayerPass:
    """A layer of a minibatch, forward and then backward; no graph is recorded.

    It can be used for one minibatch after the other while parameters and state of the layer have
    their place in memory. Arrays, because tensors take several times as long to make and to see.

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
        self.n_units = linear.out_features
        self._are_trained = tuple(p is not None and p.requires_grad for p in self.parameters)
        self._product = LayerProduct(linear)
        state = norm.weight, norm.bias, norm.running_mean, norm.running_var, n_batches.view(1)
        self._norm = Norm(*(t.detach().numpy() for t in state))
        self._real = self._norm.weight.dtype
        none = np.zeros(self.n_units, self._real)
        self._bias_h = none if bias is None else bias.detach().numpy()
        self._rates = norm.eps, float(norm.momentum or 0.0)
        self._all_are_kept = np.empty((0, 0), self._real)

    def forward(
        self, x: np.ndarray | SparseColumns, keep_nh: np.ndarray | None, factor: float
    ) -> np.ndarray:
        """The units ``[n, h]``; ``keep_nh`` and ``factor`` as for :func:`hidden_layer`."""
        self._units_nh, self._factor = self._product.forward(x), factor
        self._out_nh = np.empty_like(self._units_nh)
        self._moments = Moments(np.empty(self.n_units), np.empty(self.n_units))
        keep_nh = self._all_are_kept if keep_nh is None else keep_nh
        rest = keep_nh, (*self._rates, factor), self._moments, self._out_nh
        activate(self._units_nh, self._bias_h, self._norm, *rest)
        return self._out_nh

    def backward(self, slope_nh: np.ndarray, n_dense: int) -> LayerSlopes:
        """From derivatives by the units, which are contiguous.

        Parameters
        ----------
        n_dense
            Dense columns of the input by which derivatives are asked for.
        """
        gradient_nh = np.empty_like(slope_nh)
        sums_3h = np.empty((3, self.n_units), self._real)
        deactivate(
            slope_nh,
            self._units_nh,
            self._out_nh,
            self._norm.weight,
            self._factor,
            self._moments,
            gradient_nh,
            sums_3h,
        )
        by_weight, by_dense = self._product.backward(gradient_nh, self._are_trained[0], n_dense)
        by_bias, by_norm, by_offset = (
            by if is_trained else None
            for by, is_trained in zip(sums_3h, self._are_trained[1:], strict=True)
        )
        return LayerSlopes(by_weight, by_bias, by_norm, by_offset, by_dense)


class _HiddenLayer(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        layer: LayerPass,
        dropout: tuple[Tensor | None, float],
        x: Input,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.layer, (keep_nh, factor) = layer, dropout
        seen = x if isinstance(x, SparseColumns) else x.detach().contiguous().numpy()
        keep = None if keep_nh is None else keep_nh.numpy()
        out_nh = torch.from_numpy(layer.forward(seen, keep, factor))
        # A change of these before the derivatives are asked for is an error.
        ctx.save_for_backward(out_nh, *tensors)
        return out_nh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_nh: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *_, dense = ctx.saved_tensors
        n_dense = dense.shape[1] if ctx.needs_input_grad[-1] else 0
        slopes = ctx.layer.backward(slope_nh.contiguous().numpy(), n_dense)
        return (None, None, None, *(None if by is None else torch.from_numpy(by) for by in slopes))
