"""Which modules and minibatches the kernels take, and what a generative model gives of these.

Axis suffixes: ``n`` cells, ``k`` latent.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from scvi_dist.batch import CellBatch, SparseCounts
from scvi_dist.kernels.problem import LAWS
from scvi_dist.module.base import Tensors
from scvi_dist.nn.encoder import PosteriorNormal

RECONSTRUCTION_LOSS = "reconstruction_loss"
"""Key of generative outputs: minus the log-likelihood ``[n]``, where it is known already."""


def has_kernels(module: Any) -> bool:
    """Whether kernels compute this module's likelihood."""
    dtype = module.z_encoder.mean_encoder.weight.dtype
    return module.args.gene_likelihood in LAWS and dtype in (torch.float32, torch.float64)


def takes(tensors: Tensors, device: torch.device) -> TypeGuard[CellBatch]:
    """Whether kernels compute with this minibatch: sparse counts, in full precision."""
    if not isinstance(tensors, CellBatch) or not isinstance(tensors.x, SparseCounts):
        return False
    return not torch.is_autocast_enabled(device.type) and not torch.compiler.is_compiling()


class Generated(dict[str, Any]):
    """Generative outputs without some laws, each of which is computed for whoever asks for it."""

    def __init__(self, outputs: dict[str, Any], **laws: Callable[[], Any]) -> None:
        super().__init__(outputs)
        self._laws = laws

    def __missing__(self, key: str) -> Any:
        if key not in self._laws:
            raise KeyError(key)
        self[key] = self._laws[key]()
        return self[key]


def divergence(qz: Normal, pz: Callable[[], Normal]) -> Tensor:
    """Divergence ``[..., n]`` of ``qz`` from the standard normal prior, summed over ``k``."""
    if isinstance(qz, PosteriorNormal):
        return qz.divergence_n
    return kl_divergence(qz, pz()).sum(dim=-1)
