"""Counts that a module would expect to see: draws from the posterior predictive law.

Axis suffixes: ``n`` cells, ``g`` genes, ``s`` samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvi_dist.analysis.count_draws import draw_by_cell
from scvi_dist.analysis.expression import decoded, gene_names
from scvi_dist.analysis.output import Layout, Out, Place, X, stored, write
from scvi_dist.analysis.streaming import CellGroup, Cells, computed
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictiveOptions:
    """Which draws."""

    n_samples: int = 1
    """Draws for each cell."""
    transform_batch: tuple[int | None, ...] = (None,)
    """Codes of the batches that every cell is decoded as; draws are averaged over them."""
    genes: np.ndarray | None = None
    """int64: columns that are returned, all where None."""

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ConfigError(f"n_samples must be at least 1, seen {self.n_samples}.")
        if not self.transform_batch:
            raise ConfigError("transform_batch names no batch; give None for each cell's own.")


def posterior_predictive_sample(
    module: BaseModule,
    cells: Cells,
    options: PredictiveOptions,
    *,
    out: Out = None,
) -> Any:
    """Draws of the counts of each cell, never dense for more than a minibatch.

    Returns
    -------
    ``sparse.GCXS [n, g]``, or ``[n, g, s]`` for more than one draw. Where the package ``sparse``
    is not installed: a SciPy CSR matrix, or for more than one draw a dense array. With ``out``
    the URL of a store whose X holds the draws.
    """
    compute = partial(_draws, module=module, options=options)
    if out is not None:
        return _to_store(module, cells, compute, options, out)
    shape, coordinates, values = _nonzero(computed(module, cells.groups(), compute))
    return _sparse_array(coordinates, values, shape)


def _to_store(
    module: BaseModule, cells: Cells, compute: Any, options: PredictiveOptions, out: Place
) -> str:
    if options.n_samples > 1:
        raise ConfigError(
            f"a store holds one draw a cell, not {options.n_samples}: write n_samples=1 to as "
            "many stores, with a seed for each."
        )
    names = gene_names(stored(cells), options.genes)
    what = {
        "posterior_predictive": None if options.genes is None else options.genes.tolist(),
        "transform_batch": options.transform_batch,
    }
    layout = Layout(obsm={}, x="csr", var_names=names)
    return write(module, stored(cells), compute, out, layout, what)


def _draws(group: CellGroup, module: BaseModule, options: PredictiveOptions) -> dict[str, Tensor]:
    laws = decoded(module, group.tensors, options.n_samples, options.transform_batch)
    genes = None if options.genes is None else torch.from_numpy(options.genes)
    counts = [draw_by_cell(law, group.keys + np.uint64(i)) for i, law in enumerate(laws)]
    mean = counts[0] if len(counts) == 1 else torch.stack(counts).mean(0)
    if genes is not None:
        mean = mean[..., genes.to(mean.device)]
    # [s, n, g] -> [n, g, s]: cells come first in every result.
    return {X: mean.permute(1, 2, 0) if options.n_samples > 1 else mean}


def _nonzero(results: Iterable[Any]) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Shape, coordinates ``[axes, nnz]`` and values of all results, placed in their order."""
    coordinates, values, n_cells = [], [], 0
    shape: tuple[int, ...] = ()
    for group, computed_of in results:
        block = computed_of[X].numpy()
        n_cells, shape = n_cells + len(block), block.shape[1:]
        cell, *others = block.nonzero()
        at = np.stack([group.positions[cell], *others])
        coordinates.append(at)
        values.append(block[(cell, *others)])
    return (n_cells, *shape), np.concatenate(coordinates, axis=1), np.concatenate(values)


def _sparse_array(coordinates: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> Any:
    try:
        import sparse
    except ImportError:
        if len(shape) == 2:
            from scipy.sparse import csr_matrix

            return csr_matrix((values, coordinates), shape=shape)
        dense = np.zeros(shape, dtype=values.dtype)
        dense[tuple(coordinates)] = values
        return dense
    return sparse.GCXS.from_coo(sparse.COO(coordinates, values, shape=shape))
