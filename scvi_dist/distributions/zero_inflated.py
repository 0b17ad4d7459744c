"""The zero-inflated negative binomial law."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from scvi_dist.distributions.negative_binomial import NegativeBinomial, log_nb_positive
from scvi_dist.distributions.support import ONE_DRAW
from scvi_dist.errors import ConfigError


def log_zinb_positive(
    x: Tensor, mu: Tensor, theta: Tensor, pi: Tensor, eps: float = 1e-8
) -> Tensor:
    """Log-probability of each count under a zero-inflated negative binomial law.

    With ``π = sigmoid(pi)`` it is ``log(π + (1 - π) NB(0))`` where ``x < eps``, and
    ``log((1 - π) NB(x))`` elsewhere; both are evaluated in log space, so that logits of any
    size keep their precision.

    Parameters
    ----------
    x
        Counts.
    mu
        Means of the negative binomial part, at least 0.
    theta
        Inverse dispersions, positive; a ``[g]`` tensor is shared by all cells.
    pi
        Logits of the probability of an extra zero.
    eps
        Added inside the logarithms, and the bound below which a value is a zero.

    Source
    ------
    Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", methods.
    """
    log_counted = F.logsigmoid(-pi) + log_nb_positive(x, mu, theta, eps)
    return torch.where(x < eps, torch.logaddexp(F.logsigmoid(pi), log_counted), log_counted)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Negative binomial law with extra zeros.

    Parameters
    ----------
    total_count, probs, logits, mu, theta, scale, validate_args
        As for :class:`NegativeBinomial`.
    zi_logits
        Logits of the probability of an extra zero.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        **NegativeBinomial.arg_constraints,
        "zi_logits": constraints.real,
    }

    def __init__(
        self,
        total_count: Tensor | None = None,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        mu: Tensor | None = None,
        theta: Tensor | None = None,
        zi_logits: Tensor | None = None,
        scale: Tensor | None = None,
        validate_args: bool = False,
    ) -> None:
        if zi_logits is None:
            raise ConfigError("A zero-inflated law needs zi_logits; it was given none.")
        self.zi_logits = zi_logits
        super().__init__(total_count, probs, logits, mu, theta, scale, validate_args)
        self.zi_logits, self.mu = torch.broadcast_tensors(zi_logits, self.mu)
        self._batch_shape = self.mu.shape

    @property
    def zi_probs(self) -> Tensor:
        """Probability of an extra zero."""
        return torch.sigmoid(self.zi_logits)

    @property
    def mean(self) -> Tensor:
        return (1 - self.zi_probs) * self.mu

    @property
    def variance(self) -> Tensor:
        pi, mu, theta = self.zi_probs, self.mu, self.theta
        return (1 - pi) * mu * (mu + theta + pi * mu * theta) / theta

    @torch.inference_mode()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ONE_DRAW) -> Tensor:
        """Counts ``[*sample_shape, *batch_shape]``."""
        counts = super().sample(sample_shape)
        is_extra_zero = torch.rand_like(counts) <= self.zi_probs
        return counts.masked_fill_(is_extra_zero, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count."""
        self.warn_outside_support(value)
        return log_zinb_positive(value, self.mu, self._theta, self.zi_logits)
