"""Importance sampling.

Axis suffixes: ``n`` cells, ``s`` samples.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scvi_dist.errors import ConfigError


def importance_estimate(
    log_weights: Callable[[int], Tensor], n_samples: int, n_per_pass: int
) -> Tensor:
    """Estimate ``[n]`` of ``log E[w]`` from draws of the log weight of each cell.

    Parameters
    ----------
    log_weights
        Gives ``s`` new draws ``[s, n]`` of the log weights when called with ``s``.
    n_samples
        Draws for each cell.
    n_per_pass
        Draws asked for at once.

    Source
    ------
    Burda, Grosse & Salakhutdinov 2016, "Importance weighted autoencoders", equation 8.
    """
    if min(n_samples, n_per_pass) < 1:
        raise ConfigError(
            "The number of Monte Carlo samples, in all and in a pass, is at least 1; it was "
            f"{n_samples} and {n_per_pass}."
        )
    passes, rest = divmod(n_samples, n_per_pass)
    sizes = [n_per_pass] * passes + [rest] * (rest > 0)
    drawn_sn = torch.cat([log_weights(size) for size in sizes])
    return torch.logsumexp(drawn_sn, dim=0) - math.log(n_samples)
