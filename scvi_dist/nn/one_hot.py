"""One-hot encodings of category codes."""

from typing import Any

import torch
from torch import Tensor


def one_hot(codes: Tensor, n_categories: int, dtype: Any = torch.float32) -> Tensor:
    """Indicator matrix ``[n, n_categories]`` of integer codes ``[n, 1]`` or ``[n]``."""
    column = codes.reshape(-1, 1).long()
    encoded = torch.zeros(column.shape[0], n_categories, dtype=dtype, device=codes.device)
    return encoded.scatter_(1, column, 1)
