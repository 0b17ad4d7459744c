"""What is done of a pass in a worker: the same functions on Dask and on Ray.

What all parts need (pass, module, where the cells are) travels once to each worker, as bytes, and
is opened once in each process. Whatever a task returns is new memory: engines may compute a task
again and send its result anywhere.
"""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from threading import Lock
from typing import Any

import cloudpickle
import numpy as np
import torch

from scvi_dist.analysis.passes.cell_pass import (
    CellPass,
    Partial,
    PassPlan,
    Rule,
    cells_of,
    merge,
    merge_into,
    one_torch_thread,
    own_pieces,
)
from scvi_dist.analysis.passes.freed_memory import FREED_MEMORY
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells, StreamConfig
from scvi_dist.dataloaders.source import CellSource, OpenSource
from scvi_dist.errors import ScviDistError, StoreChanged, StoreNotFound
from scvi_dist.module.base import BaseModule

_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all parts of a pass need."""

    cell_pass: CellPass
    module: BaseModule | None
    """On the CPU, whence a worker moves it to ``device``."""
    device: str
    source: CellSource
    digest: str
    """Of the store, as the driver sees it."""
    config: StreamConfig
    blocks: tuple[slice, ...]

    @classmethod
    def of(
        cls, cell_pass: CellPass, module: BaseModule | None, cells: StoreCells, plan: PassPlan
    ) -> "Job":
        """The job of a pass over cells."""
        device = "cpu" if module is None else module.device.type
        if module is not None and device != "cpu":
            module = copy.deepcopy(module).cpu()
        return cls(
            cell_pass=cell_pass,
            module=module,
            device=device,
            source=cells.source.cell_source,
            digest=cells.source.store.digest(),
            config=replace(cells.config, on_progress=None),
            blocks=plan.blocks,
        )

    def packed(self) -> bytes:
        """The job in a form that travels; classes of the user's own program travel with it."""
        return cloudpickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)


@dataclass(frozen=True, slots=True)
class PartCells:
    """The cells of a part, in a form that travels."""

    selection: Selection
    payload: Any
    budget_bytes: int
    """For the blocks in memory."""

    @classmethod
    def of(
        cls, cell_pass: CellPass, cells: StoreCells, start: int, stop: int, budget_bytes: int
    ) -> "PartCells":
        """The cells at positions ``start … stop - 1``."""
        positions = np.arange(start, stop, dtype=np.int64)
        return cls(
            selection=cells.selection.subset(positions),
            payload=cell_pass.payload(positions),
            budget_bytes=budget_bytes,
        )


class PartOutOfMemory(MemoryError):
    """A part did not fit; its number is the first argument."""


def compute_parts(job: bytes, parts: bytes, numbers: Sequence[int]) -> list[Any]:
    """The merged result of some parts that follow each other, in blocks of genes.

    Parameters
    ----------
    job
        A packed :class:`Job`.
    parts
        Pickled list of :class:`PartCells`.
    numbers
        The number of the part that each of them belongs to.

    Returns
    -------
    A result for each block of genes, and at the end a number, to tell that it is done.

    Raises
    ------
    PartOutOfMemory
        A part does not fit in memory; it names the part.
    """
    todo: list[PartCells] = pickle.loads(parts)
    merged: Partial | None = None
    with FREED_MEMORY.kept(), borrowed(job) as (opened, module), one_torch_thread():
        for number, part in zip(numbers, todo, strict=True):
            partial = _computed(opened, module, number, part)
            merged = (
                partial
                if merged is None
                else merge_into(opened.job.cell_pass.rules, merged, partial)
            )
            del partial
        assert merged is not None
        pieces = own_pieces(opened.job.cell_pass, merged, opened.job.blocks)
        return [*pieces, len(todo)]


def _computed(
    opened: "_OpenJob", module: BaseModule | None, number: int, part: PartCells
) -> Partial:
    job = opened.job
    cells = cells_of(
        StoreCells(opened.source, None, replace(job.config, budget_bytes=part.budget_bytes)),
        part.selection,
    )
    rows = part.selection.rows()
    where = f"rows {rows.min()} to {rows.max()} of {opened.source.where}"
    try:
        return job.cell_pass.compute(module, cells, part.payload)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise PartOutOfMemory(number, f"{where}: {error or 'out of memory'}") from error
    except ScviDistError:
        raise
    except Exception as error:
        error.add_note(f"while computing {type(job.cell_pass).__name__} of {where}")
        raise


def merge_pieces(rules: Mapping[str, Rule], pieces: Sequence[Partial]) -> Partial:
    """Results of a block of genes as one, in the order of the cells, in new memory."""
    if len(pieces) == 1:
        return pieces[0]
    merged = merge(rules, pieces[0], pieces[1])
    for piece in pieces[2:]:
        merged = merge_into(rules, merged, piece)
    return merged


def finish_block(job: bytes, number: int, merged: bytes) -> Partial:
    """A block of genes, finished."""
    with borrowed(job) as (opened, _):
        return opened.job.cell_pass.finish(pickle.loads(merged), opened.job.blocks[number])


def as_it_is(job: bytes) -> bytes:
    """The job: a task whose result workers give to each other, and which can be done again."""
    return job


@dataclass
class _OpenJob:
    """A job that this process has opened, and modules that no thread uses."""

    job: Job
    source: OpenSource
    idle: list[BaseModule] = field(default_factory=list)

    @classmethod
    def of(cls, data: bytes) -> "_OpenJob":
        job: Job = pickle.loads(data)
        return cls(job, _same_store(job), [] if job.module is None else [_placed(job)])


_JOBS: "OrderedDict[str, _OpenJob]" = OrderedDict()
_LOCK = Lock()


@contextmanager
def borrowed(data: bytes) -> Iterator[tuple[_OpenJob, BaseModule | None]]:
    """A job, opened once in each process, and its module, which no other thread has meanwhile."""
    key = blake2b(data, digest_size=16).hexdigest()
    with _LOCK:
        if key not in _JOBS:
            _JOBS[key] = _OpenJob.of(data)
            while len(_JOBS) > _KEPT:
                _JOBS.popitem(last=False)
        _JOBS.move_to_end(key)
        opened = _JOBS[key]
        module = opened.idle.pop() if opened.idle else None
    if module is None and opened.job.module is not None:
        module = _placed(opened.job)
    try:
        yield opened, module
    finally:
        if module is not None:
            with _LOCK:
                opened.idle.append(module)


def _placed(job: Job) -> BaseModule:
    """A copy of the module of its own, on the device that it was on if there is one here."""
    assert job.module is not None
    has_device = job.device != "cuda" or torch.cuda.is_available()
    return copy.deepcopy(job.module).to(job.device if has_device else "cpu")


def _same_store(job: Job) -> OpenSource:
    """The store, if it is the one that the driver sees."""
    try:
        source = job.source.open()
        if source.store.digest() != job.digest:
            # What this process opened before may have been replaced since.
            source = job.source.reopen()
    except StoreNotFound as error:
        raise StoreNotFound(
            f"{error} A worker does not find what the driver has opened: put the cells where "
            "every worker sees them (a shared folder, s3://…), or compute without workers "
            "(dask='threads')."
        ) from error
    if source.store.digest() != job.digest:
        raise StoreChanged(
            f"{source.where} is another store for a worker than for the driver, or it was changed "
            "meanwhile: their digests differ. Give a URL that means the same everywhere."
        )
    return source
