"""The last layer of a decoder and the likelihood of the counts, as one differentiable function.

Logits, means and log-probabilities exist for some cells at a time; gradients are computed
together with the losses, while these are in the cache.

Axis suffixes: ``n`` cells, ``g`` genes, ``h`` hidden units.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scvi_dist.kernels.problem import CountProblem, CountResult, Head

Evaluate: TypeAlias = Callable[[CountProblem, Tensor, frozenset[str]], CountResult]
"""``(problem, weight_n, wanted)``: losses, and the wanted derivatives of their sum with these
weights, 0-d float tensors never waited for. A cell of weight 0 has no part in a derivative."""

INPUTS = (
    "hidden_nh",
    "log_size_n",
    "log_theta_tg",
    "scale.weight",
    "scale.bias",
    "dropout.weight",
    "dropout.bias",
    "dispersion.weight",
    "dispersion.bias",
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the losses will be multiplied by: their gradients are computed for it beforehand."""

    n_real: int
    """Cells that count; those after them have no part in the objective."""
    weight: float
    """Derivative of the objective by the loss of each cell that counts."""

    def weights(self, like_n: Tensor) -> Tensor:
        """``[n]``, of the dtype and device of ``like_n``."""
        weight_n = torch.zeros_like(like_n)
        weight_n[: self.n_real] = self.weight
        return weight_n


def count_loss(problem: CountProblem, evaluate: Evaluate, expected: Expected) -> Tensor:
    """Minus the log-likelihood ``[n]`` of each cell, differentiable by all tensors of the problem.

    Any objective may be made of it. One that is not the expected sum is differentiated by
    evaluating everything again.
    """
    if not torch.is_grad_enabled():
        weight_n = expected.weights(problem.log_size_n)
        return evaluate(problem, weight_n, frozenset()).loss_n
    heads = (problem.scale, problem.dropout, problem.dispersion)
    tensors = [problem.hidden_nh, problem.log_size_n, problem.log_theta_tg]
    for head in heads:
        tensors += [None, None] if head is None else [head.weight_gh, head.bias_g]
    return _CountLoss.apply(problem, evaluate, expected, *tensors)


class _CountLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        problem: CountProblem,
        evaluate: Evaluate,
        expected: Expected,
        *tensors: Tensor | None,
    ) -> Tensor:
        wanted = frozenset(
            name for name, needs in zip(INPUTS, ctx.needs_input_grad[3:], strict=True) if needs
        )
        detached = _detached(problem, tensors)
        result = evaluate(detached, expected.weights(detached.log_size_n), wanted)
        ctx.save_for_backward(*tensors)
        ctx.problem, ctx.evaluate, ctx.expected, ctx.wanted = problem, evaluate, expected, wanted
        ctx.gradients = result.gradients
        return result.loss_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_n: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # They are given away: who asks twice gets them computed twice.
        gradients, ctx.gradients = ctx.gradients, None
        factor = _common_factor(slope_n, ctx.expected)
        if gradients is None or factor is None:
            detached = _detached(ctx.problem, ctx.saved_tensors)
            gradients = ctx.evaluate(detached, slope_n, ctx.wanted).gradients
        elif not factor.is_cpu or abs(float(factor) - 1.0) > torch.finfo(slope_n.dtype).eps:
            for gradient in gradients.values():
                gradient.mul_(factor)
        return (None, None, None, *(gradients.get(name) for name in INPUTS))


def _common_factor(slope_n: Tensor, expected: Expected) -> Tensor | None:
    """What all expected weights were multiplied by, 0-d; None where there is no such number."""
    n_real = expected.n_real
    if not n_real or expected.weight == 0.0:
        return None
    # The derivative of a sum is one number, seen from all places: nobody has to look at them,
    # and to wait for a device.
    is_one = n_real == len(slope_n) and slope_n.stride(0) == 0
    real_n, padding_n = slope_n[:n_real], slope_n[n_real:]
    if not is_one and (not bool((real_n == real_n[0]).all()) or bool(padding_n.any())):
        return None
    return slope_n[0] / expected.weight


def _detached(problem: CountProblem, tensors: tuple[Tensor | None, ...]) -> CountProblem:
    """The problem with these tensors, in the order of :data:`INPUTS`, without their graphs."""
    plain = [None if tensor is None else tensor.detach() for tensor in tensors]
    pairs = zip(plain[3::2], plain[4::2], strict=True)
    firsts = [
        0 if h is None else h.first for h in (problem.scale, problem.dropout, problem.dispersion)
    ]
    heads = [
        None if w is None or b is None else Head(w, b, first)
        for (w, b), first in zip(pairs, firsts, strict=True)
    ]
    assert heads[0] is not None
    return replace(
        problem,
        hidden_nh=plain[0],
        log_size_n=plain[1],
        log_theta_tg=plain[2],
        scale=heads[0],
        dropout=heads[1],
        dispersion=heads[2],
    )
