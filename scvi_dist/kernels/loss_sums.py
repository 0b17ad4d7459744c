"""The sums of a loss that is made of two terms of each cell. For CPUs.

Axis suffixes: ``n`` cells.
"""

import numpy as np
import torch
from torch import Tensor

from scvi_dist.kernels.compiled import SUMS, compiled


@compiled(SUMS)
def _fill_sums(first_n: np.ndarray, second_n: np.ndarray, weight: float, sums: np.ndarray) -> None:
    first, second, n = 0.0, 0.0, first_n.size
    for i in range(n):
        first += first_n[i]
        second += second_n[i]
    total = first + weight * second
    sums[0], sums[1], sums[2], sums[3], sums[4] = total / max(n, 1), total, first, second, 0.0


def loss_sums(first_n: Tensor, second_n: Tensor, weight: float) -> Tensor:
    """``[5]``: the mean of the first terms and the weighted second ones, sums of both and each, 0.

    Of no cells all are 0. Summed in float64.
    """
    sums = np.empty(5, first_n.numpy().dtype)
    _fill_sums(first_n.numpy(), second_n.numpy(), weight, sums)
    return torch.from_numpy(sums)
