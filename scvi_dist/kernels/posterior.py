"""The posterior of a latent variable, a draw and a divergence as one differentiable function.

Axis suffixes: ``n`` cells, ``h`` hidden units, ``k`` latent.
"""

from typing import Any

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
    return _Posterior.apply(noise_nk, eps, hidden_nh, *heads)


class _Posterior(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        noise_nk: Tensor,
        eps: float,
        hidden_nh: Tensor,
        mean_kh: Tensor,
        mean_k: Tensor,
        var_kh: Tensor,
        var_k: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loc_nk = torch.addmm(mean_k, hidden_nh, mean_kh.t())
        log_variance_nk = torch.addmm(var_k, hidden_nh, var_kh.t())
        scale_nk, z_nk = torch.empty_like(loc_nk), torch.empty_like(loc_nk)
        divergence_n = loc_nk.new_empty(len(loc_nk))
        given = (t.detach().numpy() for t in (loc_nk, log_variance_nk, noise_nk))
        draw(*given, eps, scale_nk.numpy(), z_nk.numpy(), divergence_n.numpy())
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        ctx.save_for_backward(noise_nk, hidden_nh, mean_kh, var_kh, loc_nk, scale_nk)
        return loc_nk, scale_nk, z_nk, divergence_n

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any,
        by_loc: Tensor | None,
        by_scale: Tensor | None,
        by_z: Tensor | None,
        by_divergence: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        noise_nk, hidden_nh, mean_kh, var_kh, loc_nk, scale_nk = ctx.saved_tensors
        # Sums are written into: slopes that were given belong to somebody else.
        loc_slope, scale_slope = (
            torch.zeros_like(loc_nk)
            if by is None
            else by.clone(memory_format=torch.contiguous_format)
            for by in (by_loc, by_scale)
        )
        z_slope = torch.zeros_like(loc_nk) if by_z is None else by_z.contiguous()
        weight_n = loc_nk.new_zeros(len(loc_nk)) if by_divergence is None else by_divergence
        arrays = z_slope, weight_n.contiguous(), loc_nk, noise_nk, scale_nk
        results = loc_slope.numpy(), scale_slope.numpy()
        draw_slopes(*(x.numpy() for x in arrays), ctx.eps, *results)
        needs = ctx.needs_input_grad[2:]
        by_hidden = torch.mm(loc_slope, mean_kh).addmm_(scale_slope, var_kh) if needs[0] else None
        return (
            None,
            None,
            by_hidden,
            torch.mm(loc_slope.t(), hidden_nh) if needs[1] else None,
            loc_slope.sum(0) if needs[2] else None,
            torch.mm(scale_slope.t(), hidden_nh) if needs[3] else None,
            scale_slope.sum(0) if needs[4] else None,
        )
