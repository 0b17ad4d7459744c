"""The local engine: a rank's own threads read its share of the plan."""

from collections.abc import Iterator
from contextlib import closing

from scvi_dist.batch import CellBatch
from scvi_dist.dataloaders.collate import TaskRows, cut_batches, n_parts_of, read_part
from scvi_dist.dataloaders.loader import PlanLoader
from scvi_dist.dataloaders.reader import ReadAhead, ReadLimits


class LocalLoader(PlanLoader):
    """Reads in this process, one task ahead; best where the store is on a fast local disk.

    The threads live for one iteration only: an abandoned or finished epoch leaves none behind.
    """

    def _batches(self, epoch: int, position: int) -> Iterator[CellBatch]:
        config, source, guard = self.config, self.source, self._guard
        coded_obs = source.coded_obs
        bytes_per_cell = source.store.bytes_per_cell
        ahead = ReadAhead(
            self.plan.tasks(epoch, self.rank, self.world, position),
            lambda task, part, n: read_part(task, part, n, source, guard is not None),
            n_parts=lambda task: n_parts_of(task, config.n_threads),
            cost=lambda task: int(len(task.rows) * bytes_per_cell),
            limits=ReadLimits(
                budget_bytes=config.budget_bytes,
                n_threads=config.n_threads,
                limit_s=config.wait_limit_s,
            ),
            where=source.where,
        )
        with closing(iter(ahead)) as tasks:  # type: ignore[type-var]
            for task, parts in tasks:
                if guard is not None:
                    guard.add(part.report for part in parts)
                rows = TaskRows([part.counts for part in parts])
                parts.clear()
                yield from cut_batches(task, rows, coded_obs)
                # The next task is waited for with this one's rows given back.
                del rows
