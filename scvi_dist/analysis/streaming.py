"""Cells from a store through a module, in bounded memory, in the caller's order.

Rows are read sorted, block by block, one block ahead; each result is put where the caller's order
wants it. Results stay in memory, or go to a store shard by shard.

Axis suffixes: ``n`` cells.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from scvi_dist.analysis.noise import cell_noise
from scvi_dist.analysis.selection import Selection
from scvi_dist.batch import REGISTRY_KEYS, CellBatch, CsrRows, SparseCounts
from scvi_dist.data.counts import check_counts, raise_or_warn
from scvi_dist.dataloaders.collate import dense_tensor, sparse_tensors
from scvi_dist.dataloaders.rows import splitmix64
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.dataloaders.threads import one_ahead
from scvi_dist.errors import ConfigError, PlanError
from scvi_dist.kernels import threads
from scvi_dist.module.base import Tensors, to_device

OnProgress = Callable[[int, int], None]
"""Called with the cells done so far and the cells in all."""

MAX_BLOCK_CELLS = 65_536
READ_LIMIT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """How cells are read and fed; no result depends on it but by ``seed``."""

    batch_size: int = 128
    """Cells of a forward pass."""
    budget_bytes: int = 256 << 20
    """What the blocks in memory, one in use and one being read, may take."""
    seed: int = 0
    """Of the noise of every cell."""
    on_progress: OnProgress | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.budget_bytes < 1 or self.seed < 0:
            raise ConfigError(
                "batch_size and budget_bytes must be at least 1 and seed at least 0, seen "
                f"{self.batch_size}, {self.budget_bytes} and {self.seed}."
            )


@dataclass(frozen=True, slots=True)
class CellGroup:
    """The cells of one forward pass."""

    positions: np.ndarray
    """int64 ``[n]``: where in the caller's order each cell is."""
    keys: np.ndarray
    """uint64 ``[n]``: what each cell's noise follows from."""
    tensors: Tensors
    """What the module sees of them."""


class Cells(Protocol):
    """Where a computation gets its cells from."""

    @property
    def n_cells(self) -> int | None:
        """Cells in all, if that is known beforehand."""

    def groups(self) -> Iterator[CellGroup]:
        """All cells, each once."""


class StoreCells:
    """Selected cells of a store.

    Parameters
    ----------
    source
        The store, and the codes of its rows.
    selection
        Which rows, in which order; all of them where None.
    config
        How to read and feed them.
    """

    def __init__(
        self,
        source: OpenSource,
        selection: Selection | None = None,
        config: StreamConfig | None = None,
    ) -> None:
        self.source = source
        self.selection = Selection(source.store.n_obs) if selection is None else selection
        self.config = StreamConfig() if config is None else config
        if self.selection.n_obs != source.store.n_obs:
            raise PlanError(
                f"the cells were selected among {self.selection.n_obs} rows, but "
                f"{source.where} has {source.store.n_obs}."
            )

    @property
    def n_cells(self) -> int:
        return self.selection.n_cells

    @property
    def block_cells(self) -> int:
        """Cells that are read at a time: whole chunks of the store where they fit the budget."""
        store = self.source.store
        fit = int(self.config.budget_bytes / (2 * max(self.source.bytes_per_cell, 1)))
        fit = max(self.config.batch_size, min(fit, MAX_BLOCK_CELLS))
        return fit // store.chunk_rows * store.chunk_rows if fit >= store.chunk_rows else fit

    def obs_names(self) -> np.ndarray:
        """Names of the cells, object ``[n]`` of str."""
        return self.selection.obs_names(self.source.store)

    def groups(self, start: int = 0, stop: int | None = None) -> Iterator[CellGroup]:
        """The cells at positions ``start … stop - 1``, in ascending order of their rows."""
        for block in self.blocks(start, stop):
            yield from self.cut(block)

    def blocks(self, start: int = 0, stop: int | None = None) -> "Iterator[Block]":
        """The same cells in larger pieces, the next of which is read while one is in use."""
        stop = self.n_cells if stop is None else stop
        return one_ahead(
            self._read(start, stop),
            limit_s=READ_LIMIT_S,
            timed_out=lambda: f"{self.source.where} gave no cells for {READ_LIMIT_S:.0f} s.",
        )

    def _read(self, start: int, stop: int) -> "Iterator[Block]":
        order = self.selection.reading_order(start, stop)
        size = self.block_cells
        for a in range(0, stop - start, size):
            b = min(a + size, stop - start)
            at = np.arange(start + a, start + b) if order is None else order[a:b]
            rows = self.selection.at(at)
            counts = self._counts(rows)
            if self.source.check_counts:
                report = check_counts(counts, rows, self.source.where)
                # Fractions and empty cells are for setup and training to warn of, once.
                if report.n_nan or report.n_negative:
                    raise_or_warn(report, self.source.schema.var_names, self.source.where)
            fields = self.source.coded_obs.take(rows)
            if self.source.proteins is not None:
                fields[REGISTRY_KEYS.PROTEIN_EXP_KEY] = self.source.proteins.read_at(rows)
            if self.source.minified is not None:
                fields |= self.source.minified.read_at(rows)
            yield Block(at, rows, counts, fields)

    def _counts(self, rows: np.ndarray) -> CsrRows:
        """The counts of these rows; a stretch of a matrix in memory is not copied."""
        store, first, stop = self.source.store, rows[0], rows[0] + len(rows)
        # A matrix is looked at as a whole, which pays where much of it is needed.
        is_stretch = 2 * self.n_cells >= store.n_obs and np.array_equal(
            rows, np.arange(first, stop)
        )
        held = self.source.rows_in_memory if is_stretch else None
        if held is None:
            return store.read_rows_at(rows, self.source.genes)
        a, b = held.indptr[first], held.indptr[stop]
        pointers = held.indptr[first : stop + 1] - a
        return CsrRows(pointers, held.indices[a:b], held.data[a:b], held.n_genes)

    def cut(self, block: "Block") -> Iterator[CellGroup]:
        """The cells of a block, in groups of one forward pass each."""
        size = self.config.batch_size
        for a in range(0, len(block.rows), size):
            b = min(a + size, len(block.rows))
            fields = {key: torch.from_numpy(codes[a:b]) for key, codes in block.fields.items()}
            batch = CellBatch(
                x=_sparse(block.counts, a, b), fields=fields, rows=block.rows[a:b], n_global=b - a
            )
            at = block.positions[a:b]
            yield CellGroup(at, self.selection.keys(at, self.config.seed), batch)


