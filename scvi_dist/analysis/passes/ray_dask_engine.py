"""Passes over cells as Dask graphs on a Ray cluster: the same tasks and the same tree."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import numpy as np
import ray
from dask.delayed import delayed
from ray.util.dask import ray_dask_get

from scvi_dist.analysis.in_memory import refuse_in_memory
from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, Parts, PassPlan, finished, joined
from scvi_dist.analysis.passes.engines import EngineConfig, Executor, usable_cores
from scvi_dist.analysis.passes.part_cuts import PartCuts
from scvi_dist.analysis.passes.part_work import Job, PartOutOfMemory, as_it_is, finish_block
from scvi_dist.analysis.passes.partial_sums import kept
from scvi_dist.analysis.passes.pass_graph import PassGraph, fold_pieces, packed_blocks
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import ConfigError, EngineError, ScviDistError
from scvi_dist.module.base import BaseModule


@contextmanager
def on_ray(given: str, config: EngineConfig) -> Iterator[Executor]:
    """The Ray that is running, or one of this machine's own, which ends with the context."""
    if given:
        raise ConfigError(f"dask='ray' takes nothing behind it, seen {given!r}.")
    if ray.is_initialized():
        yield RayDaskEngine(config)
        return
    named: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"address": "local"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if named:
        named |= {"num_cpus": usable_cores(), "include_dashboard": False}
    ray.init(logging_level="ERROR", log_to_driver=False, **named)
    try:
        yield RayDaskEngine(config)
    finally:
        ray.shutdown()


class RayDaskEngine:
    """Computes passes as Ray tasks, some roots of the merge tree at a time."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def __call__(
        self,
        cell_pass: CellPass,
        module: BaseModule | None,
        cells: StoreCells,
        parts: Parts | None = None,
    ) -> dict[str, np.ndarray]:
        refuse_in_memory(cells, "Ray's workers")
        plan = PassPlan.of(cell_pass, cells, parts)
        sums, total, n_done = kept(self._config, cell_pass, module, cells, plan)
        graph = PassGraph(cell_pass, cells, plan, PartCuts(cells, plan))
        fold = fold_pieces(cell_pass, plan, total, n_done)
        del total
        job = Job.of(cell_pass, module, cells, plan).packed()
        on_progress = cells.config.on_progress
        n_cpus = int(ray.cluster_resources().get("CPU", 1))
        window = 1 + -(-2 * n_cpus // graph.tasks_per_root)
        while not fold.is_complete:
            roots = range(fold.n_done, min(fold.n_done + window, plan.tree.n_roots))
            for root, pieces in zip(roots, _computed(graph, roots, job), strict=True):
                fold.add(plan.tree.height, root, pieces)
            if sums is not None:
                last = fold.is_complete
                sums.write(lambda: joined(fold.total or []), fold.n_done, last=last)
            if on_progress is not None:
                on_progress(plan.cells_before(fold.n_done), plan.n_cells)
        assert fold.total is not None
        return _finished(graph, fold.total, job)


def _computed(graph: PassGraph, roots: range, job: bytes) -> list[list[Partial]]:
    """The blocks of genes of some roots; parts that do not fit are tried in smaller ones."""
    while True:
        shared = delayed(as_it_is)(job)
        graphs = [graph.root(root, shared)[0] for root in roots]
        try:
            return list(dask.compute(*graphs, scheduler=ray_dask_get))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, PartOutOfMemory):
                graph.cuts.split(*cause.args)
            elif isinstance(error, ray.exceptions.OutOfMemoryError):
                # Ray does not say which task it was.
                for root in roots:
                    for part in graph.plan.tree.parts(graph.plan.tree.height, root):
                        graph.cuts.split(part, "Ray ended workers because memory ran out")
            else:
                raise _told(error) from error


def _finished(graph: PassGraph, pieces: list[Partial], job: bytes) -> dict[str, np.ndarray]:
    shared = delayed(as_it_is)(job)
    tasks = [
        delayed(finish_block)(shared, number, packed)
        for number, packed in enumerate(packed_blocks(pieces))
    ]
    try:
        return finished(graph.cell_pass, dask.compute(*tasks, scheduler=ray_dask_get))
    except ray.exceptions.RayError as error:
        raise _told(error) from error


def _told(error: ray.exceptions.RayError) -> Exception:
    """What the task raised says more than that a task failed."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ScviDistError):
        return cause
    return EngineError(f"Ray's workers could not compute the pass: {cause or error}")
