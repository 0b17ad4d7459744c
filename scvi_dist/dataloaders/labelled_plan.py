"""The plan of a second stream: labelled cells, over and over, beside an epoch of all cells."""

from collections.abc import Iterator
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np

from scvi_dist.dataloaders.budget import (
    LABELLED_SHARE,
    MIXED_BLOCKS,
    fit_window,
    scratch_bytes_for,
)
from scvi_dist.dataloaders.labelled_cells import LabelledCells, LabelledConfig
from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.read_task import BatchCut, ReadTask, ranges_of
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import ConfigError, PlanError

STREAM = 0x1ABE11ED
"""Added to the seed, so that labelled cells do not follow the order of all cells."""


class LabelledPlan:
    """For each step of an epoch a minibatch of labelled cells.

    The cells are gone through in *passes*, each of them a
    :class:`~scvi_dist.dataloaders.read_plan.ReadPlan` epoch of its own with its own order: every
    labelled cell once a pass, and as many passes as the steps need. Nothing is kept of a pass, and
    the last one ends where the epoch does, on all ranks alike. Step and position are counted over
    the whole epoch, so that a minibatch follows from (seed, epoch, step) alone.

    Parameters
    ----------
    cells
        Which cells; at least one.
    config
        As for :class:`ReadPlan`; all passes have these settings.
    n_steps
        Steps of an epoch.
    """

    def __init__(self, cells: LabelledCells, config: PlanConfig, n_steps: int) -> None:
        self.cells, self.config = cells, config
        self._n_steps = n_steps
        self._lock = Lock()
        self._pass: tuple[int, ReadPlan] | None = None
        # Where minibatches begin follows from the number of cells, which all epochs have.
        self._form = self._pass_of(0)
        if not self._form.n_steps:
            raise PlanError("a stream of labelled cells needs at least one of them; seen none.")

    def __reduce__(self) -> tuple[type["LabelledPlan"], tuple[LabelledCells, PlanConfig, int]]:
        return LabelledPlan, (self.cells, self.config, self._n_steps)

    @property
    def n_cells(self) -> int:
        """Cells of an epoch, each counted as often as it occurs."""
        return self.position_of(self._n_steps)

    @property
    def n_steps(self) -> int:
        """Minibatches of an epoch."""
        return self._n_steps

    @property
    def n_passes(self) -> int:
        """Passes of an epoch; the last may end early."""
        return -(-self._n_steps // self._form.n_steps)

    def position_of(self, step: int) -> int:
        """Cells of the epoch before a minibatch."""
        number, inside = divmod(step, self._form.n_steps)
        return number * self._form.n_cells + self._form.position_of(inside)

    def step_of(self, position: int) -> int:
        """The minibatch that starts at a position.

        Raises
        ------
        PlanError
            No minibatch starts there.
        """
        number, inside = divmod(position, self._form.n_cells)
        step = number * self._form.n_steps + self._form.step_of(inside)
        if step > self._n_steps:
            raise PlanError(
                f"position {position} lies behind the {self.n_cells} labelled cells of an epoch."
            )
        return step

    def windows(self, position: int = 0) -> Iterator[tuple[int, int]]:
        """Arguments ``window, first`` of :meth:`task` from a position on, in order."""
        form = self._form
        number, inside = divmod(self.step_of(position), form.n_steps)
        while number * form.n_steps + inside < self._n_steps:
            left = self._n_steps - number * form.n_steps
            for window, first in form.windows(form.position_of(inside)):
                if form.first_step_of(window) + first < left:
                    yield number * form.n_windows + window, first
            number, inside = number + 1, 0

    def tasks(self, epoch: int, rank: int, world: int, position: int = 0) -> Iterator[ReadTask]:
        """A rank's tasks of an epoch from a position (in global cells) on, in order."""
        for window, first in self.windows(position):
            yield self.task(epoch, rank, world, window, first)

    def task(self, epoch: int, rank: int, world: int, window: int, first: int = 0) -> ReadTask:
        """A rank's share of a window, from the window's minibatch ``first`` on."""
        number, inside = divmod(window, self._form.n_windows)
        plan = self._pass_of(epoch)
        task = plan.task(epoch * self.n_passes + number, rank, world, inside, first)
        steps, cells = number * plan.n_steps, number * plan.n_cells
        cuts = tuple(
            replace(cut, step=steps + cut.step, position=cells + cut.position)
            for cut in task.cuts
            if steps + cut.step < self._n_steps
        )
        rows, cuts = _used(task.rows, cuts) if len(cuts) < len(task.cuts) else (task.rows, cuts)
        return ReadTask(epoch, window, rank, ranges_of(rows), rows, cuts)

    def cells_per_task(self, world: int) -> int:
        """Most cells that a rank's task holds."""
        return self._form.cells_per_task(world)

    def memory_bytes(self, bytes_per_cell: float, world: int, scratch_bytes: int = 0) -> int:
        """Most bytes of cells and plan that a rank's reader holds at once."""
        return self._form.memory_bytes(bytes_per_cell, world, scratch_bytes)

    def facts(self) -> dict[str, Any]:
        """What a position in this plan's order depends on; JSON values, no world size."""
        cells = {"rows": self.cells.rows.digest(), "n_per_label": self.cells.n_per_label}
        return {**self._form.facts(), **cells, "n_steps": self._n_steps}

    def describe(self, world: int = 1) -> str:
        """The plan in a sentence."""
        return f"{self.n_passes} passes an epoch, each over {self._form.describe(world)}"

    def _pass_of(self, epoch: int) -> ReadPlan:
        """The plan of an epoch's passes; the last one is kept."""
        # Validation, whose cells are not shuffled, sees the same cells every time.
        key = epoch if self.config.shuffle and self.cells.n_per_label is not None else 0
        with self._lock:
            if self._pass is None or self._pass[0] != key:
                rows = self.cells.of_epoch(self.config.seed, key)
                self._pass = key, ReadPlan(rows, self.config)
            return self._pass[1]


def make_labelled_plan(
    beside: ReadPlan,
    source: OpenSource,
    labelled: LabelledConfig,
    config: LoaderConfig,
    world: int = 1,
) -> LabelledPlan | None:
    """The stream of the labelled cells among those of a plan; ``None`` where there are none.

    Its settings follow from that plan's and from the cells, so that a run which makes the plan
    again makes this one again, with any number of ranks.

    Parameters
    ----------
    beside
        A plan over all cells.
    config
        Its budget is what labelled cells may take.

    Raises
    ------
    BudgetExceeded
        Not even one minibatch fits.
    ConfigError
        Only one cell would train, of which batch norm can learn nothing.
    """
    cells = LabelledCells.among(beside.rows, source, labelled)
    if not cells.n:
        return None
    if cells.n == 1 and beside.config.shuffle:
        raise ConfigError(
            f"{source.where}: one cell of the training set has a label; at least two are needed. "
            "Label more cells, or raise train_size."
        )
    store, batch_size = source.store, beside.config.batch_size
    scratch = scratch_bytes_for(store.chunk_rows, store.bytes_per_cell, config.n_threads)
    fit_window(store.bytes_per_cell, config.budget_bytes, batch_size, world, batch_size, scratch)
    part = LABELLED_SHARE / (1 - LABELLED_SHARE)
    window = max(batch_size, int(beside.config.window_cells * part))
    # Few labelled cells lie far apart: their blocks are longer, and so no more than they are.
    rows_per_cell = beside.rows.n_store / cells.n
    block_rows = max(beside.config.block_rows, int(rows_per_cell * window / MIXED_BLOCKS))
    settings = replace(
        beside.config,
        window_cells=window,
        block_rows=block_rows,
        seed=beside.config.seed + STREAM,
    )
    return LabelledPlan(cells, settings, beside.n_steps)


def _used(rows: np.ndarray, cuts: tuple[BatchCut, ...]) -> tuple[np.ndarray, tuple[BatchCut, ...]]:
    """The rows that the cuts still pick, and the cuts of those."""
    ends = np.cumsum([len(cut.pick) for cut in cuts])[:-1]
    used, pick = np.unique(np.concatenate([cut.pick for cut in cuts]), return_inverse=True)
    picks = np.split(pick.astype(np.int32), ends)
    return rows[used], tuple(replace(c, pick=p) for c, p in zip(cuts, picks, strict=True))
