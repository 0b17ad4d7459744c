"""Adam for parameters of any layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import profiler
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from scvi_dist.kernels import threads

_not_here = itemgetter(
    "amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay"
)
"""Options of torch's that the compiled step has not."""
LEAST_OF_PART = 150_000
"""Numbers whose step takes some 0.1 ms: fewer are not worth a thread."""
_KIND = (torch.float32, True, torch.strided)
"""Type, whether on a CPU, and layout of what the compiled step takes."""


_AVERAGES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""What torch keeps of a parameter that has as many elements, in the order of its arguments."""


def _is_column_major(x: Tensor) -> bool:
    return x.dim() == 2 and x.t().is_contiguous()


def _laid_as(like: Tensor, x: Tensor) -> Tensor:
    """The same numbers, which lie in memory as those of another tensor do."""
    return torch.empty_like(like.detach()).copy_(x)


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, whose step is one pass over all parameters on a CPU.

    State and state dict are torch's. A step is the same for every element: matrices with
    contiguous columns are seen as their transposes, where torch's fused kernel would copy them
    back and forth. Asked for with ``fused=True``; torch makes the steps of what is not float32, of
    other options, and the first one.
    """

    # Neither is kept where an optimizer is copied or pickled.
    _tables: "Sequence[_Table]" = ()
    """One for each group, of the last step."""
    _held: Sequence[Any] = ()
    """What they were made for, held so that nothing else comes to lie there."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return (_watched_step if self._is_watched else Adam._step)(self, closure)

    # Torch then leaves it as it is: to look for hooks and profilers takes it 0.1 ms.
    step.hooked = True  # type: ignore[attr-defined]

    @property
    def _is_watched(self) -> bool:
        return bool(
            profiler._is_profiler_enabled
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
        )

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._may_move() and self._find_tables():
            for group, table in zip(self.param_groups, self._tables, strict=True):
                _move(group, table)
        else:
            # Torch's own, without the hooks that an optimizer of torch's has put around it.
            unwrap(torch.optim.Adam.step, stop=lambda f: not hasattr(f, "hooked"))(self)
        return loss

    def _may_move(self) -> bool:
        """Whether the compiled step has what is asked for."""
        return getattr(self, "grad_scale", None) is None and all(
            group["fused"] and not any(_not_here(group)) and not isinstance(group["lr"], Tensor)
            for group in self.param_groups
        )

    def _find_tables(self) -> bool:
        """Know where everything is; False where the compiled step cannot take it."""
        held: list[Any] = []
        for group in self.param_groups:
            held.append(group)
            held += [p for p in group["params"] if p.grad is not None]
        held += self.state
        held += chain.from_iterable(map(dict.values, self.state.values()))
        is_known = len(held) == len(self._held) and all(map(is_, held, self._held))
        if is_known and all(table.take_gradients() for table in self._tables):
            return True
        tables = [_Table.of(group["params"], self.state) for group in self.param_groups]
        found = [table for table in tables if table is not None and table.take_gradients()]
        is_whole = len(found) == len(tables)
        self._tables, self._held = (found, held) if is_whole else ((), ())
        return is_whole

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *others: Any
    ) -> bool:
        has_complex = super()._init_group(group, params, grads, *others)
        averages = {name: x for name, x in zip(_AVERAGES, others, strict=False) if x}
        for i, parameter in enumerate(params):
            # Torch's fused kernel takes elements in the order of memory. Files may have the means
            # row by row, whatever the parameter's layout.
            stride = parameter.stride()
            if grads[i].stride() != stride:
                grads[i] = _laid_as(parameter, grads[i])
            for name, values in averages.items():
                if values[i].stride() != stride:
                    values[i] = self.state[parameter][name] = _laid_as(parameter, values[i])
            if not parameter.is_contiguous() and _is_column_major(parameter):
                for values in (params, grads, *averages.values()):
                    values[i] = values[i].t()
        return has_complex


_watched_step = Optimizer.profile_hook_step(Adam._step)


@dataclass(frozen=True, slots=True)
class _Table:
    """Where the parameters of a group that have gradients are, and what belongs to them.

    All but the gradients stay there from one step to the next.
    """

    parameters: list[Tensor]
    addresses: list[int]
    """Of the parameters."""
    strides: list[tuple[int, ...]]
    rows: np.ndarray
    """What the compiled step takes."""
    n_elements: int

    @staticmethod
    def of(parameters: list[Tensor], states: dict[Tensor, dict[str, Tensor]]) -> "_Table | None":
        """None unless all are float32 on the CPU, with the same elements side by side."""
        parameters = [p for p in parameters if p.grad is not None]
        strides = [p.stride() for p in parameters]
        if not (_lie_alike(parameters, strides) and all(states.get(p) for p in parameters)):
            return None
        means, squares, counts = (
            [states[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        if not (_lie_alike(means, strides) and _lie_alike(squares, strides)):
            return None
        if not all(p.is_contiguous() or _is_column_major(p) for p in parameters):
            return None
        addresses = [p.data_ptr() for p in parameters]
        rows = np.zeros((len(parameters), 6), dtype=np.int64)
        rows[:, 0] = addresses
        for column, tensors in enumerate((means, squares, counts), start=2):
            rows[:, column] = [x.data_ptr() for x in tensors]
        rows[:, 5] = [p.numel() for p in parameters]
        return _Table(parameters, addresses, strides, rows, int(rows[:, 5].sum()))

    def take_gradients(self) -> bool:
        """Note where they are; False where they lie otherwise, or the parameters have moved."""
        gradients: list[Any] = [p.grad for p in self.parameters]
        if not _lie_alike(gradients, self.strides):
            return False
        self.rows[:, 1] = [gradient.data_ptr() for gradient in gradients]
        return [p.data_ptr() for p in self.parameters] == self.addresses


def _lie_alike(tensors: list[Tensor], strides: list[tuple[int, ...]]) -> bool:
    """Whether all are float32 on the CPU, and lie like that in memory."""
    kinds = [(x.dtype, x.is_cpu, x.layout) for x in tensors]
    return kinds.count(_KIND) == len(kinds) and [x.stride() for x in tensors] == strides


def _move(group: dict[str, Any], table: _Table) -> None:
    # numba takes long to load, and not every process trains.
    from scvi_dist.kernels.adam_rows import Rates, adam_rows, count_steps

    n = threads.n_parts(table.n_elements, LEAST_OF_PART)
    beta, beta_square = group["betas"]
    numbers = group["lr"], beta, beta_square, group["eps"], group["weight_decay"]
    rates = Rates(*map(float, numbers))
    threads.run([partial(adam_rows, table.rows, k, n, rates) for k in range(n)])
    count_steps(table.rows)
    torch.autograd.graph.increment_version(table.parameters)
