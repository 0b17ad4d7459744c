"""Whether somebody looks at what modules compute: then it has to be computed by them."""

from collections.abc import Iterable

import torch
from torch import nn


def is_watched(modules: Iterable[nn.Module]) -> bool:
    """Whether a hook waits for what one of these is given or gives, or for derivatives by it."""
    return torch.nn.modules.module._has_any_global_hook() or any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in modules
    )
