"""The terms of a TOTALVAE's loss, and its importance weights.

Axis suffixes: ``n`` cells, ``p`` proteins, ``s`` samples.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn import functional as F

from scvi_dist.distributions import Normal

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
    kl_z = kl_divergence(inferred["qz"], Normal(0.0, 1.0, validate_args=False)).sum(-1)
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


def _protein_penalty(inferred: Outputs, generated: Outputs, measured: Tensor | None) -> Tensor:
    """What the background rates, the efficiencies and the odds of background cost, ``[n]``.

    Minus the log density of an efficiency under a standard log-normal law, and minus the log
    probability of background with a small weight; as in scvi-tools, both of them also for proteins
    that were not measured.
    """
    divergence = kl_divergence(_background_posterior(generated), inferred["back_mean_prior"])
    log_e = generated["log_per_batch_efficiency"]
    efficiency = log_e + log_e.square() / 2 + math.log(2 * math.pi) / 2
    background = -BACKGROUND_WEIGHT * F.logsigmoid(generated["py_"]["mixing"])
    return where_measured(measured, divergence).sum(-1) + (efficiency + background).sum(-1)


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
