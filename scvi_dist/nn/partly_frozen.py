"""A linear layer of which only the last columns are trained."""

import torch.nn.functional as F
from torch import Tensor, nn


class PartlyFrozenLinear(nn.Linear):
    """``torch.nn.Linear`` whose weights are trained for the last ``n_trained`` inputs alone.

    It computes what the layer that it is made of computes, under the same names. A gradient hook
    would be lost with a pickle or a copy, on the way to a worker for instance; a detached column
    is not, and no gradient is computed for it.
    """

    n_trained: int

    @classmethod
    def of(cls, linear: nn.Linear, n_trained: int) -> "PartlyFrozenLinear":
        """A layer that shares the parameters of ``linear``; the bias is frozen."""
        partly = cls.__new__(cls)
        partly.__dict__.update(linear.__dict__)
        partly.n_trained = n_trained
        partly.weight.requires_grad_(True)
        if partly.bias is not None:
            partly.bias.requires_grad_(False)
        return partly

    def forward(self, x: Tensor) -> Tensor:
        fixed, trained = x[..., : -self.n_trained], x[..., -self.n_trained :]
        y = F.linear(fixed, self.weight[:, : -self.n_trained].detach(), self.bias)
        return y + F.linear(trained, self.weight[:, -self.n_trained :])
