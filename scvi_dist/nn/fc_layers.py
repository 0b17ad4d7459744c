"""Fully connected layers into which covariates can be injected.

Axis suffixes: ``n`` cells, ``k`` units, ``s`` samples.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from scvi_dist.errors import ConfigError
from scvi_dist.kernels.choice import HiddenLayer, Kernel
from scvi_dist.kernels.sparse_linear import SparseColumns
from scvi_dist.nn.dropout import Dropout
from scvi_dist.nn.noise import NoiseStream
from scvi_dist.nn.one_hot import one_hot
from scvi_dist.nn.partly_frozen import PartlyFrozenLinear
from scvi_dist.nn.sync_batch_norm import SyncedBatchNorm1d
from scvi_dist.nn.watched import is_watched


class FCLayers(nn.Module):
    """``n_layers`` of: linear, batch norm, layer norm, activation, dropout.

    What a layer lacks leaves its number free, so that the names of the state (``"fc_layers.Layer
    0.1.running_mean"``) are scvi-tools' whichever parts are used.

    Parameters
    ----------
    n_in, n_out
        Width of the input and of the output.
    n_cat_list
        Number of categories of each categorical covariate; with fewer than two it is left out.
    n_cont
        Width of the continuous covariates.
    n_layers
        Number of layers.
    n_hidden
        Width of the layers before the last.
    dropout_rate
        Probability of dropping a unit.
    use_batch_norm, use_layer_norm, use_activation
        Whether a layer has that part.
    bias
        Whether the linear parts have a bias.
    inject_covariates
        Whether covariates enter every layer or only the first.
    activation_fn
        Class of the activation.
    noise
        Where dropout masks come from; its own where None.
    pool_samples
        Whether batch norm pools the samples of an input ``[s, n, n_in]``; otherwise it normalises
        each sample by itself.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_cat_list: Iterable[int] | None = None,
        n_cont: int = 0,
        n_layers: int = 1,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        use_batch_norm: bool = True,
        use_layer_norm: bool = False,
        use_activation: bool = True,
        bias: bool = True,
        inject_covariates: bool = True,
        activation_fn: Callable[[], nn.Module] = nn.ReLU,
        noise: NoiseStream | None = None,
        pool_samples: bool = False,
    ) -> None:
        super().__init__()
        self.inject_covariates = inject_covariates
        self.pool_samples = pool_samples
        self.n_cat_list = [n if n > 1 else 0 for n in n_cat_list or ()]
        self.n_cov = n_cont + sum(self.n_cat_list)
        noise = NoiseStream() if noise is None else noise

        def layer(index: int, width_in: int, width_out: int) -> nn.Sequential:
            width_in += self.n_cov * self.inject_into_layer(index)
            parts = nn.Sequential()
            parts.add_module("0", nn.Linear(width_in, width_out, bias=bias))
            if use_batch_norm:
                # The momentum and eps that scVI's first, TensorFlow, implementation had.
                parts.add_module("1", nn.BatchNorm1d(width_out, momentum=0.01, eps=0.001))
            if use_layer_norm:
                parts.add_module("2", nn.LayerNorm(width_out, elementwise_affine=False))
            if use_activation:
                parts.add_module("3", activation_fn())
            if dropout_rate > 0:
                parts.add_module("4", Dropout(dropout_rate, noise))
            return parts

        widths = [n_in, *[n_hidden] * (n_layers - 1), n_out]
        self.fc_layers = nn.Sequential()
        for i in range(n_layers):
            self.fc_layers.add_module(f"Layer {i}", layer(i, widths[i], widths[i + 1]))

    def inject_into_layer(self, layer_num: int) -> bool:
        """Whether covariates enter that layer."""
        return layer_num == 0 or self.inject_covariates

    def forward(
        self,
        x: Tensor | SparseColumns,
        *cat_list: Tensor | None,
        cont: Tensor | None = None,
        kernel: Kernel | None = None,
    ) -> Tensor:
        """Units ``[n, n_out]`` or, for several samples of the cells, ``[s, n, n_out]``.

        Parameters
        ----------
        x
            ``[n, n_in]`` or ``[s, n, n_in]``; sparse columns are multiplied as they are.
        cat_list
            For each categorical covariate the codes ``[n, 1]`` or indicators ``[n, n_cat]``, which
            may have ``s`` in front as ``x`` has.
            More than ``n_cat_list`` has are ignored.
        cont
            Continuous covariates ``[n, n_cont]``.
        kernel
            What computes whole layers where it can. Sparse columns bring their own.
        """
        covariates = self.covariates(cat_list, cont, x.dtype)
        units: Any = x
        if covariates is not None and x.dim() == 3:
            covariates = covariates.expand(units.shape[0], -1, -1)
        whole: HiddenLayer | None = None
        if isinstance(x, SparseColumns):
            whole = x.products.hidden_layer
        elif kernel is not None:
            whole = kernel.hidden_layer
        for i, parts in enumerate(self.fc_layers):
            if whole is not None and _takes(parts, units):
                injects = covariates is not None and self.inject_into_layer(i)
                seen = beside(units, covariates if injects else None)
                linear, norm, dropout = whole_parts(parts)
                mask = mask_of(dropout, (units.shape[0], linear.out_features), units.dtype)
                units = whole(seen, linear, norm, *mask)
                continue
            if isinstance(units, SparseColumns) and _folds(parts, units):
                units = _folded(parts, units, covariates)
                continue
            for part in parts:
                if isinstance(units, SparseColumns):
                    units = _sparse_linear(part, units, covariates)
                    continue
                if isinstance(part, nn.BatchNorm1d):
                    units = _normalize(part, units, self.pool_samples)
                    continue
                if isinstance(part, nn.Linear) and covariates is not None:
                    injects = self.inject_into_layer(i)
                    units = torch.cat([units, covariates], -1) if injects else units
                units = part(units)
        return units

    def is_whole(self, n_cells: int, dtype: torch.dtype, is_sparse: bool) -> bool:
        """Whether kernels compute each layer as a whole while the noise is bound to cells.

        Weights then are parameters, not computed from some.

        Parameters
        ----------
        n_cells, dtype, is_sparse
            Of what the first layer sees.
        """
        return all(
            _is_whole(parts, n_cells, dtype, is_sparse and i == 0) and type(parts[0]) in _LINEAR
            for i, parts in enumerate(self.fc_layers)
        )

    def with_covariates(
        self, x: Tensor, *cat_list: Tensor | None, cont: Tensor | None = None
    ) -> Tensor:
        """What the first layer sees: ``x`` and the covariates, as for :meth:`forward`."""
        covariates = self.covariates(cat_list, cont, x.dtype)
        if covariates is None:
            return x
        if x.dim() == 3:
            covariates = covariates.expand(x.shape[0], -1, -1)
        return torch.cat([x, covariates], dim=-1)

    def covariates(
        self, cat_list: tuple[Tensor | None, ...], cont: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """Continuous columns, then the indicators of each category ``[n, n_cov]``."""
        if len(cat_list) < len(self.n_cat_list):
            raise ConfigError(
                f"These layers were built for {len(self.n_cat_list)} categorical covariates; "
                f"{len(cat_list)} were given."
            )
        columns = [] if cont is None else [cont]
        for i, n_categories in enumerate(self.n_cat_list):
            if not n_categories:
                continue
            codes = cat_list[i]
            if codes is None:
                raise ConfigError(
                    f"Categorical covariate {i} has {n_categories} categories, but no codes "
                    "were given for it."
                )
            is_encoded = codes.dim() > 1 and codes.shape[-1] == n_categories
            columns.append(codes if is_encoded else one_hot(codes, n_categories, dtype))
        if len(columns) < 2:
            return columns[0] if columns else None
        return torch.cat(columns, dim=-1)


def _sparse_linear(layer: nn.Linear, x: SparseColumns, covariates: Tensor | None) -> Tensor:
    """Units ``[n, h]`` of the first layer; covariates enter it in any case."""
    x = x if covariates is None else x.with_columns(covariates)
    first_trained = layer.in_features - getattr(layer, "n_trained", layer.in_features)
    return x.linear(layer.weight, layer.bias, first_trained)


def _folds(parts: nn.Sequential, x: SparseColumns) -> bool:
    """Whether a layer is evaluated, and nobody wants to see what is in the middle of it."""
    linear, norm, *rest = parts if len(parts) > 1 else (None, None)
    if x.products.fold_norm is None or torch.is_grad_enabled() or type(linear) not in _LINEAR:
        return False
    if not isinstance(norm, nn.BatchNorm1d) or tuple(map(type, rest)) not in _WHOLE:
        return False
    is_evaluated = norm.affine and norm.track_running_stats and not any(p.training for p in parts)
    return is_evaluated and not is_watched(parts) and x.dtype == norm.weight.dtype


def _folded(parts: nn.Sequential, x: SparseColumns, covariates: Tensor | None) -> Tensor:
    """Units ``[n, h]`` of a first layer that is evaluated; records no graph."""
    linear, norm, *_ = parts
    x = x if covariates is None else x.with_columns(covariates)
    units_nh = x.times(linear.weight)
    x.products.fold_norm(units_nh, linear.bias, norm)
    return units_nh


def beside(x: Tensor | SparseColumns, columns: Tensor | None) -> Tensor | SparseColumns:
    """``x`` with the columns at its right, where there are any."""
    if columns is None:
        return x
    return torch.cat([x, columns], -1) if isinstance(x, Tensor) else x.with_columns(columns)


_LINEAR = (nn.Linear, PartlyFrozenLinear)
_WHOLE = ((nn.ReLU,), (nn.ReLU, Dropout))
"""What may come after a linear layer and a batch norm in a layer that kernels compute."""


def _takes(parts: nn.Sequential, x: Tensor | SparseColumns) -> bool:
    """Whether kernels compute this layer of what it sees."""
    is_sparse, last = isinstance(x, SparseColumns), parts[-1]
    if isinstance(last, Dropout) and not last.noise.is_bound:
        return False
    return x.dim() == 2 and _is_whole(parts, x.shape[0], x.dtype, is_sparse)


def _is_whole(parts: nn.Sequential, n_cells: int, dtype: torch.dtype, is_sparse: bool) -> bool:
    """Whether kernels compute this layer: trained, of two or more cells, of one process."""
    linear, norm, *rest = parts if len(parts) > 1 else (None, None)
    if not isinstance(norm, nn.BatchNorm1d) or tuple(map(type, rest)) not in _WHOLE:
        return False
    if isinstance(norm, SyncedBatchNorm1d) and norm.has_peers:
        return False
    if type(linear) is not nn.Linear and not is_sparse:
        return False
    return (
        n_cells > 1
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and all(part.training for part in rest)
        and dtype == norm.weight.dtype
        and not is_watched(parts)
    )


def whole_parts(parts: nn.Sequential) -> tuple[nn.Linear, nn.BatchNorm1d, Dropout | None]:
    """What a kernel computes a layer from."""
    linear, norm, *_, last = parts
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    return linear, norm, last if isinstance(last, Dropout) and last.p > 0 else None


def mask_of(
    dropout: Dropout | None, shape: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor | None, float]:
    """1 where a unit is kept, else 0, and what kept units are multiplied by."""
    if dropout is None:
        return None, 1.0
    keep = dropout.noise.bernoulli_keep(shape, dropout.p, dtype=dtype)
    return keep, 0.0 if dropout.p == 1 else 1 / (1 - dropout.p)


def _normalize(norm: nn.Module, x: Tensor, pool_samples: bool) -> Tensor:
    """Batch norm over the cells; the samples ``[s, n, k]`` of a cell are its peers where pooled."""
    if x.dim() == 2:
        return norm(x)
    if norm.training and not pool_samples:
        return torch.stack([norm(x_nk) for x_nk in x])
    # The synced norm has to know which cells of each sample are padding.
    if isinstance(norm, SyncedBatchNorm1d):
        return norm(x)
    return norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def cuts_at_zero(layers: nn.Module) -> bool:
    """Whether what is before units that are zero has no derivative by them: a ReLU, or dropout.

    Not so where hooks may change the units, or see derivatives by them.
    """
    if type(layers) is not FCLayers:
        return False
    last = layers.fc_layers[-1]
    kinds = tuple(map(type, last))
    is_cut = any(kinds[-len(tail) :] == tail for tail in _WHOLE)
    return is_cut and not is_watched([layers, layers.fc_layers, last, *last])
