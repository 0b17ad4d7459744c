"""Adam for parameters of any layout."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvi_dist.kernels import threads

_NOT_HERE = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
"""Options of torch's that the compiled step has not."""
LEAST_OF_PART = 150_000
"""Numbers whose step takes some 0.1 ms: fewer are not worth a thread."""
_AVERAGES = ("exp_avg", "exp_avg_sq", "step")


def _is_column_major(x: Tensor) -> bool:
    return x.dim() == 2 and x.t().is_contiguous()


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, whose step is one pass over all parameters on a CPU.

    State and state dict are torch's. A step is the same for every element: matrices with
    contiguous columns are seen as their transposes, where torch's fused kernel would copy them
    back and forth. Asked for with ``fused=True``; torch makes the steps of what is not float32, of
    other options, and the first one.
    """

    @cached_property
    def _places(self) -> "dict[int, _Place]":
        """By the identity of the parameter. Not kept where an optimizer is copied or pickled."""
        return {}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tables = [self._table(group) for group in self.param_groups]
        known = [table for table in tables if table is not None]
        if len(known) < len(tables):
            super().step()
            return loss
        for group, table in zip(self.param_groups, known, strict=True):
            _step(group, table)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Files may have the means row by row, whatever the parameter's layout.
        for parameter, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state and state[name].stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter.detach()).copy_(state[name])

    def _table(self, group: dict[str, Any]) -> np.ndarray | None:
        """The addresses that the compiled step takes; None where it is not for this group."""
        if not group["fused"] or any(group[name] for name in _NOT_HERE):
            return None
        if isinstance(group["lr"], Tensor) or getattr(self, "grad_scale", None) is not None:
            return None
        rows: list[tuple[int, ...]] = []
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            place = self._place(parameter)
            if place is None or not _is_like(gradient, place.stride):
                return None
            rows.append((place.address, gradient.data_ptr(), *place.moments, place.size))
        return np.array(rows, dtype=np.int64).reshape(-1, 6)

    def _place(self, parameter: Tensor) -> "_Place | None":
        """Where a parameter and its state are; None where the compiled step cannot take them."""
        state = self.state.get(parameter)
        place = self._places.get(id(parameter))
        if place is None or not place.is_of(parameter, state):
            place = _Place.of(parameter, state) if state else None
            if place is not None:
                self._places[id(parameter)] = place
        return place

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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter and its moments are: they stay there from one step to the next."""

    averages: tuple[Tensor, ...]
    """Mean, square and number of steps; held, so that nothing else comes to lie there."""
    address: int
    moments: tuple[int, int, int]
    """Addresses of the averages."""
    size: int
    stride: tuple[int, ...]

    @staticmethod
    def of(parameter: Tensor, state: dict[str, Tensor]) -> "_Place | None":
        """None unless all are float32 on the CPU, with the same elements side by side."""
        stride, averages = parameter.stride(), tuple(state[name] for name in _AVERAGES)
        if not all(_is_like(x, stride) for x in (parameter, *averages[:2])):
            return None
        if not (parameter.is_contiguous() or _is_column_major(parameter)):
            return None
        mean, square, step = (x.data_ptr() for x in averages)
        rest = (mean, square, step), parameter.numel(), stride
        return _Place(averages, parameter.data_ptr(), *rest)

    def is_of(self, parameter: Tensor, state: dict[str, Tensor] | None) -> bool:
        """Whether they still are there."""
        if state is None or parameter.data_ptr() != self.address:
            return False
        # Asked for each parameter in each step: a loop would take three times as long.
        mean, square, count = self.averages
        return (
            state.get("exp_avg") is mean
            and state.get("exp_avg_sq") is square
            and state.get("step") is count
        )


def _is_like(x: Tensor, stride: tuple[int, ...]) -> bool:
    """Whether it is float32 on the CPU, and lies like that in memory."""
    return x.dtype == torch.float32 and x.is_cpu and not x.is_sparse and x.stride() == stride


def _step(group: dict[str, Any], table: np.ndarray) -> None:
    # numba takes long to load, and not every process trains.
    from scvi_dist.kernels.adam_rows import Rates, adam_rows, count_steps

    n = threads.n_parts(int(table[:, 5].sum()), LEAST_OF_PART)
    beta, beta_square = group["betas"]
    numbers = group["lr"], beta, beta_square, group["eps"], group["weight_decay"]
    rates = Rates(*map(float, numbers))
    threads.run([partial(adam_rows, table, k, n, rates) for k in range(n)])
    count_steps(table)
    torch.autograd.graph.increment_version([p for p in group["params"] if p.grad is not None])
