"""Proportions of some genes, without those of the others in memory.

Axis suffixes: ``n`` cells, ``g`` genes, ``k`` the genes that are asked for, ``h`` hidden units.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scvi_dist.kernels.problem import Head

BLOCK_ENTRIES = 4_000_000
"""Logits in memory."""


def log_totals(hidden_nh: Tensor, head: Head) -> Tensor:
    """Logarithm ``[n, 1]`` of what the exponentials of all logits of a cell sum to."""
    rows = max(1, BLOCK_ENTRIES // max(len(head.bias_g), 1))
    parts = [torch.logsumexp(head.logits(part), -1) for part in hidden_nh.split(rows)]
    return torch.cat(parts).unsqueeze(-1)


def scales_of(hidden_nh: Tensor, head: Head, activation: str, genes_k: Tensor) -> Tensor:
    """Scales ``[n, k]`` of some genes: proportions of the cell for a softmax."""
    asked = Head(head.weight_gh[genes_k], head.bias_g[genes_k])
    logits_nk = asked.logits(hidden_nh)
    if activation == "softplus":
        return F.softplus(logits_nk)
    return torch.exp(logits_nk - log_totals(hidden_nh, head))
