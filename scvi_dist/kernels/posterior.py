"""The posterior of a latent variable, a draw and a divergence as one differentiable function.

Axis suffixes: ``n`` cells, ``h`` hidden units, ``k`` latent.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scvi_dist.kernels.posterior_rows import draw, draw_slopes


def posterior(
    hidden_nh: Tensor, mean_head: nn.Linear, var_head: nn.Linear, noise_nk: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, standard deviation and draw ``[n, k]``, and divergence ``[n]`` from a standard normal.

    Parameters
    ----------
    var_head
        Gives the logarithm of the variance less ``eps``.
    noise_nk
        Standard normal.
    """
    heads = mean_head.weight, mean_head.bias, var_head.weight, var_head.bias
    run = PosteriorPass(mean_head, var_head, noise_nk, eps)
    return _Posterior.apply(run, hidden_nh, *heads)


class PosteriorSlopes(NamedTuple):
    """Derivatives of an objective; None by what is not trained or was not asked for."""

    hidden: Tensor | None
    mean_weight: Tensor | None
    mean_bias: Tensor | None
    var_weight: Tensor | None
    var_bias: Tensor | None


class PosteriorPass:
    """The posterior of one minibatch, forward and then backward; no graph is recorded.

    Parameters
    ----------
    mean_head, var_head, noise_nk, eps
        As for :func:`posterior`.
    """

    def __init__(
        self, mean_head: nn.Linear, var_head: nn.Linear, noise_nk: Tensor, eps: float
    ) -> None:
        self.heads = mean_head, var_head
        self.weights_kh = tuple(head.weight.detach() for head in self.heads)
        self.noise_nk, self.eps = noise_nk, eps

    def forward(self, hidden_nh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :func:`posterior` gives."""
        self.hidden_nh = hidden_nh
        self.loc_nk, log_variance_nk = (
            torch.addmm(head.bias.detach(), hidden_nh, weight_kh.t())
            for head, weight_kh in zip(self.heads, self.weights_kh, strict=True)
        )
        self.scale_nk, z_nk = torch.empty_like(self.loc_nk), torch.empty_like(self.loc_nk)
        divergence_n = self.loc_nk.new_empty(len(hidden_nh))
        given = (t.numpy() for t in (self.loc_nk, log_variance_nk, self.noise_nk))
        draw(*given, self.eps, self.scale_nk.numpy(), z_nk.numpy(), divergence_n.numpy())
        return self.loc_nk, self.scale_nk, z_nk, divergence_n

    def backward(
        self,
        by_loc: Tensor | None,
        by_scale: Tensor | None,
        by_z: Tensor | None,
        by_divergence: Tensor | None,
        needs_hidden: bool,
    ) -> PosteriorSlopes:
        """From derivatives by what :meth:`forward` gave; None where there are none."""
        loc_nk = self.loc_nk
        # Sums are written into: slopes that were given belong to somebody else.
        loc_slope, scale_slope = (
            torch.zeros_like(loc_nk)
            if by is None
            else by.clone(memory_format=torch.contiguous_format)
            for by in (by_loc, by_scale)
        )
        z_slope = torch.zeros_like(loc_nk) if by_z is None else by_z.contiguous()
        weight_n = loc_nk.new_zeros(len(loc_nk)) if by_divergence is None else by_divergence
        arrays = z_slope, weight_n.contiguous(), loc_nk, self.noise_nk, self.scale_nk
        results = loc_slope.numpy(), scale_slope.numpy()
        draw_slopes(*(x.numpy() for x in arrays), self.eps, *results)
        mean_kh, var_kh = self.weights_kh
        by_heads: list[Tensor | None] = []
        for head, slope_nk in zip(self.heads, (loc_slope, scale_slope), strict=True):
            has_slope = head.weight.requires_grad
            by_heads.append(torch.mm(slope_nk.t(), self.hidden_nh) if has_slope else None)
            by_heads.append(slope_nk.sum(0) if head.bias.requires_grad else None)
        return PosteriorSlopes(
            torch.mm(loc_slope, mean_kh).addmm_(scale_slope, var_kh) if needs_hidden else None,
            *by_heads,
        )


class _Posterior(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, run: PosteriorPass, hidden_nh: Tensor, *heads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.run = run
        results = run.forward(hidden_nh.detach())
        # A change of these before the derivatives are asked for is an error.
        ctx.save_for_backward(hidden_nh, *heads, *results)
        return results

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *slopes: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        assert ctx.saved_tensors
        return (None, *ctx.run.backward(*slopes, ctx.needs_input_grad[1]))
