"""Which cells made a loss that is no number, in words."""

from collections import deque
from collections.abc import Iterable
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from scvi_dist.batch import CellBatch, SparseCounts

Look = tuple[int, np.ndarray, Tensor, list[Tensor]]
"""Step, rows of its cells, its loss, the parts of the loss of each cell."""

SHOWN = 10
HUGE = 1e10
"""No weight of a model that learns is as large."""


def failure_message(step: int, epoch: int, rank: int, cells: str, where: str) -> str:
    """What to tell when training cannot go on."""
    return (
        f"The loss is not a finite number at step {step} (epoch {epoch}, rank {rank}): {cells} of "
        f"{where}. Look at the counts of these cells for negative, missing or enormous values; if "
        "they are sound, lower plan.lr or set train.gradient_clip_val. Checkpoints from before "
        "this step are untouched."
    )


class LossWindow:
    """Losses of the last steps of this rank; they stay on the device until asked about.

    Parameters
    ----------
    n_steps
        Steps that are remembered.
    """

    def __init__(self, n_steps: int) -> None:
        self._looks: deque[Look] = deque(maxlen=n_steps)
        self._last_rows: np.ndarray | None = None

    def add(self, step: int, rows: np.ndarray, loss: Tensor, parts: list[Tensor]) -> None:
        """Remember a step.

        Parameters
        ----------
        rows
            Of its cells that count.
        loss
            0-d, without a graph.
        parts
            Of the loss of each of these cells, ``[n]`` or one number for all, without a graph.
        """
        self._looks.append((step, rows, loss, parts))

    def clear(self) -> None:
        """Forget the losses: all of them were finite."""
        if self._looks:
            self._last_rows = self._looks[-1][1]
        self._looks.clear()

    @property
    def last_cells(self) -> str:
        """The cells of the last step that was remembered or forgotten, in words."""
        rows = self._looks[-1][1] if self._looks else self._last_rows
        return "cells that are not remembered" if rows is None else list_rows(rows)

    def first_bad(self) -> tuple[int, str] | None:
        """The first step whose loss is not finite, and its cells in words."""
        previous = self._last_rows
        for step, rows, loss, parts in self._looks:
            if not torch.isfinite(loss):
                cell_losses_n = reduce(torch.add, [part.reshape(-1) for part in parts])
                return step, _describe_losses(rows, cell_losses_n, previous)
            previous = rows
        return None


def _describe_losses(rows: np.ndarray, losses: Tensor, previous: np.ndarray | None) -> str:
    finite = torch.isfinite(losses).cpu().numpy()
    if finite.any() and not finite.all():
        bad = rows[~finite]
        return f"the loss of {list_rows(bad)} is not finite, in a batch of {len(rows)} cells"
    if previous is None:
        return f"no single cell stands out among {list_rows(rows)}"
    # A finite loss with an infinite gradient spoils the weights one step earlier.
    return (
        f"no single cell stands out among {list_rows(rows)}; the step before may have broken the "
        f"weights, with {list_rows(previous)}"
    )


def describe_batch(batch: CellBatch, module: nn.Module) -> str:
    """Why a batch gives no loss at all: broken weights, or cells to look at."""
    rows = batch.rows[: batch.n_real]
    largest_weight = max(float(p.detach().abs().max()) for p in module.parameters())
    if not largest_weight < HUGE:  # NaN is not less than anything
        return (
            f"the steps before have broken the weights (the largest is {largest_weight:.3g}); "
            f"this one saw {list_rows(rows)}"
        )
    totals_n = _totals(batch)[: batch.n_real]
    order = np.argsort(-np.nan_to_num(totals_n, nan=np.inf))[:3]
    largest = ", ".join(f"{totals_n[i]:.3g} in row {rows[i]}" for i in order)
    return f"the model gave no finite numbers for {list_rows(rows)}; largest totals: {largest};"


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all entries of all tensors are finite."""
    return all(_is_finite(tensor) for tensor in tensors)


def _is_finite(tensor: Tensor) -> bool:
    # What is not finite makes the sum so, which takes a fraction of the time. It may overflow.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def list_rows(rows: np.ndarray) -> str:
    """``row 3`` or ``rows 3, 7, …``."""
    shown = ", ".join(str(row) for row in rows[:SHOWN])
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', …' if len(rows) > SHOWN else ''}"


def _totals(batch: CellBatch) -> np.ndarray:
    """Sum of each cell's counts, ``[n]``."""
    x_ng = batch.x.to_dense() if isinstance(batch.x, SparseCounts) else batch.x
    return x_ng.double().sum(1).cpu().numpy()
