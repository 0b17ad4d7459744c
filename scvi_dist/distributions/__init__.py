"""Likelihoods of counts and of expression values."""

from scvi_dist.distributions.beta_binomial import BetaBinomial
from scvi_dist.distributions.mixture import NegativeBinomialMixture, log_mixture_nb
from scvi_dist.distributions.negative_binomial import NegativeBinomial, log_nb_positive
from scvi_dist.distributions.normal import Normal
from scvi_dist.distributions.poisson import Poisson
from scvi_dist.distributions.zero_inflated import ZeroInflatedNegativeBinomial, log_zinb_positive

__all__ = [
    "BetaBinomial",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Normal",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "log_mixture_nb",
    "log_nb_positive",
    "log_zinb_positive",
]
