"""What a plan hands to a reader: rows to read, and how to cut them into minibatches."""

from dataclasses import dataclass

import numpy as np

Range = tuple[int, int]
"""Rows ``start … stop - 1``."""


@dataclass(frozen=True, slots=True)
class BatchCut:
    """One rank's cells of one global minibatch, as indices into the rows of a task."""

    step: int
    """Index of the global minibatch in its epoch."""
    position: int
    """Cells of the epoch before this global minibatch."""
    start: int
    """This rank's cells are items ``start … start + len(pick)`` of the global minibatch."""
    n_global: int
    """Cells of the global minibatch."""
    pick: np.ndarray
    """int32 ``[n]``: where in the task's rows each cell is."""
    n_padding: int
    """1 if the rank has no cell of its own here and holds one that is another rank's."""
    loss_scale: float
    """Factor on the rank's mean loss that makes the mean over ranks the mean over cells."""


@dataclass(frozen=True, slots=True)
class ReadTask:
    """One rank's share of one window: what to read, and how to cut it."""

    epoch: int
    window: int
    rank: int
    ranges: tuple[Range, ...]
    """Rows to read from the store, ascending."""
    rows: np.ndarray
    """int64: the same rows, one by one."""
    cuts: tuple[BatchCut, ...]

    def describe(self) -> str:
        """Which rows, for messages."""
        return (
            f"rows {self.rows[0]} … {self.rows[-1]} ({len(self.rows)} cells in "
            f"{len(self.ranges)} ranges; epoch {self.epoch}, window {self.window}, "
            f"rank {self.rank}, steps {self.cuts[0].step} … {self.cuts[-1].step})"
        )


def ranges_of(rows: np.ndarray) -> tuple[Range, ...]:
    """The fewest ranges that hold strictly increasing rows and no others.

    Whether short gaps are read rather than skipped is for the store to decide: it alone knows
    what skipping costs there.
    """
    after = np.flatnonzero(np.diff(rows) != 1)
    starts = rows[np.concatenate([[0], after + 1])]
    stops = rows[np.concatenate([after, [len(rows) - 1]])] + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))
