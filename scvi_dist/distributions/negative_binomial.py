"""The negative binomial law, by mean and inverse dispersion.

Axis suffixes: ``n`` cells, ``g`` genes. All formulas broadcast.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Gamma, constraints
from torch.distributions import Poisson as TorchPoisson

from scvi_dist.distributions.support import ONE_DRAW, OPTIONAL_NONNEGATIVE, CountLaw, normalized
from scvi_dist.errors import ConfigError

MAX_POISSON_RATE = 1e8
"""Rates above are cut: torch's Poisson sampler misbehaves there."""


def count_term(x: Tensor, theta: Tensor) -> Tensor:
    """``log Γ(x + θ) - log Γ(θ) - log Γ(x + 1)``: what does not depend on the mean."""
    return torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def rate_term(x: Tensor, mu: Tensor, theta: Tensor, eps: float) -> Tensor:
    """``θ log(θ / (θ + μ)) + x log(μ / (θ + μ))``, with ``eps`` added inside every logarithm.

    The differences of logarithms are taken as one ``log1p`` each, which is the same formula
    without its cancellation: it stays exact for ``θ`` much larger or smaller than ``μ``.
    """
    return -theta * torch.log1p(mu / (theta + eps)) - x * torch.log1p(theta / (mu + eps))


def log_nb_positive(x: Tensor, mu: Tensor, theta: Tensor, eps: float = 1e-8) -> Tensor:
    """Log-probability of each count under a negative binomial law.

    Parameters
    ----------
    x
        Counts.
    mu
        Means, at least 0.
    theta
        Inverse dispersions, positive; a ``[g]`` tensor is shared by all cells.
    eps
        Added to ``θ``, ``μ`` and ``θ + μ`` inside the logarithms.

    Returns
    -------
    Tensor of the arguments' broadcast shape.

    Source
    ------
    Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", methods;
    the placement of ``eps`` is scvi-tools'.
    """
    return rate_term(x, mu, theta, eps) + count_term(x, theta)


def sample_nb(mu: Tensor, theta: Tensor, sample_shape: torch.Size) -> Tensor:
    """Counts drawn as Poisson of Gamma: shape ``θ``, rate ``θ / μ``."""
    rate = Gamma(concentration=theta, rate=theta / mu).sample(sample_shape)
    return TorchPoisson(torch.clamp(rate, max=MAX_POISSON_RATE)).sample()


def _mean_and_dispersion(
    total_count: Tensor | None,
    probs: Tensor | None,
    logits: Tensor | None,
    mu: Tensor | None,
    theta: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``(mu, theta)`` of whichever of the two parametrisations was given."""
    if mu is not None and theta is not None and total_count is None:
        return mu, theta
    if total_count is not None and mu is None and (probs is None) != (logits is None):
        if logits is None:
            logits = torch.logit(probs)
        total_count = total_count.type_as(logits)
        return logits.exp() * total_count, total_count
    given = {
        "total_count": total_count,
        "probs": probs,
        "logits": logits,
        "mu": mu,
        "theta": theta,
    }
    seen = ", ".join(name for name, value in given.items() if value is not None)
    raise ConfigError(
        "A negative binomial law takes mu and theta, or total_count and one of logits and "
        f"probs; it was given {seen or 'nothing'}."
    )


class NegativeBinomial(CountLaw):
    """Negative binomial law of counts.

    Give ``mu`` (mean) and ``theta`` (inverse dispersion; the variance is ``μ + μ² / θ``), or
    ``total_count`` (failures until the end) and the ``probs`` or ``logits`` of a success.

    Parameters
    ----------
    total_count, probs, logits
        The one parametrisation.
    mu, theta
        The other.
    scale
        Mean as a proportion of the cell; carried along for :meth:`get_normalized`.
    validate_args
        Whether to check the parameters, and to warn of values that are no counts.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "mu": OPTIONAL_NONNEGATIVE,
        "theta": OPTIONAL_NONNEGATIVE,
        "scale": OPTIONAL_NONNEGATIVE,
    }

    def __init__(
        self,
        total_count: Tensor | None = None,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        mu: Tensor | None = None,
        theta: Tensor | None = None,
        scale: Tensor | None = None,
        validate_args: bool = False,
    ) -> None:
        mu, theta = _mean_and_dispersion(total_count, probs, logits, mu, theta)
        self.mu, _ = torch.broadcast_tensors(mu, theta)
        # As given: lgamma of a theta [g] shared by all cells then costs g, not n * g.
        self._theta = theta
        if scale is None and total_count is not None:
            scale = self.mu / self.mu.sum(dim=-1, keepdim=True)
        self.scale = scale
        super().__init__(batch_shape=self.mu.shape, validate_args=validate_args)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersions, of the shape of the means."""
        return self._theta.expand_as(self.mu)

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def variance(self) -> Tensor:
        return self.mu + self.mu**2 / self.theta

    def get_normalized(self, key: str) -> Tensor | None:
        """The mean as counts (``"mu"``) or as proportions of the cell (``"scale"``)."""
        return normalized({"mu": self.mu, "scale": self.scale}, key)

    @torch.inference_mode()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ONE_DRAW) -> Tensor:
        """Counts ``[*sample_shape, *batch_shape]``."""
        return sample_nb(self.mu, self.theta, torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count."""
        self.warn_outside_support(value)
        return log_nb_positive(value, self.mu, self._theta)
