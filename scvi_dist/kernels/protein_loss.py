"""What the proteins of a minibatch cost under TOTALVI's generative model, with its derivatives.

Axis suffixes: ``n`` cells, ``p`` proteins.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class ProteinParameters:
    """What the counts of proteins follow from; each ``[n, p]``, or ``[p]`` for all cells."""

    back_mean: Tensor
    """Mean of the log background rate's posterior."""
    back_spread: Tensor
    """Its standard deviation."""
    log_rate_back: Tensor
    """The log background rate that was drawn from it."""
    fore_scale: Tensor
    """Foreground rate over background rate, at least 1."""
    mixing: Tensor
    """Logits of background."""
    theta: Tensor
    """Inverse dispersions."""
    log_efficiency: Tensor
    """Logarithm of the factor of both rates."""
    prior_mean: Tensor
    """Mean of the log background rate's prior."""
    prior_spread: Tensor
    """Its standard deviation."""


class ProteinTerms(NamedTuple):
    """What a minibatch's proteins cost."""

    reconstruction_n: Tensor
    """Minus the log-probability of the proteins that were measured, of each cell."""
    penalty_n: Tensor
    """What background rates, efficiencies and odds of background cost, of each cell."""
    objective: Tensor
    """Both with their weights, summed over the cells that count; 0-d, and has a gradient."""


def protein_loss(
    counts_np: Tensor,
    measured_np: Tensor | None,
    given: ProteinParameters,
    n_real: int,
    weights: tuple[float, float],
) -> ProteinTerms:
    """Terms and derivatives in one pass of compiled loops, in float64. For CPUs.

    Parameters
    ----------
    counts_np
        Counts.
    measured_np
        bool: which proteins were measured in each cell; all of them where None.
    given
        Parameters; all of them have a gradient, of the first order.
    n_real
        Cells that count: the first ones.
    weights
        Of a cell's reconstruction and of its penalty.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with
    totalVI", methods.
    """
    parts = [getattr(given, field.name) for field in fields(given)]
    parts = [part.expand(counts_np.shape) for part in parts]
    return ProteinTerms(*_ProteinLoss.apply(counts_np, measured_np, n_real, weights, *parts))


class _ProteinLoss(torch.autograd.Function):
    """The gradient is made on the way forth: the objective is a sum, whose weight comes later."""

    @staticmethod
    def forward(
        ctx: Any,
        counts_np: Tensor,
        measured_np: Tensor | None,
        n_real: int,
        weights: tuple[float, float],
        *parts: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from scvi_dist.kernels.protein_rows import protein_rows

        dtype, counts = parts[0].dtype, counts_np.double()
        measured = torch.ones_like(counts) if measured_np is None else measured_np.double()
        constants = torch.lgamma(counts + 1)
        values = torch.stack([*(part.double() for part in parts), counts, constants, measured])
        needs_gradient = any(ctx.needs_input_grad)
        slopes = np.empty((len(parts) if needs_gradient else 0, *counts_np.shape))
        terms = np.empty((2, len(counts_np)))
        protein_rows(values.detach().numpy(), n_real, weights, terms, slopes)
        if needs_gradient:
            ctx.save_for_backward(torch.from_numpy(slopes).to(dtype))
        rec_n, penalty_n = torch.from_numpy(terms)
        ctx.mark_non_differentiable(rec_n, penalty_n)
        both_n = weights[0] * rec_n + weights[1] * penalty_n
        return rec_n.to(dtype), penalty_n.to(dtype), both_n[:n_real].sum().to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return None, None, None, None, *(grads[2] * slopes).unbind()
