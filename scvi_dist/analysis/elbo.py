"""How well a module describes cells: evidence lower bound, reconstruction, marginal likelihood.

Axis suffixes: ``n`` cells.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scvi_dist.analysis.streaming import CellGroup, Cells, Compute, collect, mean
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule, LossOutput
from scvi_dist.module.vae import VAE


def elbo(module: BaseModule, cells: Cells, *, return_mean: bool = True) -> Tensor:
    """Evidence lower bound of the log-likelihood, with one draw of the latent variables a cell.

    Higher is better.

    Returns
    -------
    float32 0-d, the mean over cells; or ``[n]``.

    Source
    ------
    Kingma & Welling 2014, "Auto-encoding variational Bayes", equation 3.
    """
    compute = partial(_of_loss, module=module, terms=_negative_elbo)
    return -_reduced(module, cells, compute, return_mean)["elbo"]


def reconstruction_error(
    module: BaseModule, cells: Cells, *, return_mean: bool = True
) -> dict[str, Tensor]:
    """Minus the log-likelihood of the data given one draw of the latent variables a cell.

    Lower is better.

    Returns
    -------
    Term of the module's reconstruction loss -> float32 0-d, the mean over cells; or ``[n]``.
    """
    compute = partial(_of_loss, module=module, terms=_reconstruction)
    return _reduced(module, cells, compute, return_mean)


def marginal_ll(
    module: VAE,
    cells: Cells,
    *,
    n_mc_samples: int = 1_000,
    n_mc_samples_per_pass: int = 1,
    return_mean: bool = True,
) -> float | Tensor:
    """Marginal log-likelihood of each cell, estimated by importance sampling.

    Higher is better; the estimate is biased downwards and approaches the truth with more samples.

    Parameters
    ----------
    module
        A trained module.
    cells
        Which cells.
    n_mc_samples
        Draws for each cell.
    n_mc_samples_per_pass
        Draws that are decoded at once; memory grows with them.
    return_mean
        The mean over cells instead of one number a cell.

    Returns
    -------
    A float, or a tensor ``[n]``.
    """
    if min(n_mc_samples, n_mc_samples_per_pass) < 1:
        raise ConfigError(
            "n_mc_samples and n_mc_samples_per_pass must be at least 1, seen "
            f"{n_mc_samples} and {n_mc_samples_per_pass}."
        )

    def compute(group: CellGroup) -> dict[str, Tensor]:
        estimate = module.marginal_ll(
            group.tensors, n_mc_samples, n_mc_samples_per_pass=n_mc_samples_per_pass
        )
        return {"log_likelihood": torch.as_tensor(estimate)}

    estimates = _reduced(module, cells, compute, return_mean)["log_likelihood"]
    return estimates.item() if return_mean else estimates


Terms = Callable[[LossOutput], Mapping[str, Tensor]]


def _of_loss(group: CellGroup, module: BaseModule, terms: Terms) -> dict[str, Tensor]:
    outputs: tuple[Any, ...] = module(group.tensors)
    return dict(terms(outputs[-1]))


def _negative_elbo(loss: LossOutput) -> dict[str, Tensor]:
    return {
        "elbo": loss.dict_sum(loss.reconstruction_loss) + loss.dict_sum(loss.kl_local),
    }


def _reconstruction(loss: LossOutput) -> dict[str, Tensor]:
    return dict(loss.reconstruction_loss)


def _reduced(
    module: BaseModule, cells: Cells, compute: Compute, return_mean: bool
) -> dict[str, Tensor]:
    if return_mean:
        means = mean(module, cells, compute)
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in means.items()}
    return {k: torch.from_numpy(v) for k, v in collect(module, cells, compute).items()}
