"""Posteriors that were computed before, and take the place of encoding the counts again.

Axis suffixes: ``n`` cells, ``k`` latent.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.distributions import Normal
from scvi_dist.module.base import Tensors


@dataclass(frozen=True, slots=True)
class CachedPosterior:
    """What an encoder has said of cells whose counts need not be there any more."""

    qz: Normal
    """Of ``[n, k]``."""
    log_library: Tensor
    """Logarithm of the observed library size ``[n, 1]``."""

    @staticmethod
    def of(tensors: Tensors) -> "CachedPosterior | None":
        """That of a minibatch of minified data; None of one with counts."""
        mean = tensors.get(REGISTRY_KEYS.LATENT_QZM_KEY)
        if mean is None:
            return None
        variance = tensors[REGISTRY_KEYS.LATENT_QZV_KEY]
        library = tensors[REGISTRY_KEYS.OBSERVED_LIB_SIZE]
        return CachedPosterior(Normal(mean, torch.sqrt(variance)), torch.log(library))
