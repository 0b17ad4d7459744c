"""The Ray engine: Ray Data reads a rank's share of the plan on any CPU of the cluster.

Each rank makes a data set of its own whose read tasks are its windows: epoch and position are
arguments, no coordinator hands out blocks, so that resuming is exact.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Datasource, ExecutionOptions, ExecutionResources
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.resource_manager import ResourceManager
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask as RayReadTask

from scvi_dist.batch import CellBatch
from scvi_dist.data.big_arrays import keep_waiting
from scvi_dist.dataloaders.budget import TASK_SLACK
from scvi_dist.dataloaders.collate import CutCells, batch_of, cut_cells
from scvi_dist.dataloaders.epoch_plan import EpochPlan
from scvi_dist.dataloaders.loader import LoaderConfig, PlanLoader
from scvi_dist.dataloaders.patience import patiently
from scvi_dist.dataloaders.ray_blocks import MinibatchRow, minibatch_rows, window_table
from scvi_dist.dataloaders.read_task import BatchCut
from scvi_dist.dataloaders.source import CellSource, OpenSource
from scvi_dist.dataloaders.threads import one_ahead
from scvi_dist.errors import ConfigError, PlanError, ScviDistError

SEGMENT_WINDOWS = 1_000
"""Windows in one Ray data set: Ray stores every read task of a data set before the first runs."""

_MIN_BLOCK_BYTES = 1 << 20
_LOOK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class Segment:
    """Some windows of a rank's epoch, and what a reader on another machine needs for them."""

    shared: Any
    """Ray's reference to ``(plan, cell source)``."""
    epoch: int
    rank: int
    world: int
    windows: tuple[tuple[int, int], ...]
    """Window, and its first minibatch."""
    check: bool
    """Look at every value."""
    window_bytes: int
    """Expected size of a block."""
    outage_limit_s: float = 0.0
    """How long a reader waits for a store that cannot be reached."""


class PlanDatasource(Datasource):
    """A segment as a Ray data source: one read task and one block for each window."""

    def __init__(self, segment: Segment) -> None:
        super().__init__()
        self._segment = segment

    def get_name(self) -> str:
        return "scvi_dist"

    def estimate_inmemory_data_size(self) -> int:
        return self._segment.window_bytes * len(self._segment.windows)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[RayReadTask]:
        size = self._segment.window_bytes
        metadata = BlockMetadata(num_rows=None, size_bytes=size, input_files=None, exec_stats=None)
        return [
            RayReadTask(_reader_of(self._segment, window, first), metadata)
            for window, first in self._segment.windows
        ]


def _reader_of(segment: Segment, window: int, first: int) -> Callable[[], Iterator[pa.Table]]:
    shared, check, limit_s = segment.shared, segment.check, segment.outage_limit_s
    epoch, rank, world = segment.epoch, segment.rank, segment.world
    window_bytes = segment.window_bytes

    # The windows of the segment stay out of the closure: it is stored once for each of them.
    def read() -> Iterator[pa.Table]:
        plan, source = patiently(lambda: _shared_on_worker(shared), limit_s)
        task = plan.task(epoch, rank, world, window, first)
        # The next task of this process reads into what this one has read into.
        keep_waiting(window_bytes)
        yield patiently(lambda: window_table(task, source, check), limit_s)

    return read


_ON_WORKER: dict[str, tuple[EpochPlan, OpenSource]] = {}


def _shared_on_worker(shared: Any) -> tuple[EpochPlan, OpenSource]:
    """The plan and the open source of this worker process; the last ones are kept."""
    key = shared.hex()
    if key not in _ON_WORKER:
        plan, source = ray.get(shared)
        _ON_WORKER.clear()
        _ON_WORKER[key] = plan, source.open()
    return _ON_WORKER[key]


class BlockStream:
    """The blocks of a data set, one after the other, until told to stop."""

    def __init__(self, dataset: ray.data.Dataset) -> None:
        self._dataset = dataset
        self._executors: list[Any] = []
        create = dataset._create_executor

        # Ray offers no way to stop a data set whose first block never comes: its executor would
        # go on in a thread of its own, and bring the process down once Ray is shut down.
        def create_and_remember() -> Any:
            self._executors.append(create())
            return self._executors[-1]

        dataset._create_executor = create_and_remember

    def __iter__(self) -> Iterator[pa.Table]:
        batches = self._dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=1
        )
        return iter(batches)

    def stop(self) -> None:
        """Cancel what still runs; whoever waits for a block is told that there are no more."""
        while self._executors:
            self._executors.pop().shutdown(force=True)


