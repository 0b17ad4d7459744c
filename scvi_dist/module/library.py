"""The size of a cell: observed, or latent with a prior for each batch.

Axis suffixes: ``n`` cells, ``g`` genes, ``b`` batches.
"""

import torch
from torch import Tensor

from scvi_dist.batch import SparseCounts
from scvi_dist.distributions import Normal
from scvi_dist.kernels.choice import kernel_for


def observed_library(x_ng: Tensor | SparseCounts) -> Tensor:
    """Logarithm of each cell's sum of counts, ``[n, 1]``; minus infinity for an empty cell."""
    if isinstance(x_ng, SparseCounts):
        return kernel_for(x_ng.data.device).row_sums(x_ng).log().unsqueeze(1)
    return torch.log(x_ng.sum(1)).unsqueeze(1)


def library_prior(log_means_1b: Tensor, log_vars_1b: Tensor, batch_index: Tensor) -> Normal:
    """Prior ``[n, 1]`` of the log library size of cells with batch codes ``[n, 1]``.

    Source
    ------
    Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", methods.
    """
    mean = log_means_1b[0, batch_index]
    return Normal(mean, log_vars_1b[0, batch_index].sqrt())


def latent_prior(z: Tensor) -> Normal:
    """The standard normal law, of the shape of ``z``."""
    return Normal(torch.zeros_like(z), torch.ones_like(z))
