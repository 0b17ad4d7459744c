"""From what a decoder gives to the law of the counts, and back to its parameters.

Axis suffixes: ``n`` cells, ``g`` genes, ``s`` samples; all tensors may have ``s`` in front.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from scvi_dist.distributions import (
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from scvi_dist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the generative model says of each gene of each cell."""

    scale: Tensor
    """Mean as a proportion of the cell, ``[n, g]``."""
    rate: Tensor
    """Mean, ``[n, g]``."""
    theta: Tensor | None
    """Inverse dispersion (standard deviation of a normal law), ``[g]`` or ``[n, g]``; a Poisson
    law has none."""
    zi_logits: Tensor | None
    """Logits of an extra zero, ``[n, g]``; only for ``"zinb"``."""


def _zinb(decoded: Decoded) -> Distribution:
    return ZeroInflatedNegativeBinomial(
        mu=decoded.rate, theta=decoded.theta, zi_logits=decoded.zi_logits, scale=decoded.scale
    )


def _nb(decoded: Decoded) -> Distribution:
    return NegativeBinomial(mu=decoded.rate, theta=decoded.theta, scale=decoded.scale)


def _poisson(decoded: Decoded) -> Distribution:
    return Poisson(rate=decoded.rate, scale=decoded.scale)


def _normal(decoded: Decoded) -> Distribution:
    return Normal(decoded.rate, decoded.theta, normal_mu=decoded.scale)


LIKELIHOODS: dict[str, Callable[[Decoded], Distribution]] = {
    "zinb": _zinb,
    "nb": _nb,
    "poisson": _poisson,
    "normal": _normal,
}


def likelihood_parameters(px: Distribution) -> dict[str, Tensor]:
    """The parameters of a law of counts, each of its full shape ``[n, g]`` or ``[s, n, g]``.

    Returns
    -------
    ``"mean"`` (of the negative binomial part for a zero-inflated law), and, where the law has
    them, ``"dispersions"`` (inverse; standard deviations of a normal law) and ``"dropout"``
    (probabilities of an extra zero).
    """
    if isinstance(px, ZeroInflatedNegativeBinomial):
        return {"mean": px.mu, "dropout": px.zi_probs, "dispersions": px.theta}
    if isinstance(px, NegativeBinomial):
        return {"mean": px.mu, "dispersions": px.theta}
    if isinstance(px, Normal):
        return {"mean": px.loc, "dispersions": px.scale}
    if isinstance(px, Poisson):
        return {"mean": px.rate}
    raise ConfigError(
        f"Expected a law of {', '.join(LIKELIHOODS)}, as a VAE's generative() gives under 'px'; "
        f"got {type(px).__name__}."
    )


def sample_counts(px: Distribution, max_poisson_rate: float = 1e8) -> Tensor:
    """One draw of each value; the rates of a Poisson law are cut at ``max_poisson_rate``."""
    if isinstance(px, Poisson):
        px = Poisson(torch.clamp(px.rate, max=max_poisson_rate))
    return px.sample()
