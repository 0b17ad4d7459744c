"""Where reduced precision ends."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """``x`` as float32 where autocast had made it bfloat16 or float16.

    Logits and log-variances are exponentiated: their eight bits would become percents of a rate.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
