"""Adam for parameters of any layout."""

from typing import Any

import torch
from torch import Tensor


def _is_column_major(x: Tensor) -> bool:
    return x.dim() == 2 and x.t().is_contiguous()


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, whose fused kernel copies what is not contiguous, back and forth.

    A step is the same for every element: matrices with contiguous columns are seen as their
    transposes here. State and state dict are torch's.
    """

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *others: Any
    ) -> bool:
        has_complex = super()._init_group(group, params, grads, *others)
        averages = [moments for moments in others[:2] if len(moments) == len(params)]
        lists = [params, grads, *averages]
        for i, parameter in enumerate(params):
            if parameter.is_contiguous():
                continue
            if all(_is_column_major(values[i]) for values in lists):
                for values in lists:
                    values[i] = values[i].t()
        return has_complex
