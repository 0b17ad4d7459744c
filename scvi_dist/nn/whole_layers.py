"""Fully connected layers of one minibatch, forward and then backward, without a graph.

Axis suffixes: ``n`` cells, ``h`` hidden units, ``k`` inputs.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scvi_dist.kernels.sparse_linear import SparseColumns
from scvi_dist.nn.fc_layers import FCLayers, mask_of, whole_parts

Gradients = dict[nn.Parameter, Tensor]
"""Derivatives of an objective by parameters."""


class WholeLayers:
    """Layers that a kernel computes as wholes; see :meth:`FCLayers.is_whole`.

    They can be used for one minibatch after the other while nobody changes the layers but their
    parameters and state, in place.

    Parameters
    ----------
    layers
        Their state is moved by :meth:`forward`, as in each training step.
    layer_pass
        Makes a :class:`~scvi_dist.kernels.hidden_layer.LayerPass`.
    """

    def __init__(self, layers: FCLayers, layer_pass: Any) -> None:
        self._covariates = layers.covariates
        self._injects = [layers.inject_into_layer(i) for i in range(len(layers.fc_layers))]
        parts = [whole_parts(part) for part in layers.fc_layers]
        self._passes = [layer_pass(linear, norm) for linear, norm, _ in parts]
        self._dropouts = [dropout for *_, dropout in parts]
        self._dtype = parts[0][0].weight.dtype

    def forward(
        self, x: np.ndarray | SparseColumns, codes: tuple[Tensor | None, ...]
    ) -> np.ndarray:
        """The units ``[n, h]``.

        Parameters
        ----------
        x
            Contiguous ``[n, k]``, or sparse columns.
        codes
            As for :meth:`FCLayers.forward`.
        """
        n, units = x.shape[0], x
        covariates = self._covariates(codes, None, self._dtype)
        for layer, dropout, injects in zip(
            self._passes, self._dropouts, self._injects, strict=True
        ):
            keep, factor = mask_of(dropout, (n, layer.n_units), self._dtype)
            seen = _beside(units, covariates) if injects and covariates is not None else units
            units = layer.forward(seen, None if keep is None else keep.numpy(), factor)
        assert isinstance(units, np.ndarray)
        return units

    def backward(
        self, slope_nh: np.ndarray, n_wanted: int, gradients: Gradients
    ) -> np.ndarray | None:
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
        slope: Any = slope_nh
        for i in reversed(range(len(self._passes))):
            layer = self._passes[i]
            n_before = self._passes[i - 1].n_units if i else n_wanted
            *by_parameters, slope = layer.backward(slope, n_before)
            note(gradients, layer.parameters, by_parameters)
        return slope


def _beside(x: np.ndarray | SparseColumns, columns: Tensor) -> np.ndarray | SparseColumns:
    """``x`` with the columns at its right."""
    if isinstance(x, SparseColumns):
        return x.with_columns(columns)
    return np.concatenate((x, columns.numpy()), axis=1)


def note(
    gradients: Gradients,
    parameters: Iterable[nn.Parameter | None],
    slopes: Iterable[np.ndarray | None],
) -> None:
    """Add those derivatives that there are."""
    for parameter, slope in zip(parameters, slopes, strict=True):
        if parameter is not None and slope is not None:
            gradients[parameter] = torch.from_numpy(slope)
