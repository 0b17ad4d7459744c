"""Passes over cells in threads of this process."""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from scvi_dist.analysis.passes.cell_pass import (
    CellPass,
    Partial,
    Parts,
    PassPlan,
    cut_genes,
    finished,
    fold_of,
    merge_into,
    one_torch_thread,
    part_of,
    with_common,
)
from scvi_dist.analysis.passes.engines import EngineConfig, Executor, count_of, usable_cores
from scvi_dist.analysis.passes.part_cuts import PartCuts
from scvi_dist.analysis.passes.partial_sums import kept
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.dataloaders.threads import DaemonPool
from scvi_dist.errors import ConfigError, WaitTimeout
from scvi_dist.module.base import BaseModule

RESULTS_BYTES = 512 << 20
"""What results of parts may take in all, where nobody says how many threads there are."""
_MERGED = 2
"""Results in memory besides those being computed: the total, and that of a root."""


@contextmanager
def in_this_thread(given: str, config: EngineConfig) -> Iterator[Executor]:
    """One part at a time."""
    if given:
        raise ConfigError(f"dask='sync' takes nothing behind it, seen {given!r}.")
    yield ThreadEngine(1, config)


@contextmanager
def as_fits(given: str, config: EngineConfig) -> Iterator[Executor]:
    """As many parts at a time as there are cores, and as their results fit some memory."""
    yield ThreadEngine(usable_cores(), config, RESULTS_BYTES)


@contextmanager
def in_threads(given: str, config: EngineConfig) -> Iterator[Executor]:
    """As many parts at a time as there are cores, or as is said."""
    yield ThreadEngine(count_of(given, "threads", usable_cores()), config)


@dataclass(frozen=True)
class ThreadEngine:
    """Computes parts in some threads and merges them in the calling one."""

    n_threads: int
    config: EngineConfig
    results_bytes: int | None = None
    """What results may take; there are fewer threads if they are large. None: no bound."""

    def __call__(
        self,
        cell_pass: CellPass,
        module: BaseModule | None,
        cells: StoreCells,
        parts: Parts | None = None,
    ) -> dict[str, np.ndarray]:
        plan = PassPlan.of(cell_pass, cells, parts)
        sums, total, n_done = kept(self.config, cell_pass, module, cells, plan)
        fold = fold_of(cell_pass, plan, total, n_done)
        del total
        first = plan.parts_before(n_done)
        with one_torch_thread():
            try:
                for number, partial in self._parts(cell_pass, module, cells, plan, first):
                    fold.add(0, number, partial)
                    del partial
                    if sums is not None:
                        sums.write(lambda: fold.total, fold.n_done)
            finally:
                if sums is not None:
                    sums.write(lambda: fold.total, fold.n_done, last=True)
            assert fold.total is not None
            blocks = with_common(cut_genes(cell_pass, fold.total, plan.blocks))
            return finished(cell_pass, map(cell_pass.finish, blocks, plan.blocks))

    def _parts(
        self,
        cell_pass: CellPass,
        module: BaseModule | None,
        cells: StoreCells,
        plan: PassPlan,
        first: int,
    ) -> Iterator[tuple[int, Partial]]:
        """The result of each part, from the first on, as they get done."""
        numbers = range(first, len(plan.parts))
        # A GPU is kept busy by one thread, and has no memory for copies.
        on_cpu = module is None or module.device.type == "cpu"
        n_threads = min(self.n_threads, len(numbers)) if on_cpu else 1
        modules = _Modules(module)
        cuts = PartCuts(cells, plan)

        def compute(number: int) -> Partial:
            with modules.borrowed() as mine, one_torch_thread():
                while True:
                    try:
                        return _computed(cell_pass, mine, cells, number, cuts)
                    except (MemoryError, torch.OutOfMemoryError) as error:
                        cuts.split(number, str(error) or "out of memory")

        n_cells = plan.parts[first - 1][1] if first else 0
        for number, partial in self._results(compute, numbers, n_threads, modules):
            n_cells += plan.parts[number][1] - plan.parts[number][0]
            if cells.config.on_progress is not None:
                cells.config.on_progress(n_cells, plan.n_cells)
            yield number, partial
            # It may have been merged into another; the next one needs the memory.
            del partial

    def _results(
        self,
        compute: Callable[[int], Partial],
        numbers: range,
        n_threads: int,
        modules: "_Modules",
    ) -> Iterator[tuple[int, Partial]]:
        """Results of all numbers; the first one may decide how many threads there are."""
        if numbers and (self.results_bytes is not None or n_threads <= 1):
            partial = compute(numbers[0])
            n_threads = self._fitting(n_threads, partial)
            yield numbers[0], partial
            del partial
            numbers = numbers[1:]
        if n_threads <= 1:
            for number in numbers:
                yield number, compute(number)
            return
        modules.copy(n_threads)
        yield from _as_they_end(compute, numbers, n_threads, self.config.part_limit_s)

    def _fitting(self, n_threads: int, partial: Partial) -> int:
        """So many threads, or as many as have room for results like this one."""
        if self.results_bytes is None:
            return n_threads
        n_bytes = max(sum(value.nbytes for value in partial.values()), 1)
        return min(n_threads, max(self.results_bytes // n_bytes - _MERGED, 1))


def _computed(
    cell_pass: CellPass,
    module: BaseModule | None,
    cells: StoreCells,
    number: int,
    cuts: PartCuts,
) -> Partial:
    """The result of a part, piece by piece if it was cut."""
    config = replace(cells.config, budget_bytes=cuts.budget_bytes(number))
    cells = StoreCells(cells.source, cells.selection, config)
    total: Partial | None = None
    for start, stop in cuts.of(number):
        payload = cell_pass.payload(np.arange(start, stop, dtype=np.int64))
        partial = cell_pass.compute(module, part_of(cells, start, stop), payload)
        total = partial if total is None else merge_into(cell_pass.rules, total, partial)
    assert total is not None
    return total


def _as_they_end(
    compute: Callable[[int], Partial], numbers: range, n_threads: int, limit_s: float
) -> Iterator[tuple[int, Partial]]:
    """Results of all numbers, so many at a time, each as soon as it is there."""
    pool = DaemonPool(n_threads, "scvi_dist-part")
    left = iter(numbers)
    running = {pool.submit(compute, number): number for number in islice(left, n_threads)}
    try:
        while running:
            done, _ = wait(running, timeout=limit_s, return_when=FIRST_COMPLETED)
            if not done:
                raise WaitTimeout(
                    f"no part of the cells got done within {limit_s:g} s; parts "
                    f"{sorted(running.values())} are being computed. Take smaller parts, or raise "
                    "part_limit_s."
                )
            while done:
                future = done.pop()
                number = running.pop(future)
                for after in islice(left, 1):
                    running[pool.submit(compute, after)] = after
                result = future.result()
                del future
                yield number, result
                del result
    finally:
        pool.stop()


class _Modules:
    """Copies of a module, for one thread each: its noise is that of the cells in use."""

    def __init__(self, module: BaseModule | None) -> None:
        self._original = module
        self._idle: deque[BaseModule | None] = deque([module])

    def copy(self, n: int) -> None:
        """Lend copies from now on; called while none is in use, for bound noise would be copied.

        The caller's module is for nobody else: a thread that still computes when a pass has failed
        would draw from the noise that the next pass binds.
        """
        self._idle = deque(copy.deepcopy(self._original) for _ in range(n))

    @contextmanager
    def borrowed(self) -> Iterator[BaseModule | None]:
        """A module that no other thread has meanwhile."""
        module = self._idle.pop()
        try:
            yield module
        finally:
            self._idle.append(module)
