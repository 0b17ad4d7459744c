"""What a model has after its training went wrong: weights from before."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from scvi_dist.batch import CellBatch
from scvi_dist.errors import TrainingFailed
from scvi_dist.train.diagnosis import all_finite

SHARE = 0.01
"""Of the time, at most, is spent on copies of the weights."""


class KeepGoodWeights(Callback):
    """Brings back the weights of the last good step when the loss is no number any more.

    Comes after the callback that looks at the loss: what that has passed is copied to the CPU, not
    every time where copies take long. Two copies take turns, so that a step that ends in the middle
    of one leaves the other as it was.

    Parameters
    ----------
    every
        Steps between two looks at the loss.
    share
        Of the time that copies may take.
    """

    def __init__(
        self,
        module: nn.Module,
        every: int,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._module, self._every, self._share, self._clock = module, every, share, clock
        self._step = 0
        self._weights: dict[str, Tensor] = {}
        self._spare: dict[str, Tensor] = {}
        self._next_s = 0.0

    def on_train_start(self, trainer: pl.Trainer, plan: Any) -> None:
        self._copy(plan.cursor.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, plan: Any, outputs: Any, batch: CellBatch, batch_idx: int
    ) -> None:
        step = plan.cursor.global_step
        if step % self._every == 0 and self._clock() >= self._next_s:
            self._copy(step)

    def on_exception(self, trainer: pl.Trainer, plan: Any, exception: BaseException) -> None:
        if isinstance(exception, TrainingFailed) and self._weights:
            self._module.load_state_dict(self._weights)
            exception.add_note(f"The model has the weights of step {self._step}.")

    def _copy(self, step: int) -> None:
        began_s = self._clock()
        state = self._module.state_dict()
        # A finite loss may have had an infinite gradient: the weights are broken, the loss is not.
        if all_finite(state.values()):
            spare = self._spare
            copies = {name: _copied(value, spare.get(name)) for name, value in state.items()}
            self._weights, self._spare, self._step = copies, self._weights, step
        ended_s = self._clock()
        self._next_s = ended_s + (ended_s - began_s) / self._share


def _copied(value: Tensor, place: Tensor | None) -> Tensor:
    """A copy on the CPU, in memory that there is already if it fits."""
    if place is None or (place.shape, place.dtype) != (value.shape, value.dtype):
        # New memory costs as much as the copy: the system clears each page of it.
        place = torch.empty_like(value, device="cpu")
    return place.copy_(value)