@dataclass(frozen=True, slots=True)
class Block:
    """Cells that are in memory, in ascending order of their rows."""

    positions: np.ndarray
    """int64 ``[n]``: where in the caller's order each cell is."""
    rows: np.ndarray
    """int64 ``[n]``: rows of the store."""
    counts: CsrRows
    fields: dict[str, np.ndarray]
    """Registry key -> ``[n, k]``."""


def _sparse(counts: CsrRows, start: int, stop: int) -> SparseCounts:
    first, last = counts.indptr[start], counts.indptr[stop]
    part = CsrRows(
        counts.indptr[start : stop + 1] - first,
        counts.indices[first:last].astype(np.int32, copy=False),
        counts.data[first:last].astype(np.float32),
        counts.n_genes,
    )
    return sparse_tensors(part)


class LoaderCells:
    """The cells that a user's own data loader gives, in the order in which it gives them.

    Parameters
    ----------
    batches
        Minibatches as mappings of tensors by registry key.
    seed
        Of the noise; a cell's noise follows from its place.
    """

    n_cells = None

    def __init__(self, batches: Iterable[Mapping[str, Tensor]], seed: int = 0) -> None:
        self._batches = batches
        self._seed = seed

    def groups(self) -> Iterator[CellGroup]:
        first = np.random.SeedSequence(self._seed).generate_state(1, np.uint64)[0]
        start = 0
        for tensors in self._batches:
            stop = start + len(tensors[REGISTRY_KEYS.BATCH_KEY])
            positions = np.arange(start, stop)
            yield CellGroup(positions, splitmix64(positions.astype(np.uint64) + first), tensors)
            start = stop


Compute = Callable[[CellGroup], Mapping[str, Tensor]]
"""What is computed of some cells; the cells are the first axis of every tensor."""


def computed(
    module: nn.Module, groups: Iterable[CellGroup], compute: Compute
) -> Iterator[tuple[CellGroup, dict[str, Tensor]]]:
    """Each group, and what is computed of it on the module's device, on the CPU.

    The module is in evaluation mode, and its noise belongs to cells.
    """
    device = next(module.parameters()).device
    in_loops = device.type == "cpu" and getattr(module, "kernel", None) == "numba"
    with evaluating(module), cell_noise(module) as noise:
        for group in groups:
            noise.bind(group.keys)
            # Not around the loop: whoever iterates over this would be in these modes too.
            with torch.inference_mode(), threads.for_loops(in_loops):
                there = replace(group, tensors=_on_device(group.tensors, device, module))
                values = {name: value.cpu() for name, value in compute(there).items()}
            yield group, values


def _on_device(tensors: Tensors, device: torch.device, module: nn.Module) -> Tensors:
    if device.type == "cpu" and isinstance(tensors, CellBatch):
        # Where kernels compute, counts stay sparse until somebody asks for dense ones.
        if isinstance(tensors.x, SparseCounts) and getattr(module, "kernel", "torch") == "torch":
            return replace(tensors, x=dense_tensor(tensors.x))
        return tensors
    return to_device(tensors, device)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within it the module is in evaluation mode."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def collect(module: nn.Module, cells: Cells, compute: Compute) -> dict[str, np.ndarray]:
    """Results of all cells, in the caller's order: name -> ``[n, ...]``."""
    if cells.n_cells is None:
        parts = [values for _, values in computed(module, cells.groups(), compute)]
        return {k: torch.cat([part[k] for part in parts]).numpy() for k in parts[0]}
    on_progress = cells.config.on_progress if isinstance(cells, StoreCells) else None
    return place(computed(module, cells.groups(), compute), 0, cells.n_cells, on_progress)


def place(
    results: Iterable[tuple[CellGroup, Mapping[str, Tensor]]],
    start: int,
    n: int,
    on_progress: OnProgress | None = None,
) -> dict[str, np.ndarray]:
    """Arrays ``[n, ...]`` of the results for positions ``start … start + n - 1``."""
    arrays: dict[str, np.ndarray] = {}
    done = 0
    for group, values in results:
        for name, value in values.items():
            if name not in arrays:
                arrays[name] = np.empty((n, *value.shape[1:]), dtype=value.numpy().dtype)
            arrays[name][group.positions - start] = value.numpy()
        done += len(group.positions)
        if on_progress is not None:
            on_progress(done, n)
    return arrays


def mean(module: nn.Module, cells: Cells, compute: Compute) -> dict[str, float]:
    """Mean over all cells of each result ``[n]``, in constant memory, summed in float64."""
    sums: dict[str, float] = {}
    n_cells = 0
    for group, values in computed(module, cells.groups(), compute):
        n_cells += len(group.positions)
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.double().sum())
    return {name: total / n_cells for name, total in sums.items()}
