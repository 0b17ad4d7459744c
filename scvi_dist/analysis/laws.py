"""Laws of counts taken apart and put together again.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

from torch import Tensor
from torch.distributions import Distribution

from scvi_dist.distributions import (
    NegativeBinomial,
    NegativeBinomialMixture,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from scvi_dist.errors import ConfigError

_PARAMETERS: dict[type[Distribution], dict[str, str]] = {
    ZeroInflatedNegativeBinomial: {"mu": "mu", "theta": "theta", "zi_logits": "zi_logits"},
    NegativeBinomial: {"mu": "mu", "theta": "theta"},
    Poisson: {"rate": "rate"},
    Normal: {"mu": "loc", "scale": "scale"},
    NegativeBinomialMixture: {
        name: name for name in ("mu1", "mu2", "theta1", "theta2", "mixture_logits")
    },
}
"""Law -> argument that makes it -> attribute ``[..., n, g]`` that holds it; the mean first."""


def parameters_of(law: Distribution) -> dict[str, Tensor]:
    """The arguments ``[..., n, g]`` that make a law anew, the mean first.

    Raises
    ------
    ConfigError
        For a law that is none of counts.
    """
    kind = type(law)
    if kind not in _PARAMETERS:
        known = ", ".join(law.__name__ for law in _PARAMETERS)
        raise ConfigError(f"expected a law of {known}; got {kind.__name__}.")
    held = {name: getattr(law, attribute) for name, attribute in _PARAMETERS[kind].items()}
    return {name: value for name, value in held.items() if value is not None}


def with_mean(law: Distribution, mean: Tensor) -> Distribution:
    """The same law with another mean (of its negative binomial part)."""
    parameters = parameters_of(law)
    return type(law)(**{**parameters, next(iter(parameters)): mean})
