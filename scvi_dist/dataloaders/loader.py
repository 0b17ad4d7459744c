"""What both engines have in common: epochs, positions, the state of a loader, and its plan."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from time import perf_counter
from typing import Any

from scvi_dist.batch import CellBatch
from scvi_dist.data.store import Store
from scvi_dist.dataloaders.budget import (
    TRAIN_SHARE,
    block_rows_for,
    cells_budget,
    fit_window,
    scratch_bytes_for,
)
from scvi_dist.dataloaders.collate import CountGuard
from scvi_dist.dataloaders.epoch_plan import EpochPlan
from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import RowsByEpoch, RowSet
from scvi_dist.dataloaders.source import CellSource, OpenSource, opened
from scvi_dist.errors import CheckpointError

__all__ = ["LoaderConfig", "PlanLoader", "make_plan", "planned_bytes"]

STATE_VERSION = 1


def make_plan(
    rows: RowSet,
    store: Store,
    config: LoaderConfig,
    *,
    batch_size: int,
    world: int = 1,
    shuffle: bool = True,
    seed: int = 0,
    dense_bytes: int = 0,
) -> ReadPlan:
    """The plan for some rows of a store within the budget of ``config``.

    A run that may resume keeps ``plan.config``: with other ranks the budget may suggest another
    window, and positions mean nothing in a plan with other windows. ``dense_bytes`` of a cell are
    read besides its counts of genes (``Schema.dense_bytes_per_cell``).

    Raises
    ------
    BudgetExceeded
        If not even one minibatch fits.
    """
    bytes_per_cell = store.bytes_per_cell + dense_bytes
    window = fit_window(
        bytes_per_cell,
        config.budget_bytes,
        batch_size,
        world,
        config.window_cells,
        scratch_bytes_for(store.chunk_rows, bytes_per_cell, config.n_threads),
    )
    block_rows = config.block_rows or block_rows_for(
        store.chunk_rows, window, rows.stratum, batch_size, store.is_shuffled
    )
    return ReadPlan(
        rows,
        PlanConfig(
            batch_size=batch_size,
            window_cells=window,
            block_rows=block_rows,
            shuffle=shuffle,
            seed=seed,
        ),
    )


def training_part(config: LoaderConfig, n_obs: int) -> LoaderConfig:
    """The settings of the loader of training cells, of a store with so many cells in all."""
    budget = cells_budget(config.budget_bytes, n_obs)
    return replace(config, budget_bytes=max(1, int(budget * TRAIN_SHARE)))


def planned_bytes(
    plan: EpochPlan, store: Store, config: LoaderConfig, world: int, dense_bytes: int = 0
) -> int:
    """Most bytes that one rank's reader of a plan holds at once, what decoding takes included.

    For ``dense_bytes`` see :func:`make_plan`.
    """
    bytes_per_cell = store.bytes_per_cell + dense_bytes
    scratch = scratch_bytes_for(store.chunk_rows, bytes_per_cell, config.n_threads)
    return plan.memory_bytes(bytes_per_cell, world, scratch)


class PlanLoader(ABC):
    """One rank's minibatches of a plan; iterating is one epoch, or what is left of it.

    Parameters
    ----------
    plan
        Which cells, in which order.
    source
        Where they are.
    config
        Budget, threads and limits.
    rank, world
        This rank's number, and the number of ranks.
    """

    def __init__(
        self,
        plan: EpochPlan,
        source: CellSource | OpenSource,
        config: LoaderConfig,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.plan, self.config, self.rank, self.world = plan, config, rank, world
        self.source = opened(source)
        self.wait_s = 0.0
        """Seconds that the consumer has spent waiting for minibatches."""
        self.start_s = 0.0
        """Seconds from asking for the latest epoch to its first minibatch."""
        self._coming = (0, 0)
        """Epoch and position of the next iteration."""
        self._cursor = (0, 0)
        """Epoch and position after the minibatch last handed out."""
        self._guard = CountGuard(self.source) if self.source.check_counts else None

    @abstractmethod
    def _batches(self, epoch: int, position: int) -> Iterator[CellBatch]:
        """The rank's minibatches of an epoch from a position on."""

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.plan.n_steps

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch. A position set for the same epoch stays."""
        if self._coming[0] != epoch:
            self._coming = self._cursor = (epoch, 0)

    def start_at(self, epoch: int, position: int) -> None:
        """Let the next iteration start at a position (in global cells); later epochs start at 0.

        Raises
        ------
        PlanError
            If no minibatch starts there.
        """
        if self.plan.step_of(position) == self.plan.n_steps > 0:
            epoch, position = epoch + 1, 0
        self._coming = self._cursor = (epoch, position)

    def __iter__(self) -> Iterator[CellBatch]:
        epoch, position = self._coming
        self._coming = (epoch + 1, 0)
        if self._guard is not None:
            self._guard.begin()
        n_cells, is_first = self.plan.n_cells, True
        asked = perf_counter()
        with closing(self._batches(epoch, position)) as batches:  # type: ignore[type-var]
            for batch in batches:
                waited = perf_counter() - asked
                self.wait_s += waited
                if is_first:
                    self.start_s, is_first = waited, False
                after = batch.position + batch.n_global
                if after < n_cells:
                    self._cursor = (epoch, after)
                else:
                    self._cursor = (epoch + 1, 0)
                    # Before it is handed out: who counts steps does not ask for one more.
                    self._finish_check(position)
                yield batch
                asked = perf_counter()

    def _finish_check(self, position: int) -> None:
        """An epoch from a position on was read."""
        sees_all = not isinstance(getattr(self.plan, "rows", None), RowsByEpoch)
        if self._guard is not None and position == 0 and sees_all:
            # Every cell of this rank's epoch was looked at; later epochs hold no news.
            self._guard.finish()
            self._guard = None

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position after the minibatch last handed out, and what they depend on."""
        epoch, position = self._cursor
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "position": position,
            "facts": self._facts(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken, also with another number of ranks.

        Raises
        ------
        CheckpointError
            If the state belongs to another plan or schema, or is of another version.
        """
        if state.get("version") != STATE_VERSION:
            raise CheckpointError(
                f"expected a loader state of version {STATE_VERSION}, seen "
                f"{state.get('version')!r}; it was saved by another release."
            )
        here, saved = self._facts(), state["facts"]
        differ = [name for name in sorted(here | saved) if here.get(name) != saved.get(name)]
        if differ:
            listed = "; ".join(
                f"{name}: saved {saved.get(name)!r}, here {here.get(name)!r}" for name in differ
            )
            raise CheckpointError(
                f"a loader of other minibatches saved this state ({listed}). Use the settings "
                f"that it was saved with, or start a new run."
            )
        self.start_at(state["epoch"], state["position"])

    def _facts(self) -> dict[str, Any]:
        return {**self.plan.facts(), "schema": self.source.schema.digest()}

    def close(self) -> None:  # noqa: B027 - only engines that hold something have to say more
        """Give back what the loader holds; the source stays open. Closing twice is harmless."""
