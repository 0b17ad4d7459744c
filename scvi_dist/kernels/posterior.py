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

    hidden: np.ndarray | None
    mean_weight: np.ndarray | None
    mean_bias: np.ndarray | None
    var_weight: np.ndarray | None
    var_bias: np.ndarray | None


class PosteriorPass:
    """The posterior of a minibatch, forward and then backward; no graph is recorded.

    It can be used for one minibatch after the other while the heads have their place in memory.
    All arrays are contiguous.

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

    def forward(self, hidden_nh: np.ndarray, noise_nk: np.ndarray) -> tuple[Normals, np.ndarray]:
        """What :func:`posterior` gives."""
        self._hidden_nh, self._noise_nk = hidden_nh, noise_nk
        self._normals = Normals(*(np.empty_like(noise_nk) for _ in Normals._fields))
        divergence_n = np.empty(len(noise_nk), noise_nk.dtype)
        draw(hidden_nh, self._heads, noise_nk, self._eps, self._normals, divergence_n)
        return self._normals, divergence_n

    def backward(
        self, slopes: Normals, by_divergence_n: np.ndarray, needs_hidden: bool
    ) -> PosteriorSlopes:
        """From derivatives by what :meth:`forward` gave; ``[0, 0]`` where there are none."""
        real, wanted = self._noise_nk.dtype, (needs_hidden, *self._are_trained)
        by_hidden, *by_heads = (
            np.empty_like(x) if is_wanted else np.empty((0,) * x.ndim, real)
            for x, is_wanted in zip((self._hidden_nh, *self._heads), wanted, strict=True)
        )
        values = self._hidden_nh, self._heads, self._normals, self._noise_nk, self._eps
        draw_slopes(slopes, by_divergence_n, *values, by_hidden, Heads(*by_heads))
        found = zip((by_hidden, *by_heads), wanted, strict=True)
        return PosteriorSlopes(*(by if is_wanted else None for by, is_wanted in found))


class _Posterior(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, run: PosteriorPass, noise_nk: Tensor, hidden_nh: Tensor, *heads: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.run = run
        normals, divergence_n = run.forward(
            hidden_nh.detach().contiguous().numpy(), noise_nk.numpy()
        )
        results = tuple(torch.from_numpy(x) for x in (*normals, divergence_n))
        # A change of these before the derivatives are asked for is an error.
        ctx.save_for_backward(hidden_nh, *heads, *results)
        return results

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *slopes: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *_, divergence_n = ctx.saved_tensors
        real = divergence_n.numpy().dtype
        *by_normals, by_divergence = (
            None if by is None else by.contiguous().numpy() for by in slopes
        )
        given = Normals(*(np.empty((0, 0), real) if by is None else by for by in by_normals))
        weight_n = np.zeros(len(divergence_n), real) if by_divergence is None else by_divergence
        found = ctx.run.backward(given, weight_n, ctx.needs_input_grad[2])
        return (None, None, *(None if by is None else torch.from_numpy(by) for by in found))
