"""The posterior of a latent variable, a draw and a divergence as one differentiable function.

Axis suffixes: ``n`` cells, ``h`` hidden units, ``k`` latent.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scvi_dist.kernels.posterior_rows import Heads, Normals, draw, draw_slopes


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
    run = PosteriorPass(mean_head, var_head, eps)
    return _Posterior.apply(run, noise_nk, hidden_nh, *heads)


class PosteriorSlopes(NamedTuple):
    """Derivatives of an objective; None by what is not trained or was not asked for."""

    hidden: Tensor | None
    mean_weight: Tensor | None
    mean_bias: Tensor | None
    var_weight: Tensor | None
    var_bias: Tensor | None


class PosteriorPass:
    """The posterior of a minibatch, forward and then backward; no graph is recorded.

    It can be used for one minibatch after the other while the heads have their place in memory.

    Parameters
    ----------
    mean_head, var_head, eps
        As for :func:`posterior`.
    """

    def __init__(self, mean_head: nn.Linear, var_head: nn.Linear, eps: float) -> None:
        self.parameters = mean_head.weight, mean_head.bias, var_head.weight, var_head.bias
        self._heads = Heads(*(p.detach().contiguous().numpy() for p in self.parameters))
        self._are_trained = tuple(p.requires_grad for p in self.parameters)
        self._eps = eps

    def forward(self, hidden_nh: Tensor, noise_nk: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :func:`posterior` gives."""
        results = tuple(torch.empty_like(noise_nk) for _ in Normals._fields)
        divergence_n = noise_nk.new_empty(noise_nk.shape[0])
        self._hidden_nh, self._noise_nk = hidden_nh.contiguous().numpy(), noise_nk.numpy()
        self._normals = Normals(*(x.numpy() for x in results))
        rest = self._eps, self._normals, divergence_n.numpy()
        draw(self._hidden_nh, self._heads, self._noise_nk, *rest)
        return (*results, divergence_n)

    def backward(
        self,
        by_loc: Tensor | None,
        by_scale: Tensor | None,
        by_z: Tensor | None,
        by_divergence: Tensor | None,
        needs_hidden: bool,
    ) -> PosteriorSlopes:
        """From derivatives by what :meth:`forward` gave; None where there are none."""
        real, n = self._noise_nk.dtype, len(self._noise_nk)
        none = np.empty((0, 0), real)
        given = (none if by is None else by.contiguous().numpy() for by in (by_loc, by_scale, by_z))
        weight_n = np.zeros(n, real)
        if by_divergence is not None:
            weight_n = by_divergence.contiguous().numpy()
        by_hidden = np.empty_like(self._hidden_nh) if needs_hidden else none
        by_heads = Heads(
            *(
                np.empty_like(x) if is_trained else np.empty((0,) * x.ndim, real)
                for x, is_trained in zip(self._heads, self._are_trained, strict=True)
            )
        )
        values = self._hidden_nh, self._heads, self._normals, self._noise_nk, self._eps
        draw_slopes(Normals(*given), weight_n, *values, by_hidden, by_heads)
        found = (by_hidden, *by_heads)
        wanted = (needs_hidden, *self._are_trained)
        return PosteriorSlopes(
            *(
                torch.from_numpy(x) if is_wanted else None
                for x, is_wanted in zip(found, wanted, strict=True)
            )
        )


class _Posterior(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, run: PosteriorPass, noise_nk: Tensor, hidden_nh: Tensor, *heads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.run = run
        results = run.forward(hidden_nh.detach(), noise_nk)
        # A change of these before the derivatives are asked for is an error.
        ctx.save_for_backward(hidden_nh, *heads, *results)
        return results

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *slopes: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        assert ctx.saved_tensors
        return (None, None, *ctx.run.backward(*slopes, ctx.needs_input_grad[2]))
