"""The local engine: a rank's own threads read its share of the plan."""

from collections.abc import Iterable, Iterator
from contextlib import closing

from scvi_dist.batch import CellBatch
from scvi_dist.dataloaders.collate import (
    CountGuard,
    TaskRows,
    cut_batches,
    execute,
    n_parts_of,
    read_part,
)
from scvi_dist.dataloaders.loader import LoaderConfig, PlanLoader
from scvi_dist.dataloaders.patience import patiently
from scvi_dist.dataloaders.read_task import ReadTask
from scvi_dist.dataloaders.reader import ReadAhead, ReadLimits
from scvi_dist.dataloaders.source import OpenSource


class LocalLoader(PlanLoader):
    """Reads in this process, one task ahead; best where the store is on a fast local disk.

    The threads live for one iteration only: an abandoned or finished epoch leaves none behind.
    """

    def _batches(self, epoch: int, position: int) -> Iterator[CellBatch]:
        tasks = self.plan.tasks(epoch, self.rank, self.world, position)
        return read_batches(tasks, self.source, self.config, self._guard)


def read_batches(
    tasks: Iterable[ReadTask],
    source: OpenSource,
    config: LoaderConfig,
    guard: CountGuard | None = None,
) -> Iterator[CellBatch]:
    """The minibatches of tasks, as :func:`~scvi_dist.dataloaders.collate.execute` makes them.

    Background threads read one task ahead, inside the budget; of rows in memory nothing is read.
    """
    if source.rows_in_memory is not None:
        for task in tasks:
            yield from execute(task, source, guard)
        return
    coded_obs = source.coded_obs
    bytes_per_cell = source.bytes_per_cell
    ahead = ReadAhead(
        tasks,
        lambda task, part, n: patiently(
            lambda: read_part(task, part, n, source, guard is not None), config.outage_limit_s
        ),
        n_parts=lambda task: n_parts_of(task, config.n_threads),
        cost=lambda task: int(len(task.rows) * bytes_per_cell),
        limits=ReadLimits(
            budget_bytes=config.budget_bytes,
            n_threads=config.n_threads,
            limit_s=config.wait_limit_s,
        ),
        where=source.where,
    )
    with closing(iter(ahead)) as read:  # type: ignore[type-var]
        for task, parts in read:
            if guard is not None:
                guard.add(part.report for part in parts)
            rows = TaskRows.of(parts)
            parts.clear()
            yield from cut_batches(task, rows, coded_obs)
            # The next task is waited for with this one's rows given back.
            del rows
