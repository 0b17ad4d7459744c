"""A step of Adam over all parameters by one compiled loop. For CPUs."""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from scvi_dist.kernels.compiled import compiled, part


class Rates(NamedTuple):
    """What a step depends on, in float64."""

    lr: float
    beta: float
    """What the mean of the gradients keeps of itself, and ..."""
    beta_square: float
    """... what that of their squares keeps."""
    eps: float
    weight_decay: float


@intrinsic
def _at(typing_context: Any, address: Any) -> Any:
    """The pointer that an integer is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@part()
def _update(
    x: np.ndarray,
    gradient: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    numbers: tuple[Any, ...],
) -> None:
    size, spread, eps, decay, slow, slow_square, fast_square = numbers
    for i in range(x.size):
        slope = gradient[i] + decay * x[i]
        m = mean[i] + slow * (slope - mean[i])
        v = fast_square * square[i] + slow_square * (slope * slope)
        mean[i] = m
        square[i] = v
        x[i] -= size * (m / (np.sqrt(v) * spread + eps))


@compiled()
def adam_rows(table: np.ndarray, thread: int, n_threads: int, rates: Rates) -> None:
    """Move the parameters, which are float32; :func:`count_steps` comes after it.

    Parameters
    ----------
    table
        int64 ``[parameters, 6]``: addresses of a parameter, of its gradient, of the means of this
        and of its square and of the number of its steps; then the number of elements, which are in
        one order and side by side.
    thread, n_threads
        Which part of each parameter.

    Source
    ------
    Kingma & Ba 2015, "Adam: a method for stochastic optimization", algorithm 1.
    """
    real = np.float32
    for k in range(table.shape[0]):
        n = table[k, 5]
        first, last = n * thread // n_threads, n * (thread + 1) // n_threads
        t = float(carray(_at(table[k, 4]), 1, real)[0]) + 1.0
        numbers = (
            real(rates.lr / (1.0 - rates.beta**t)),
            real(1.0 / np.sqrt(1.0 - rates.beta_square**t)),
            real(rates.eps),
            real(rates.weight_decay),
            real(1.0 - rates.beta),
            real(1.0 - rates.beta_square),
            real(rates.beta_square),
        )
        _update(
            carray(_at(table[k, 0]), n, real)[first:last],
            carray(_at(table[k, 1]), n, real)[first:last],
            carray(_at(table[k, 2]), n, real)[first:last],
            carray(_at(table[k, 3]), n, real)[first:last],
            numbers,
        )


@compiled()
def count_steps(table: np.ndarray) -> None:
    """Add one to the number of steps of each parameter."""
    for k in range(table.shape[0]):
        steps = carray(_at(table[k, 4]), 1, np.float32)
        steps[0] += 1.0
