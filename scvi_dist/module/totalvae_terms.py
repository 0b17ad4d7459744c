"""The terms of a TOTALVAE's loss, and its importance weights.

Axis suffixes: ``n`` cells, ``p`` proteins, ``s`` samples.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn import functional as F

from scvi_dist.distributions import Normal, log_mixture_nb
from scvi_dist.kernels.protein_loss import ProteinParameters, ProteinTerms, protein_loss
from scvi_dist.module.fused import RECONSTRUCTION_LOSS, divergence

BACKGROUND_WEIGHT = 1e-3
"""Weight of the term that makes background the first explanation of a protein's counts."""

Outputs = dict[str, Any]
"""What inference or the generative model gives."""


def loss_terms(
    inferred: Outputs, generated: Outputs, x: Tensor, y: Tensor, measured: Tensor | None
) -> dict[str, Tensor]:
    """The terms of each cell's negative evidence lower bound, ``[n]`` each, without weights.

    Parameters
    ----------
    inferred, generated
        What the module's ``inference`` and ``generative`` gave.
    x, y
        Counts of genes and of proteins.
    measured
        bool ``[n, p]``: which proteins were measured in each cell; all of them where None.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with
    totalVI", methods.
    """
    rec_protein = -generated["py"].log_prob(y)
    kl_z = divergence(inferred["qz"], lambda: Normal(0.0, 1.0, validate_args=False))
    kl_l = torch.zeros_like(kl_z)
    if inferred["ql"] is not None:
        kl_l = kl_divergence(inferred["ql"], generated["pl"]).sum(-1)
    return {
        "reconst_loss_gene": -generated["px"].log_prob(x).sum(-1),
        "reconst_loss_protein": where_measured(measured, rec_protein).sum(-1),
        "kl_div_z": kl_z,
        "kl_div_l_gene": kl_l,
        "kl_div_back_pro": _protein_penalty(inferred, generated, measured),
    }


def own_terms(inferred: Outputs, generated: Outputs) -> dict[str, Tensor]:
    """The terms of :func:`loss_terms` that are not of proteins, where the genes' is known."""
    kl_z = divergence(inferred["qz"], lambda: Normal(0.0, 1.0, validate_args=False))
    kl_l = torch.zeros_like(kl_z)
    if inferred["ql"] is not None:
        kl_l = kl_divergence(inferred["ql"], generated["pl"]).sum(-1)
    return {
        "reconst_loss_gene": generated[RECONSTRUCTION_LOSS],
        "kl_div_z": kl_z,
        "kl_div_l_gene": kl_l,
    }


def protein_parameters(inferred: Outputs, generated: Outputs) -> ProteinParameters:
    """What the counts of proteins follow from."""
    proteins, prior = generated["py_"], inferred["back_mean_prior"]
    return ProteinParameters(
        back_mean=proteins["back_alpha"],
        back_spread=proteins["back_beta"],
        log_rate_back=generated["log_pro_back_mean"],
        fore_scale=proteins["fore_scale"],
        mixing=proteins["mixing"],
        theta=proteins["r"],
        log_efficiency=generated["log_per_batch_efficiency"],
        prior_mean=prior.loc,
        prior_spread=prior.scale,
    )


def protein_loss_by_parts(
    counts_np: Tensor,
    measured_np: Tensor | None,
    given: ProteinParameters,
    n_real: int,
    weights: tuple[float, float],
) -> ProteinTerms:
    """What :func:`~scvi_dist.kernels.protein_loss.protein_loss` gives, on any device."""
    rate = torch.exp(given.log_efficiency + given.log_rate_back)
    log_p = log_mixture_nb(
        counts_np, rate, rate * given.fore_scale, given.theta, None, given.mixing
    )
    posterior = Normal(given.back_mean, given.back_spread, validate_args=False)
    prior = Normal(given.prior_mean, given.prior_spread, validate_args=False)
    divergence = kl_divergence(posterior, prior)
    own = _efficiency_and_background(given.log_efficiency, given.mixing)
    rec_n = where_measured(measured_np, -log_p).sum(-1)
    penalty_n = where_measured(measured_np, divergence).sum(-1) + own.sum(-1)
    both_n = weights[0] * rec_n + weights[1] * penalty_n
    return ProteinTerms(rec_n.detach(), penalty_n.detach(), both_n[:n_real].sum())


PROTEIN_LOSSES: dict[str, Callable[..., ProteinTerms]] = {
    "numba": protein_loss,
    "triton": protein_loss_by_parts,
    "torch": protein_loss_by_parts,
}
"""By the name that a module's ``kernel`` has."""


def _protein_penalty(inferred: Outputs, generated: Outputs, measured: Tensor | None) -> Tensor:
    """What the background rates, the efficiencies and the odds of background cost, ``[n]``.

    Minus the log density of an efficiency under a standard log-normal law, and minus the log
    probability of background with a small weight; as in scvi-tools, both of them also for proteins
    that were not measured.
    """
    divergence = kl_divergence(_background_posterior(generated), inferred["back_mean_prior"])
    log_e, mixing = generated["log_per_batch_efficiency"], generated["py_"]["mixing"]
    own = _efficiency_and_background(log_e, mixing)
    return where_measured(measured, divergence).sum(-1) + own.sum(-1)


def _efficiency_and_background(log_efficiency: Tensor, mixing: Tensor) -> Tensor:
    efficiency = log_efficiency + log_efficiency.square() / 2 + math.log(2 * math.pi) / 2
    return efficiency - BACKGROUND_WEIGHT * F.logsigmoid(mixing)


def log_importance_weights(
    drawn: Outputs, generated: Outputs, x: Tensor, y: Tensor, measured: Tensor | None
) -> Tensor:
    """``log p(x, y, z, l, b) - log q(z, l, b)`` of each draw, ``[s, n]``.

    The background rate ``b`` of a protein that was not measured is left out: its posterior and
    its prior cancel in the mean over draws.

    Parameters
    ----------
    drawn
        The laws ``qz``, ``ql`` and ``back_mean_prior``, and the draws ``untran_z`` and
        ``untran_l``.
    generated
        What the module's ``generative`` gave for these draws.
    x, y, measured
        As for :func:`loss_terms`.
    """
    z, ql = drawn["untran_z"], drawn["ql"]
    background, posterior = generated["log_pro_back_mean"], _background_posterior(generated)
    per_protein = generated["py"].log_prob(y)
    per_protein += drawn["back_mean_prior"].log_prob(background) - posterior.log_prob(background)
    log_weights = generated["px"].log_prob(x).sum(-1)
    log_weights += where_measured(measured, per_protein).sum(-1)
    # Taken before z is transformed: there both densities are known, and their ratio is the same.
    log_weights += (generated["pz"].log_prob(z) - drawn["qz"].log_prob(z)).sum(-1)
    if ql is not None:
        log_library = drawn["untran_l"]
        log_weights += (generated["pl"].log_prob(log_library) - ql.log_prob(log_library)).sum(-1)
    return log_weights


def where_measured(measured: Tensor | None, values: Tensor) -> Tensor:
    """The values of proteins that were measured; 0 for others."""
    return values if measured is None else torch.where(measured, values, 0.0)


def _background_posterior(generated: Outputs) -> Normal:
    proteins = generated["py_"]
    return Normal(proteins["back_alpha"], proteins["back_beta"], validate_args=False)
