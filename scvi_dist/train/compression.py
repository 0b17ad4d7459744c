"""Gradients in fewer bytes on their way between ranks."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor


def halve(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean of a bucket over all ranks, sent as bfloat16.

    torch has such a hook, for NCCL only.
    """
    # Divided first: a sum over many ranks would lose more digits.
    sent = bucket.buffer().to(torch.bfloat16).div_(dist.get_world_size())
    arriving = dist.all_reduce(sent, async_op=True).get_future()
    return arriving.then(lambda arrived: bucket.buffer().copy_(arrived.value()[0]))


HOOKS: dict[str, Callable[..., Any]] = {"bf16": halve}
"""Name -> what is done with each bucket of gradients."""


class CompressGradients(Callback):
    """Lets the ranks exchange gradients in another format.

    Lightning registers such hooks on GPUs only.
    """

    def __init__(self, name: str) -> None:
        self._hook = HOOKS[name]

    def on_train_start(self, trainer: pl.Trainer, plan: Any) -> None:
        model: Any = trainer.strategy.model
        model.register_comm_hook(state=None, hook=self._hook)
