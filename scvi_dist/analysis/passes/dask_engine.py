"""Passes over cells on the workers of a Dask scheduler.

The driver gives out a few roots of the merge tree at a time and merges them as they come: what is
lost with a worker is at most what was being computed, and what is lost with the scheduler is what
came after the last write of the partial sums.
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress

import dask.config
import numpy as np
from dask.delayed import Delayed, delayed
from distributed import Client, Future, KilledWorker, wait

from scvi_dist.analysis.in_memory import refuse_in_memory
from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, Parts, PassPlan, finished, joined
from scvi_dist.analysis.passes.dask_checks import check_workers, scheduler_of
from scvi_dist.analysis.passes.engines import EngineConfig
from scvi_dist.analysis.passes.part_cuts import PartCuts
from scvi_dist.analysis.passes.part_work import Job, PartOutOfMemory, as_it_is, finish_block
from scvi_dist.analysis.passes.partial_sums import PartialSums, kept
from scvi_dist.analysis.passes.pass_graph import PassGraph, fold_pieces, packed_blocks
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import EngineError, ScviDistError, WaitTimeout
from scvi_dist.module.base import BaseModule

LOOK_S = 5.0
"""How often the driver looks whether scheduler and workers are still there."""
_TASKS_A_THREAD = 4
"""Tasks that a thread should have: the last ones are waited for by all others."""
_TRIES = 3
"""Times that a root is computed again after its results were lost."""


class DaskEngine:
    """Computes passes on the workers of a client."""

    def __init__(self, client: Client, config: EngineConfig) -> None:
        self._client = client
        self._config = config
        self._is_checked = False

    def __call__(
        self,
        cell_pass: CellPass,
        module: BaseModule | None,
        cells: StoreCells,
        parts: Parts | None = None,
    ) -> dict[str, np.ndarray]:
        refuse_in_memory(cells, "Dask workers")
        if not self._is_checked:
            check_workers(self._client, self._config)
            self._is_checked = True
        plan = PassPlan.of(cell_pass, cells, parts)
        sums, total, n_done = kept(self._config, cell_pass, module, cells, plan)
        job = Job.of(cell_pass, module, cells, plan).packed()
        cuts = PartCuts(cells, plan)
        n_threads = sum(self._client.nthreads().values())
        # Four parts by one task travel less, if everybody has enough to do even so.
        fuses = plan.tree.n_nodes(1) >= _TASKS_A_THREAD * n_threads
        graph = PassGraph(cell_pass, cells, plan, cuts, fuses)
        run = _Run(self._client, self._config, graph, sums, total, n_done)
        return run.result(job)


class _Run:
    """One pass on its way."""

    def __init__(
        self,
        client: Client,
        config: EngineConfig,
        graph: PassGraph,
        sums: PartialSums | None,
        total: Partial | None,
        n_done: int,
    ) -> None:
        self._client = client
        self._config = config
        self._graph = graph
        self._sums = sums
        self._fold = fold_pieces(graph.cell_pass, graph.plan, total, n_done)
        self._next = n_done
        self._roots: dict[int, list[Future]] = {}
        """Root -> its blocks."""
        self._waits: dict[Future, tuple[int, int]] = {}
        """What is not done -> its root and the cells that it means progress of."""
        self._tries: dict[int, int] = {}
        self._n_cells = graph.plan.cells_before(n_done)
        self._moved_s = self._seen_s = time.monotonic()

    def result(self, job: bytes) -> dict[str, np.ndarray]:
        """The finished pass."""
        try:
            with self._client.as_current():
                with _any_size():
                    self._job: Delayed = self._client.persist(delayed(as_it_is)(job))
                while not self._fold.is_complete:
                    self._give_out()
                    for future in self._done():
                        self._take(future)
                    self._keep(last=False)
                return self._finished()
        except ScviDistError:
            self._drop_all()
            raise
        except TimeoutError as error:
            raise WaitTimeout(
                f"{self._where} gave no result within {self._config.part_limit_s:g} s that it said "
                f"was there. Repeat the call{self._goes_on}."
            ) from error
        except (CancelledError, OSError) as error:
            raise EngineError(
                f"the connection to {self._where} was lost while it computed "
                f"({type(error).__name__}). Start it again and repeat the call{self._goes_on}."
            ) from error
        except KilledWorker as error:
            raise EngineError(
                f"workers of {self._where} died again and again while results were finished: "
                f"{error}. Give them more memory, or take smaller block_genes."
            ) from error
        except BaseException:
            self._drop_all()
            raise
        finally:
            self._keep(last=True)

    def _drop_all(self) -> None:
        with suppress(CancelledError, OSError):
            self._client.cancel(list(self._waits), force=True)

    def _keep(self, last: bool) -> None:
        if self._sums is not None:
            self._sums.write(self._whole, self._fold.n_done, last=last)

    def _whole(self) -> Partial | None:
        return None if self._fold.total is None else joined(self._fold.total)

    def _give_out(self) -> None:
        """Let workers have something to do, but not more than what they do next."""
        if self._next == self._fold.tree.n_roots:
            return
        n_threads = max(sum(self._client.nthreads().values()), 1)
        window = 1 + -(-2 * n_threads // self._graph.tasks_per_root)
        while self._next < min(self._fold.n_done + window, self._fold.tree.n_roots):
            self._submit(self._next)
            self._next += 1

    def _submit(self, root: int) -> None:
        pieces, leaves = self._graph.root(root, self._job)
        with _any_size():
            wanted = [*pieces, *(leaf.done for leaf in leaves)]
            futures = self._client.compute(wanted, priority=-root)
        self._roots[root] = futures[: len(pieces)]
        cells = [0] * len(pieces) + [leaf.n_cells for leaf in leaves]
        self._waits |= {f: (root, n) for f, n in zip(futures, cells, strict=True)}

    def _done(self) -> Iterable[Future]:
        """What has got done, or failed; waits for it."""
        while True:
            with suppress(TimeoutError):
                done = wait(list(self._waits), timeout=LOOK_S, return_when="FIRST_COMPLETED").done
                self._moved_s = time.monotonic()
                return done
            self._look()

    def _look(self) -> None:
        """Refuse to wait for what does not come."""
        now_s = time.monotonic()
        if self._client.nthreads():
            self._seen_s = now_s
        if now_s - self._seen_s > self._config.worker_limit_s:
            raise EngineError(
                f"{self._where} has had no worker for {self._config.worker_limit_s:g} s. Start "
                f"workers and call again{self._goes_on}."
            )
        if now_s - self._moved_s > self._config.part_limit_s:
            raise WaitTimeout(
                f"no part of the cells got done within {self._config.part_limit_s:g} s on "
                f"{self._where}, where {self._client.processing()} is being computed. Take smaller "
                f"parts, or raise part_limit_s, and call again{self._goes_on}."
            )

    def _take(self, future: Future) -> None:
        if future not in self._waits:
            return
        root, n_cells = self._waits.pop(future)
        if future.status == "error":
            self._again(root, future.exception())
            return
        on_progress = self._graph.cells.config.on_progress
        if n_cells and on_progress is not None:
            self._n_cells = min(self._n_cells + n_cells, self._graph.plan.n_cells)
            on_progress(self._n_cells, self._graph.plan.n_cells)
        blocks = self._roots.get(root, [])
        if blocks and not any(block in self._waits for block in blocks):
            try:
                pieces = [block.result(timeout=self._config.part_limit_s) for block in blocks]
            except (KilledWorker, PartOutOfMemory) as error:
                self._again(root, error)
            else:
                del self._roots[root]
                self._fold.add(self._fold.tree.height, root, pieces)

    def _again(self, root: int, error: BaseException) -> None:
        """Compute a root once more, in smaller parts where one did not fit."""
        if isinstance(error, PartOutOfMemory):
            self._graph.cuts.split(*error.args)
        elif isinstance(error, KilledWorker):
            parts = self._graph.parts_of_task(str(error.task))
            self._tries[root] = self._tries.get(root, 0) + 1
            if parts is None and self._tries[root] >= _TRIES:
                raise EngineError(
                    f"workers of {self._where} died {self._tries[root]} times while results were "
                    "merged. Give them more memory, or take smaller block_genes."
                ) from error
            for part in parts or ():
                self._graph.cuts.split(part, f"workers died while they computed it ({error})")
        elif isinstance(error, OSError) and not isinstance(error, ScviDistError):
            # Not to be taken for a scheduler that is gone.
            raise EngineError(f"a worker of {self._where} could not compute: {error}") from error
        else:
            raise error
        dropped = [future for future, (of, _) in self._waits.items() if of == root]
        self._client.cancel(dropped + self._roots.pop(root), force=True)
        for future in dropped:
            del self._waits[future]
        self._submit(root)

    def _finished(self) -> dict[str, np.ndarray]:
        """The blocks of genes, finished by workers where there is anything to do for them."""
        cell_pass, blocks = self._graph.cell_pass, self._graph.plan.blocks
        assert self._fold.total is not None
        if type(cell_pass).finish is CellPass.finish:
            return finished(cell_pass, self._fold.total)
        tasks = [
            delayed(finish_block)(self._job, number, packed)
            for number, packed in enumerate(packed_blocks(self._fold.total))
        ]
        with _any_size():
            futures = self._client.compute(tasks)
        assert len(futures) == len(blocks)
        self._waits |= dict.fromkeys(futures, (-1, 0))
        return finished(cell_pass, [f.result(self._config.part_limit_s) for f in futures])

    @property
    def _where(self) -> str:
        return scheduler_of(self._client)

    @property
    def _goes_on(self) -> str:
        return "" if self._sums is None else f"; it goes on from {self._sums.path}"


@contextmanager
def _any_size() -> Iterator[None]:
    """Within it, Dask does not warn of graphs that hold what the workers need."""
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
        yield
