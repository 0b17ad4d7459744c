"""Fully connected layers of one minibatch, forward and then backward, without a graph.

Axis suffixes: ``n`` cells, ``h`` hidden units, ``k`` inputs.
"""

from typing import Any

from torch import Tensor, nn

from scvi_dist.kernels.sparse_linear import SparseColumns
from scvi_dist.nn.fc_layers import FCLayers, beside, whole_parts

Gradients = dict[nn.Parameter, Tensor]
"""Derivatives of an objective by parameters."""


class WholeLayers:
    """Layers that a kernel computes as wholes; see :meth:`FCLayers.is_whole`.

    Parameters
    ----------
    layers
        Their state is moved by :meth:`forward`, as in each training step.
    layer_pass
        Makes a :class:`~scvi_dist.kernels.hidden_layer.LayerPass`.
    """

    def __init__(self, layers: FCLayers, layer_pass: Any) -> None:
        self._layers, self._layer_pass = layers, layer_pass
        self._passes: list[Any] = []

    def forward(self, x: Tensor | SparseColumns, codes: tuple[Tensor | None, ...]) -> Tensor:
        """The units ``[n, h]``; arguments as for :meth:`FCLayers.forward`."""
        covariates = self._layers.covariates(x, codes, None)
        units: Any = x
        for i, parts in enumerate(self._layers.fc_layers):
            injects = covariates is not None and self._layers.inject_into_layer(i)
            layer = self._layer_pass(*whole_parts(parts, units))
            units = layer.forward(beside(units, covariates if injects else None))
            self._passes.append(layer)
        return units

    def backward(self, slope_nh: Tensor, n_wanted: int, gradients: Gradients) -> Tensor | None:
        """Note the derivatives by all parameters.

        Parameters
        ----------
        slope_nh
            Derivatives by the units.
        n_wanted
            Columns of a dense input by which derivatives are asked for.

        Returns
        -------
        These, ``[n, n_wanted]``; None for 0 columns.
        """
        slope: Tensor | None = slope_nh
        for i in reversed(range(len(self._passes))):
            layer = self._passes[i]
            n_before = self._passes[i - 1].linear.out_features if i else n_wanted
            *by_parameters, slope = layer.backward(slope, n_before)
            linear, norm = layer.linear, layer.norm
            parameters = linear.weight, linear.bias, norm.weight, norm.bias
            for parameter, gradient in zip(parameters, by_parameters, strict=True):
                if gradient is not None:
                    gradients[parameter] = gradient
        return slope
