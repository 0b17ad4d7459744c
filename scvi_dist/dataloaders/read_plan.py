"""The read plan: which rank reads which rows when, and how they are cut into minibatches.

Pure: no I/O, no Ray, no torch. The order of an epoch is divided into *windows* of about the same
number of global minibatches. A window ``S`` of ``nb`` minibatches is laid out as a table with a
row for each item of a minibatch and a column for each minibatch::

    item i of minibatch j  =  S[i * nb + j]

so that every minibatch takes cells from all over the window, while a rank, which takes a
contiguous share of the items of *every* minibatch, needs one contiguous stretch of ``S``: it
reads its share of the window's blocks only, and the order of cells does not depend on the number
of ranks. All minibatches have the full size but those of the last window, which are as equal as
possible: no epoch ends with a tiny one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from scvi_dist.dataloaders.budget import resident_bytes
from scvi_dist.dataloaders.read_task import BatchCut, ReadTask, ranges_of
from scvi_dist.dataloaders.rows import RowsByEpoch, RowSet, rows_of_epoch
from scvi_dist.dataloaders.shuffle import Order, SequentialOrder, ShuffledOrder
from scvi_dist.errors import PlanError

__all__ = ["BatchCut", "PlanConfig", "ReadPlan", "ReadTask"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """How the members of a row set become minibatches."""

    batch_size: int
    """Cells of a global minibatch, over all ranks."""
    window_cells: int = 32_768
    """Cells that are shuffled together, over all ranks; rounded down to whole minibatches."""
    block_rows: int = 64
    """Consecutive rows of the store that stay together on their way into a window."""
    shuffle: bool = True
    """Otherwise rows come ascending, and minibatches are consecutive cells."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "window_cells", "block_rows"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} must be at least 1, seen {getattr(self, name)}.")
        if self.seed < 0:
            raise PlanError(f"seed must not be negative, seen {self.seed}.")


