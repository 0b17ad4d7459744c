"""Mixtures of two negative binomial laws."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, constraints

from scvi_dist.distributions.negative_binomial import (
    count_term,
    log_nb_positive,
    rate_term,
    sample_nb,
)
from scvi_dist.distributions.support import NONNEGATIVE, ONE_DRAW, OPTIONAL_NONNEGATIVE, CountLaw


def log_mixture_nb(
    x: Tensor,
    mu_1: Tensor,
    mu_2: Tensor,
    theta_1: Tensor,
    theta_2: Tensor | None,
    pi_logits: Tensor,
    eps: float = 1e-8,
) -> Tensor:
    """Log-probability of each count under a mixture of two negative binomial laws.

    Parameters
    ----------
    x
        Counts.
    mu_1, mu_2
        Means of the components, at least 0.
    theta_1, theta_2
        Inverse dispersions, positive; without ``theta_2`` both components have ``theta_1``.
    pi_logits
        Logits of the probability of component 1.
    eps
        Added inside the logarithms.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with
    totalVI", methods; component 1 is the background there.
    """
    if theta_2 is None:
        shared = count_term(x, theta_1)
        log_nb_1 = rate_term(x, mu_1, theta_1, eps) + shared
        log_nb_2 = rate_term(x, mu_2, theta_1, eps) + shared
    else:
        log_nb_1 = log_nb_positive(x, mu_1, theta_1, eps)
        log_nb_2 = log_nb_positive(x, mu_2, theta_2, eps)
    return torch.logaddexp(F.logsigmoid(pi_logits) + log_nb_1, F.logsigmoid(-pi_logits) + log_nb_2)


class NegativeBinomialMixture(CountLaw):
    """Mixture of two negative binomial laws.

    Parameters
    ----------
    mu1, mu2
        Means of the components.
    theta1, theta2
        Inverse dispersions; without ``theta2`` both components have ``theta1``.
    mixture_logits
        Logits of the probability of component 1.
    validate_args
        Whether to check the parameters, and to warn of values that are no counts.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "mu1": NONNEGATIVE,
        "mu2": NONNEGATIVE,
        "theta1": NONNEGATIVE,
        "theta2": OPTIONAL_NONNEGATIVE,
        "mixture_logits": constraints.real,
    }

    def __init__(
        self,
        mu1: Tensor,
        mu2: Tensor,
        theta1: Tensor,
        mixture_logits: Tensor,
        theta2: Tensor | None = None,
        validate_args: bool = False,
    ) -> None:
        self.mu1, self.mu2, self.mixture_logits, _ = torch.broadcast_tensors(
            mu1, mu2, mixture_logits, theta1
        )
        # As given: lgamma of a theta shared by all cells is evaluated once.
        self._theta1, self._theta2 = theta1, theta2
        super().__init__(batch_shape=self.mu1.shape, validate_args=validate_args)

    @property
    def theta1(self) -> Tensor:
        """Inverse dispersions of component 1, of the shape of the means."""
        return self._theta1.expand_as(self.mu1)

    @property
    def theta2(self) -> Tensor | None:
        """Inverse dispersions of component 2; None where they are those of component 1."""
        return None if self._theta2 is None else self._theta2.expand_as(self.mu1)

    @property
    def mixture_probs(self) -> Tensor:
        """Probability of component 1."""
        return torch.sigmoid(self.mixture_logits)

    @property
    def mean(self) -> Tensor:
        pi = self.mixture_probs
        return pi * self.mu1 + (1 - pi) * self.mu2

    @property
    def variance(self) -> Tensor:
        pi = self.mixture_probs
        theta2 = self.theta1 if self.theta2 is None else self.theta2
        within_1 = self.mu1 + self.mu1**2 / self.theta1
        within_2 = self.mu2 + self.mu2**2 / theta2
        between = pi * (1 - pi) * (self.mu1 - self.mu2) ** 2
        return pi * within_1 + (1 - pi) * within_2 + between

    @torch.inference_mode()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ONE_DRAW) -> Tensor:
        """Counts ``[*sample_shape, *batch_shape]``; the component is drawn anew for each."""
        shape = torch.Size(sample_shape)
        is_first = Bernoulli(self.mixture_probs).sample(shape).bool()
        theta2 = self.theta1 if self.theta2 is None else self.theta2
        mu = torch.where(is_first, self.mu1, self.mu2)
        return sample_nb(mu, torch.where(is_first, self.theta1, theta2), torch.Size())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count."""
        self.warn_outside_support(value)
        return log_mixture_nb(
            value, self.mu1, self.mu2, self._theta1, self._theta2, self.mixture_logits
        )
