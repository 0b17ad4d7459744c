"""The beta-binomial law: counts of successes among trials whose probability varies."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Beta, Binomial, constraints

from scvi_dist.distributions.support import ONE_DRAW, OPTIONAL_NONNEGATIVE, CountLaw, Optional
from scvi_dist.errors import ConfigError

_SHARE = Optional(constraints.interval(0.0, 1.0))


class BetaBinomial(CountLaw):
    """Beta-binomial law of counts.

    Give the shapes ``alpha`` and ``beta`` of the beta law, or the mean ``mu`` and the dispersion
    ``gamma`` of the probability of a success: ``alpha = mu (1 - gamma) / gamma`` and
    ``beta = (1 - mu) (1 - gamma) / gamma``.

    Parameters
    ----------
    total_count
        Trials.
    alpha, beta
        The one parametrisation, positive.
    mu, gamma
        The other, between 0 and 1.
    validate_args
        Whether to check the parameters, and to warn of values that are no counts.
    eps
        Least ``alpha`` and ``beta`` that follow from ``mu`` and ``gamma``.

    Source
    ------
    Kapourani et al. 2021, "scMET: Bayesian modeling of DNA methylation heterogeneity at single-cell
    resolution", for the mean and dispersion.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "total_count": constraints.nonnegative_integer,
        "alpha": OPTIONAL_NONNEGATIVE,
        "beta": OPTIONAL_NONNEGATIVE,
        "mu": _SHARE,
        "gamma": _SHARE,
    }

    def __init__(
        self,
        total_count: Tensor,
        alpha: Tensor | None = None,
        beta: Tensor | None = None,
        mu: Tensor | None = None,
        gamma: Tensor | None = None,
        validate_args: bool = False,
        eps: float = 1e-8,
    ) -> None:
        by_shape, by_mean = (alpha, beta), (mu, gamma)
        seen = [pair for pair in (by_shape, by_mean) if any(value is not None for value in pair)]
        if len(seen) != 1 or any(value is None for value in seen[0]):
            raise ConfigError(
                "A beta-binomial law takes either alpha and beta, or mu and gamma, besides "
                "total_count."
            )
        self.mu, self.gamma = mu, gamma
        if mu is not None and gamma is not None:
            precision = (1 - gamma) / gamma
            alpha = torch.clamp(mu * precision, min=eps)
            beta = torch.clamp((1 - mu) * precision, min=eps)
        self.total_count, self.alpha, self.beta = torch.broadcast_tensors(total_count, alpha, beta)
        super().__init__(batch_shape=self.alpha.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.alpha / (self.alpha + self.beta)

    @property
    def variance(self) -> Tensor:
        both = self.alpha + self.beta
        return self.mean * self.beta / both * (both + self.total_count) / (both + 1)

    @torch.inference_mode()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ONE_DRAW) -> Tensor:
        """Counts ``[*sample_shape, *batch_shape]``."""
        p = Beta(self.alpha, self.beta, validate_args=False).sample(torch.Size(sample_shape))
        return Binomial(self.total_count, p, validate_args=False).sample()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count, of at most ``total_count``."""
        self.warn_outside_support(value)
        failures = self.total_count - value
        ways = _log_beta(failures + 1, value + 1) + torch.log1p(self.total_count)
        return _log_beta(value + self.alpha, failures + self.beta) - ways - self._log_beta_shape

    @property
    def _log_beta_shape(self) -> Tensor:
        return _log_beta(self.alpha, self.beta)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