class ReadPlan:
    """Every member of ``rows`` exactly once an epoch, in minibatches, over any number of ranks.

    Lazy: nothing is spelled out but the task that is asked for, so a plan over a billion cells
    takes a few bytes per block. Picklable; safe to use from several threads.
    """

    def __init__(self, rows: RowSet, config: PlanConfig) -> None:
        if config.shuffle and config.block_rows % rows.stratum:
            raise PlanError(
                f"block_rows must be a multiple of {rows.stratum} for {rows.describe()}, "
                f"seen {config.block_rows}."
            )
        self.rows = rows
        self.config = config
        self._n_steps = -(-rows.n // config.batch_size)
        # Windows of equal length rather than full ones and a rest: a rest might mix few blocks.
        self._n_windows = -(-self._n_steps // max(1, config.window_cells // config.batch_size))
        self._last_first = self.first_step_of(self._n_windows - 1) if rows.n else 0
        self._last_cells = rows.n - self._last_first * config.batch_size
        self._lock = Lock()
        self._order: tuple[int, Order] | None = None

    def __reduce__(self) -> tuple[type["ReadPlan"], tuple[RowSet, PlanConfig]]:
        return ReadPlan, (self.rows, self.config)

    @property
    def n_cells(self) -> int:
        """Cells of an epoch."""
        return self.rows.n

    @property
    def n_windows(self) -> int:
        """Windows of an epoch, and tasks of each rank."""
        return self._n_windows

    @property
    def n_steps(self) -> int:
        """Global minibatches of an epoch, and steps of every rank."""
        return self._n_steps

    def n_padding(self, world: int) -> int:
        """Cells that ranks hold in an epoch only to have one: they carry no loss."""
        if not self.n_cells:
            return 0
        n_last, cells = self._shape(self._n_windows - 1)
        size, extra = divmod(cells, n_last)
        full = self._last_first * max(0, world - self.config.batch_size)
        longer = extra * max(0, world - size - 1)
        return full + longer + (n_last - extra) * max(0, world - size)

    def cells_per_task(self, world: int) -> int:
        """Most cells that a rank's task holds."""
        widest = -(-min(self.config.batch_size, self.n_cells) // world)
        longest = -(-self._n_steps // self._n_windows) if self._n_windows else 0
        return longest * widest

    def memory_bytes(self, bytes_per_cell: float, world: int, scratch_bytes: int = 0) -> int:
        """Most bytes of cells and plan that a rank's reader holds at once.

        Copies made by the trainer are not in it; for ``scratch_bytes`` see ``budget.py``.
        """
        per_step = min(-(-self.config.batch_size // world), self.n_cells)
        cells = self.cells_per_task(world)
        blocks = -(-self.rows.n_store // self.config.block_rows) if self.config.shuffle else 0
        return resident_bytes(cells, per_step, bytes_per_cell, scratch_bytes) + 4 * blocks

    def batch_size_of(self, step: int) -> int:
        """Cells of a global minibatch."""
        return self.position_of(step + 1) - self.position_of(step)

    def position_of(self, step: int) -> int:
        """Cells of the epoch before a global minibatch; ``step`` may be ``n_steps``."""
        if not 0 <= step <= self.n_steps:
            raise PlanError(f"step {step} does not exist: an epoch has {self.n_steps} steps.")
        column = step - self._last_first
        if column <= 0:
            return step * self.config.batch_size
        size, extra = divmod(self._last_cells, self._n_steps - self._last_first)
        return self._last_first * self.config.batch_size + column * size + min(column, extra)

    def step_of(self, position: int) -> int:
        """The global minibatch that starts at a position.

        Raises
        ------
        PlanError
            If the position is not the boundary of a minibatch.
        """
        step = self._last_step_before(position)
        if not 0 <= position <= self.n_cells or self.position_of(step) != position:
            raise PlanError(
                f"position {position} is not the start of a minibatch (global batch size "
                f"{self.config.batch_size}, {self.n_cells} cells); the nearest before it is "
                f"{self.position_of(step)}. Was the cursor saved with another plan?"
            )
        return step

    def first_step_of(self, window: int) -> int:
        """The first global minibatch of a window; ``window`` may be ``n_windows``."""
        return window * self._n_steps // self._n_windows

    def tasks(self, epoch: int, rank: int, world: int, position: int = 0) -> Iterator[ReadTask]:
        """A rank's tasks of an epoch from a position (in global cells) on, in order."""
        for window, first in self.windows(position):
            yield self.task(epoch, rank, world, window, first)

    def windows(self, position: int = 0) -> Iterator[tuple[int, int]]:
        """Arguments ``window, first`` of :meth:`task` from a position on, in order."""
        step = self.step_of(position)
        if step < self._n_steps:
            window = ((step + 1) * self._n_windows - 1) // self._n_steps
            yield window, step - self.first_step_of(window)
            yield from ((later, 0) for later in range(window + 1, self._n_windows))

    def task(self, epoch: int, rank: int, world: int, window: int, first: int = 0) -> ReadTask:
        """A rank's share of a window, from the window's minibatch ``first`` on."""
        _check_world(rank, world)
        n_steps, cells = self._shape(window)
        column = np.arange(first, n_steps)
        size, extra = divmod(cells, n_steps)
        sizes = size + (column < extra)
        low, high = rank * sizes // world, (rank + 1) * sizes // world
        # A rank without a cell of its own holds the next rank's first.
        counts = np.maximum(high - low, 1)
        ends = np.cumsum(counts)
        item = np.arange(ends[-1]) - np.repeat(ends - counts - low, counts)
        if self.config.shuffle:
            place = item * n_steps + np.repeat(column, counts)
        else:
            place = item + np.repeat(column * size + np.minimum(column, extra), counts)
        origin = self.first_step_of(window) * self.config.batch_size
        base = int(place.min())
        found = self._order_of(epoch).slice(origin + base, origin + int(place.max()) + 1)
        rows, pick = np.unique(found[place - base], return_inverse=True)
        picks = np.split(pick.astype(np.int32), ends[:-1])
        offset = column * size + np.minimum(column, extra)
        cuts = tuple(
            BatchCut(
                step=self.first_step_of(window) + int(column[k]),
                position=origin + int(offset[k]),
                start=int(low[k]),
                n_global=int(sizes[k]),
                pick=picks[k],
                n_padding=int(high[k] == low[k]),
                loss_scale=float((high[k] - low[k]) * world / sizes[k]),
            )
            for k in range(len(column))
        )
        return ReadTask(epoch, window, rank, ranges_of(rows), rows, cuts)

    def facts(self) -> dict[str, Any]:
        """What a position in this plan's order depends on; JSON values, no world size."""
        config = self.config
        return {
            "n_cells": self.n_cells,
            "n_store": self.rows.n_store,
            "rows": self.rows.digest(),
            "batch_size": config.batch_size,
            "n_windows": self._n_windows,
            "block_rows": config.block_rows if config.shuffle else None,
            "shuffle": config.shuffle,
            "seed": config.seed if config.shuffle else None,
        }

    def describe(self, world: int = 1) -> str:
        """The plan in a sentence."""
        padding = self.n_padding(world)
        shuffled = (
            f"shuffled in {self._n_windows:,} windows from blocks of "
            f"{self.config.block_rows} rows (seed {self.config.seed})"
            if self.config.shuffle
            else "in the order of the store"
        )
        return (
            f"{self.rows.describe()}: {self.n_steps:,} steps of up to {self.config.batch_size} "
            f"cells on each of {world} rank{'s' if world > 1 else ''}, {shuffled}; "
            f"{f'{padding:,} cells of padding' if padding else 'nothing padded or dropped'}."
        )

    def _shape(self, window: int) -> tuple[int, int]:
        """Minibatches and cells of a window."""
        if not 0 <= window < self._n_windows:
            raise PlanError(f"window {window} does not exist: an epoch has {self._n_windows}.")
        n_steps = self.first_step_of(window + 1) - self.first_step_of(window)
        is_last = window == self._n_windows - 1
        return n_steps, self._last_cells if is_last else n_steps * self.config.batch_size

    def _last_step_before(self, position: int) -> int:
        full = self._last_first * self.config.batch_size
        if position < full or not self.n_cells:
            return max(0, position // self.config.batch_size) if self.n_cells else 0
        n_last = self._n_steps - self._last_first
        size, extra = divmod(self._last_cells, n_last)
        inside = position - full
        longer = extra * (size + 1)
        column = inside // (size + 1) if inside < longer else extra + (inside - longer) // size
        return self._last_first + min(column, n_last)

    def _order_of(self, epoch: int) -> Order:
        """The epoch's order; the last one is kept."""
        key = epoch if self.config.shuffle or isinstance(self.rows, RowsByEpoch) else 0
        with self._lock:
            if self._order is None or self._order[0] != key:
                # The old one goes first: at a billion cells two would be felt.
                self._order = None
                self._order = key, self._new_order(epoch)
            return self._order[1]

    def _new_order(self, epoch: int) -> Order:
        rows = rows_of_epoch(self.rows, epoch)
        if not self.config.shuffle:
            return SequentialOrder(rows)
        return ShuffledOrder(rows, self.config.block_rows, self.config.seed, epoch)


def _check_world(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise PlanError(f"rank {rank} does not exist in a world of {world}.")
