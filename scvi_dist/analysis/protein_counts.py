"""Laws of the counts of genes and proteins: their parameters, draws from them, correlations.

Axis suffixes: ``n`` cells, ``g`` genes, ``p`` proteins, ``f`` features, ``s`` samples.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from scvi_dist.analysis.correlation import VALUES, CorrelationOptions, correlation_matrix
from scvi_dist.analysis.count_draws import draw_by_cell, gamma_by_cell
from scvi_dist.analysis.output import Layout, Out, X, stored, write
from scvi_dist.analysis.protein_expression import (
    PROTEINS,
    columns,
    drawn_background,
    gene_names,
    generated,
    protein_names,
)
from scvi_dist.analysis.streaming import CellGroup, Cells, StoreCells, collect
from scvi_dist.errors import ConfigError
from scvi_dist.module.likelihoods import likelihood_parameters as parameters_of
from scvi_dist.module.totalvae import TOTALVAE

PROTEIN_KEYS = np.uint64(0x9E3779B97F4A7C15)
"""Added to a cell's key, so that its proteins are drawn apart from its genes."""
_LOG_EPS = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class JointPredictiveOptions:
    """Which draws."""

    n_samples: int = 1
    """Draws for each cell."""
    genes: np.ndarray | None = None
    """int64: genes that are returned, all where None."""
    proteins: np.ndarray | None = None
    """int64: proteins that are returned, all where None."""

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ConfigError(f"n_samples must be at least 1, seen {self.n_samples}.")


def joint_predictive_sample(
    module: TOTALVAE, cells: Cells, options: JointPredictiveOptions, *, out: Out = None
) -> tuple[np.ndarray, np.ndarray] | str:
    """Counts drawn from the posterior predictive law of each cell.

    Returns
    -------
    float32 ``[n, g]`` and ``[n, p]``, or ``[n, g, s]`` and ``[n, p, s]`` for more than one draw;
    with ``out`` the URL of a store whose X and ``obsm["proteins"]`` hold them.
    """
    compute = partial(_draws, module=module, options=options)
    if out is None:
        results = collect(module, cells, compute)
        return results[X], results[PROTEINS]
    if options.n_samples > 1:
        raise ConfigError(
            f"a store holds one draw a cell, not {options.n_samples}: write n_samples=1 to as "
            "many stores, with a seed for each."
        )
    there = stored(cells)
    width = len(protein_names(there, options.proteins))
    names = gene_names(there, options.genes)
    chosen = [None if c is None else c.tolist() for c in (options.genes, options.proteins)]
    layout = Layout(obsm={PROTEINS: width}, x="dense", var_names=names)
    return write(module, there, compute, out, layout, {"joint_predictive": chosen})


def _draws(
    group: CellGroup, module: TOTALVAE, options: JointPredictiveOptions
) -> dict[str, Tensor]:
    (law,) = generated(module, group.tensors, options.n_samples, (None,))
    drawn = {
        X: columns(draw_by_cell(law["px"], group.keys), options.genes),
        PROTEINS: columns(draw_by_cell(law["py"], group.keys + PROTEIN_KEYS), options.proteins),
    }
    if options.n_samples == 1:
        return drawn
    # [s, n, f] -> [n, f, s]: cells come first in every result.
    return {name: value.permute(1, 2, 0) for name, value in drawn.items()}


def joint_likelihood_parameters(
    module: TOTALVAE, cells: Cells, *, n_samples: int = 1, give_mean: bool = False
) -> dict[str, np.ndarray]:
    """Parameters of the law of each count of genes and of proteins.

    Returns
    -------
    Of genes ``"mean"``, ``"dispersions"`` and, for a zero-inflated law, ``"dropout"``; of proteins
    ``"protein_background_mean"``, ``"protein_foreground_mean"``, ``"protein_dispersions"`` and
    ``"protein_mixing"``, the probability of background: float32 ``[n, f]``, or ``[s, n, f]``
    where every draw is kept. Means of proteins have the efficiency of the cell's batch in them.
    """
    if n_samples < 1:
        raise ConfigError(f"n_samples must be at least 1, seen {n_samples}.")

    def compute(group: CellGroup) -> dict[str, Tensor]:
        (law,) = generated(module, group.tensors, n_samples, (None,))
        py = law["py"]
        values = {
            **parameters_of(law["px"]),
            "protein_background_mean": py.mu1,
            "protein_foreground_mean": py.mu2,
            "protein_dispersions": py.theta1,
            "protein_mixing": py.mixture_probs,
        }
        if n_samples == 1:
            return values
        return {k: v.mean(0) if give_mean else v.movedim(1, 0) for k, v in values.items()}

    results = collect(module, cells, compute)
    if n_samples == 1 or give_mean:
        return results
    return {name: np.moveaxis(value, 1, 0) for name, value in results.items()}


def joint_correlation(
    module: TOTALVAE,
    cells: StoreCells,
    options: CorrelationOptions,
    transform_batch: tuple[int | None, ...] = (None,),
    *,
    log_transform: bool = False,
) -> np.ndarray:
    """Correlation of genes and proteins over cells and draws, ``[f, f]``, mean over the batches.

    A draw is of the gamma law that the negative binomial is a Poisson mixture over: expression
    with its biological noise and without that of counting. Proteins that are drawn to be
    background are 0.

    Parameters
    ----------
    log_transform
        Correlate ``log(x + 1e-8)`` of genes and ``log(1 + y)`` of proteins.
    """
    compute = partial(_denoised, module=module, options=options, log_transform=log_transform)
    matrices = [
        correlation_matrix(module, cells, partial(compute, batch=batch), options)
        for batch in transform_batch
    ]
    return np.mean(matrices, axis=0)


def _denoised(
    group: CellGroup,
    module: TOTALVAE,
    options: CorrelationOptions,
    log_transform: bool,
    batch: int | None,
) -> dict[str, Tensor]:
    (law,) = generated(module, group.tensors, options.n_samples, (batch,))
    px_, py_ = law["px_"], law["py_"]
    rate = options.rna_size_factor * px_["scale"]
    genes = gamma_by_cell(px_["r"].expand_as(rate), rate, group.keys)
    fore = py_["rate_fore"]
    proteins = gamma_by_cell(py_["r"].expand_as(fore), fore, group.keys + PROTEIN_KEYS)
    proteins = proteins * (1 - drawn_background(torch.sigmoid(py_["mixing"]), module))
    if log_transform:
        genes, proteins = torch.log(genes + _LOG_EPS), torch.log1p(proteins)
    both = torch.cat([genes, proteins], dim=-1)
    return {VALUES: both.movedim(0, 1) if options.n_samples > 1 else both.unsqueeze(1)}
