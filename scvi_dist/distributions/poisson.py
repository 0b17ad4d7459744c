"""The Poisson law, which knows the proportions its rates came from."""

import torch
from torch import Tensor
from torch.distributions import Poisson as TorchPoisson

from scvi_dist.distributions.support import normalized


class Poisson(TorchPoisson):
    """Poisson law of counts.

    Parameters
    ----------
    rate
        Means, at least 0.
    validate_args
        Whether to check parameters and values; each check waits for the device.
    scale
        Mean as a proportion of the cell; carried along for :meth:`get_normalized`.
    """

    def __init__(
        self, rate: Tensor, validate_args: bool = False, scale: Tensor | None = None
    ) -> None:
        super().__init__(rate=rate, validate_args=validate_args)
        self.scale = scale

    def get_normalized(self, key: str) -> Tensor | None:
        """The mean as counts (``"mu"``) or as proportions of the cell (``"scale"``)."""
        return normalized({"mu": self.rate, "scale": self.scale}, key)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count.

        A rate of exactly 0 counts as the smallest normal number, so that an empty cell has a
        gradient: torch's own law gives NaN there.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_rate = self.rate.clamp(min=torch.finfo(self.rate.dtype).tiny).log()
        return value * log_rate - self.rate - torch.lgamma(value + 1)
