"""What a model has after its training went wrong: weights from before."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from scvi_dist.batch import CellBatch
from scvi_dist.errors import TrainingFailed
from scvi_dist.train.diagnosis import all_finite

EVERY_S = 5.0
"""Between two copies of the weights."""


class KeepGoodWeights(Callback):
    """Brings back the weights of the last good step when the loss is no number any more.

    Comes after the callback that looks at the loss: what that has passed is copied to the CPU, a
    few seconds apart, so that steps do not become slower.

    Parameters
    ----------
    every
        Steps between two looks at the loss.
    every_s
        Seconds between two copies.
    """

    def __init__(
        self,
        module: nn.Module,
        every: int,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._module, self._every, self._every_s, self._clock = module, every, every_s, clock
        self._step = 0
        self._weights: dict[str, Tensor] = {}
        self._copied_s = -every_s

    def on_train_start(self, trainer: pl.Trainer, plan: Any) -> None:
        self._copy(plan.cursor.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, plan: Any, outputs: Any, batch: CellBatch, batch_idx: int
    ) -> None:
        step = plan.cursor.global_step
        if step % self._every == 0 and self._clock() - self._copied_s >= self._every_s:
            self._copy(step)

    def on_exception(self, trainer: pl.Trainer, plan: Any, exception: BaseException) -> None:
        if isinstance(exception, TrainingFailed) and self._weights:
            self._module.load_state_dict(self._weights)
            exception.add_note(f"The model has the weights of step {self._step}.")

    def _copy(self, step: int) -> None:
        state = self._module.state_dict()
        # A finite loss may have had an infinite gradient: the weights are broken, the loss is not.
        if all_finite(state.values()):
            self._weights = {name: value.detach().cpu().clone() for name, value in state.items()}
            self._step, self._copied_s = step, self._clock()