class RayLoader(PlanLoader):
    """Reads through Ray Data; best where CPU nodes feed ranks that have none to spare.

    Ray has to be running: initialised by the caller, or because this is a Ray Train worker.

    Raises
    ------
    ConfigError
        Ray is not running.
    """

    def __init__(
        self,
        plan: EpochPlan,
        source: CellSource | OpenSource,
        config: LoaderConfig,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not ray.is_initialized():
            raise ConfigError("engine 'ray' needs a running Ray: call ray.init(), or use 'local'.")
        super().__init__(plan, source, config, rank, world)
        _look_often()
        self._shared = ray.put((plan, self.source.cell_source))

    def _batches(self, epoch: int, position: int) -> Iterator[CellBatch]:
        n_genes = self.source.schema.n_vars
        with closing(self._rows(epoch, position)) as rows:  # type: ignore[type-var]
            for cut, cells in self._cuts(epoch, position):
                row = next(rows, None)
                if row is None or row.step != cut.step:
                    raise PlanError(
                        f"rank {self.rank}: expected step {cut.step} of epoch {epoch} from Ray "
                        f"Data, seen {'the end' if row is None else f'step {row.step}'}; its "
                        f"blocks came out of order."
                    )
                if self._guard is not None:
                    self._guard.add([row.report])
                counts, proteins = row.counts(n_genes), row.protein_counts()
                # A row keeps its whole block in the object store.
                del row
                yield batch_of(cut, cells, counts, proteins)

    def _cuts(self, epoch: int, position: int) -> Iterator[tuple[BatchCut, CutCells]]:
        for task in self.plan.tasks(epoch, self.rank, self.world, position):
            yield from cut_cells(task, self.source.coded_obs)

    def _rows(self, epoch: int, position: int) -> Iterator[MinibatchRow]:
        windows = self.plan.windows(position)
        while segment := tuple(islice(windows, SEGMENT_WINDOWS)):
            stream = BlockStream(self._dataset(epoch, segment))
            tables = one_ahead(
                iter(stream),
                limit_s=self.config.wait_limit_s,
                timed_out=self._starved,
                interrupt=stream.stop,
            )
            with closing(tables):  # type: ignore[type-var]
                while (table := self._next(tables)) is not None:
                    yield from minibatch_rows(table)
                    del table

    def _next(self, tables: Iterator[pa.Table]) -> pa.Table | None:
        try:
            return next(tables, None)
        except ray.exceptions.RayTaskError as error:
            # What a reader task raised says more than that a task failed.
            if isinstance(error.cause, ScviDistError):
                error.cause.add_note(f"in a reader task of rank {self.rank}")
                raise error.cause from error
            raise

    def _dataset(self, epoch: int, windows: tuple[tuple[int, int], ...]) -> ray.data.Dataset:
        cells = self.plan.cells_per_task(self.world)
        size = int(cells * self.source.bytes_per_cell)
        config = self.config
        segment = Segment(
            self._shared,
            epoch,
            self.rank,
            self.world,
            windows,
            self._guard is not None,
            size,
            config.outage_limit_s,
        )
        with _quiet(), DataContext.current(_context(self.config, size)):
            return ray.data.read_datasource(
                PlanDatasource(segment),
                override_num_blocks=len(windows),
                num_cpus=config.reader_cpus,
                concurrency=min(config.readers, len(windows)),
                ray_remote_args=_placement(config),
            )

    def _starved(self) -> str:
        total = ray.cluster_resources().get("CPU", 0)
        free = ray.available_resources().get("CPU", 0)
        return (
            f"rank {self.rank}: Ray Data delivered nothing within {self.config.wait_limit_s:.0f} "
            f"s. A reader task needs {self.config.reader_cpus:g} CPUs{_beside(self.config)}; the "
            f"cluster has {total:g}, of which {free:g} are free. Give workers fewer CPUs, "
            f"add a node, or use engine 'local'."
        )


def _look_often() -> None:
    """Let Ray Data see that a reader is free when it is, not a tenth of a second or a second later.

    A window is read in a quarter of a second. But by default Ray Data's loop waits 0.1 s for every
    running task together before it starts another one, and in the first second of a data set it
    believes that there is one CPU. There are no settings for either.
    """
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = _LOOK_EVERY_S
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = _LOOK_EVERY_S


def _placement(config: LoaderConfig) -> dict[str, Any]:
    """Where readers run."""
    placement: dict[str, Any] = {}
    if config.reader_resources:
        placement["resources"] = dict(config.reader_resources)
    if config.reader_labels:
        placement["label_selector"] = dict(config.reader_labels)
    return placement


def _beside(config: LoaderConfig) -> str:
    """What a reader needs besides CPUs, in words."""
    resources = "".join(f", {n:g} {name}" for name, n in config.reader_resources.items())
    labels = ", ".join(f"{name}={value}" for name, value in config.reader_labels.items())
    return resources + (f" on a node labelled {labels}" if labels else "")


def _context(config: LoaderConfig, window_bytes: int) -> DataContext:
    """Ray Data's settings for one data set: order kept, blocks whole, memory bounded, silent."""
    context = DataContext.get_current().copy()
    block_bytes = max(_MIN_BLOCK_BYTES, int(window_bytes * TASK_SLACK))
    # Smaller blocks would be joined and larger ones cut; the estimate also sizes Ray's budget.
    context.target_max_block_size = block_bytes
    context.execution_options = ExecutionOptions(
        # Off by default, and a small machine keeps the order by accident.
        preserve_order=True,
        resource_limits=ExecutionResources(
            cpu=config.readers * config.reader_cpus,
            object_store_memory=config.object_store_bytes
            or max(config.budget_bytes, 4 * block_bytes),
        ),
        verbose_progress=False,
    )
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    return context


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Data's reports, and without its warnings about its own settings."""
    # Ray sets the level when it starts, so it is lowered for each data set.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
