"""The latent space: where each cell lies, and how sure the encoder is.

Axis suffixes: ``n`` cells, ``k`` latent, ``s`` samples.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

from scvi_dist.analysis.output import Layout, Out, stored, write
from scvi_dist.analysis.streaming import CellGroup, Cells, StoreCells, collect
from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.errors import ConfigError
from scvi_dist.module.vae import VAE

LATENT = "X_latent"
"""Key of obsm under which an output holds the latent representation."""
MEAN, VARIANCE = "X_latent_qzm", "X_latent_qzv"
"""Keys of obsm under which an output holds the posterior's parameters."""
SPARSE_BATCH_SIZE = 4_096
"""Cells whose units, but not whose counts, are dense in memory. At 1,024 a tenth of the time goes
into what is done once for each minibatch."""
SAMPLES_AT_ONCE = 256
"""Draws of a logistic normal variable in memory."""


def latent_representation(
    module: VAE,
    cells: Cells,
    *,
    give_mean: bool = True,
    mc_samples: int = 5_000,
    return_dist: bool = False,
    out: Out = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray] | str:
    """Latent representation of each cell.

    Parameters
    ----------
    module
        A trained module.
    cells
        Which cells.
    give_mean
        The mean of the posterior; otherwise one draw from it. For a logistic normal space the
        mean has no closed form and is estimated.
    mc_samples
        Draws for that estimate.
    return_dist
        The posterior's mean and variance instead (before any softmax).
    out
        Write to this store instead of returning arrays.

    Returns
    -------
    float32 ``[n, k]``; with ``return_dist`` the pair of mean and variance ``[n, k]``; with
    ``out`` the URL of the store.

    Source
    ------
    Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics".
    """
    if mc_samples < 1:
        raise ConfigError(f"mc_samples must be at least 1, seen {mc_samples}.")
    options: dict[str, Any] = {"give_mean": give_mean, "mc_samples": mc_samples}
    compute = partial(_latent, module=module, **options)
    names = [LATENT]
    cells = _in_larger_batches(module, cells)
    if return_dist:
        compute, options = partial(_posterior, module=module), {}
        names = [MEAN, VARIANCE]
    if out is not None:
        layout = Layout(obsm=dict.fromkeys(names, module.n_latent))
        what = {"latent": names, **options}
        return write(module, stored(cells), compute, out, layout, what)
    results = collect(module, cells, compute)
    return (results[MEAN], results[VARIANCE]) if return_dist else results[LATENT]


def _in_larger_batches(module: VAE, cells: Cells) -> Cells:
    """The same cells, more at a time where counts stay sparse: no result depends on that."""
    if not isinstance(cells, StoreCells) or module.kernel == "torch":
        return cells
    size = max(cells.config.batch_size, SPARSE_BATCH_SIZE)
    return StoreCells(cells.source, cells.selection, replace(cells.config, batch_size=size))


def _posterior(group: CellGroup, module: VAE) -> dict[str, Tensor]:
    qz, _ = module.posterior(**module._get_inference_input(group.tensors))
    return {MEAN: qz.loc, VARIANCE: qz.scale.square()}


def _latent(group: CellGroup, module: VAE, give_mean: bool, mc_samples: int) -> dict[str, Tensor]:
    qz, _ = module.posterior(**module._get_inference_input(group.tensors))
    if not give_mean:
        return {LATENT: module.z_encoder.z_transformation(module.noise.rsample(qz))}
    if module.latent_distribution == "ln":
        return {LATENT: _softmax_mean(module, qz, mc_samples)}
    return {LATENT: qz.loc}


def _softmax_mean(module: VAE, qz: Normal, mc_samples: int) -> Tensor:
    """Estimate ``[n, k]`` of the mean of the softmax of a normal variable."""
    total_nk = torch.zeros_like(qz.loc)
    for start in range(0, mc_samples, SAMPLES_AT_ONCE):
        n_samples = min(SAMPLES_AT_ONCE, mc_samples - start)
        drawn_snk = module.noise.rsample(qz, torch.Size((n_samples,)))
        total_nk += torch.softmax(drawn_snk, dim=-1).sum(dim=0)
    return total_nk / mc_samples


def aggregated_posterior(
    module: VAE, cells: Cells, *, dof: float | None = 3.0
) -> MixtureSameFamily:
    """The mixture, in equal parts, of the cells' posteriors: a law of ``[k]``.

    Memory grows with the number of cells, by their latent dimensions.

    Parameters
    ----------
    dof
        Degrees of freedom of Student's t, whose location and scale are the posterior's mean and
        standard deviation; ``None``: normal components.
    """
    if dof is not None and dof <= 0:
        raise ConfigError(f"dof must be positive or None, seen {dof}.")
    posterior = collect(module, cells, partial(_posterior, module=module))
    loc_nk = torch.as_tensor(posterior[MEAN]).to(module.device)
    scale_nk = torch.as_tensor(posterior[VARIANCE]).sqrt().to(module.device)
    parts = Normal(loc_nk, scale_nk) if dof is None else StudentT(dof, loc_nk, scale_nk)
    weights = Categorical(logits=torch.zeros(len(loc_nk), device=module.device))
    return MixtureSameFamily(weights, Independent(parts, 1))


def batch_representation(module: VAE, cells: Cells) -> np.ndarray:
    """The learned vector of each cell's batch, float32 ``[n, dimensions]``.

    Raises
    ------
    ConfigError
        The module has none: its batches are indicators.
    """
    embedding = module.batch_embedding
    if embedding is None:
        raise ConfigError(
            "this module has no learned vectors of batches: it was not built with "
            "batch_representation='embedding'."
        )

    def compute(group: CellGroup) -> dict[str, Tensor]:
        return {"batch": embedding(group.tensors[REGISTRY_KEYS.BATCH_KEY])}

    return collect(module, cells, compute)["batch"]
