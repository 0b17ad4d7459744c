"""What Lightning iterates: an epoch from the plan's cursor on."""

from collections.abc import Iterator, Sized
from typing import Protocol

from scvi_dist.batch import CellBatch
from scvi_dist.dataloaders.read_plan import ReadPlan
from scvi_dist.train.training_plan import TrainingPlan


class BatchLoader(Sized, Protocol):
    """What both engines offer."""

    def __iter__(self) -> Iterator[CellBatch]: ...

    def start_at(self, epoch: int, position: int) -> None:
        """The next iteration is that epoch's, from a position in global cells on."""


class EpochFeed:
    """What Lightning iterates: the part of the epoch that lies after the plan's cursor.

    Lightning asks for iterators that it never uses, so none does anything before its first batch.
    """

    def __init__(self, loader: BatchLoader, read_plan: ReadPlan, plan: TrainingPlan) -> None:
        self._loader, self._read_plan, self._plan = loader, read_plan, plan

    def __len__(self) -> int:
        return self._read_plan.n_steps - self._read_plan.step_of(self._plan.cursor.position)

    def __iter__(self) -> Iterator[CellBatch]:
        cursor = self._plan.cursor
        self._loader.start_at(cursor.epoch, cursor.position)
        yield from self._loader


class ValidationFeed:
    """The validation cells, from the first to the last, every time."""

    def __init__(self, loader: BatchLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[CellBatch]:
        self._loader.start_at(0, 0)
        yield from self._loader
