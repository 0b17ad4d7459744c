"""What Lightning iterates: an epoch from the plan's cursor on."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from scvi_dist.batch import CellBatch
from scvi_dist.dataloaders.loader import PlanLoader
from scvi_dist.train.training_plan import TrainingPlan


class EpochFeed:
    """What Lightning iterates: the part of the epoch that lies after the plan's cursor.

    Lightning asks for iterators that it never uses, so none does anything before its first batch.

    Parameters
    ----------
    labelled
        A second stream, of which each minibatch gets its own.
    """

    def __init__(
        self, loader: PlanLoader, plan: TrainingPlan, labelled: PlanLoader | None = None
    ) -> None:
        self._loader, self._plan, self._labelled = loader, plan, labelled

    def __len__(self) -> int:
        read_plan = self._loader.plan
        return read_plan.n_steps - read_plan.step_of(self._plan.cursor.position)

    def __iter__(self) -> Iterator[CellBatch]:
        cursor = self._plan.cursor
        yield from _from(self._loader, self._labelled, cursor.epoch, cursor.position)


class ValidationFeed:
    """The validation cells, from the first to the last, every time."""

    def __init__(self, loader: PlanLoader, labelled: PlanLoader | None = None) -> None:
        self._loader, self._labelled = loader, labelled

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[CellBatch]:
        yield from _from(self._loader, self._labelled, 0, 0)


def _from(
    loader: PlanLoader, labelled: PlanLoader | None, epoch: int, position: int
) -> Iterator[CellBatch]:
    """Minibatches from a place on, each with that of the second stream where there is one."""
    step = loader.plan.step_of(position)
    loader.start_at(epoch, position)
    if labelled is None:
        yield from loader
        return
    labelled.start_at(epoch, labelled.plan.position_of(step))
    cells, others = iter(loader), iter(labelled)
    with closing(cells), closing(others):  # type: ignore[type-var]
        for batch, other in zip(cells, others, strict=True):
            yield replace(batch, labelled=other)
