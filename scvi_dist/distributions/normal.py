"""The normal law, which knows the proportions its means came from."""

from torch import Tensor
from torch.distributions import Normal as TorchNormal

from scvi_dist.distributions.support import normalized


class Normal(TorchNormal):
    """Normal law of expression values.

    Parameters
    ----------
    mu
        Means.
    scale
        Standard deviations, positive.
    validate_args
        Whether to check parameters and values; each check waits for the device.
    normal_mu
        Mean as a proportion of the cell; carried along for :meth:`get_normalized`.
    """

    def __init__(
        self,
        mu: Tensor,
        scale: Tensor,
        validate_args: bool = False,
        normal_mu: Tensor | None = None,
    ) -> None:
        super().__init__(loc=mu, scale=scale, validate_args=validate_args)
        self.normal_mu = normal_mu

    def get_normalized(self, key: str) -> Tensor | None:
        """The mean (``"mu"``) or the proportions of the cell it came from (``"scale"``)."""
        return normalized({"mu": self.loc, "scale": self.normal_mu}, key)
