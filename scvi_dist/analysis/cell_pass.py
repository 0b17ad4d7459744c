"""One pass over cells, in parts whose results merge: what every statistic over an atlas is made of.

A pass says what is computed of some cells and how two results become one. Engines (in this process,
on Dask, on Ray) decide where the parts are computed; they merge in the order of the parts, so the
result does not depend on the engine, on the number of workers, or on parts computed twice.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule

Partial: TypeAlias = Mapping[str, np.ndarray]
"""Statistics of some cells by name; sums in float64 or integers."""
Rule: TypeAlias = Literal["sum", "max", "min", "concat"]
"""How two results of a name become one; ``concat`` appends along the first axis, which is cells."""

_MERGE: dict[Rule, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "concat": lambda first, second: np.concatenate([first, second]),
}


class CellPass(ABC):
    """What is computed of each part of the cells. Small and picklable: workers get a copy."""

    rules: ClassVar[Mapping[str, Rule]]
    """Name of each result -> how it merges."""
    by_gene: ClassVar[frozenset[str]] = frozenset()
    """Results whose last axis is genes: they merge, travel and are finished by blocks of genes."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """JSON values that name the computation; with the digests of module, cells and data they
        decide whether parts that were computed before are used again."""

    def payload(self, positions: np.ndarray) -> Any:
        """What only the cells at these positions need, e.g. their groups; picklable."""
        return None

    @abstractmethod
    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        """The statistics of some cells.

        Parameters
        ----------
        module
            In this worker's memory and used by nobody else meanwhile; None for statistics of the
            counts alone.
        cells
            The part's cells, in the caller's order; their noise is that which they have in any
            other part.
        payload
            As :meth:`payload` gave it.
        """

    def finish(self, merged: Partial, genes: slice) -> Partial:
        """Called once for each block of genes with everything merged, where it was merged."""
        return merged


def merge(rules: Mapping[str, Rule], first: Partial, second: Partial) -> dict[str, np.ndarray]:
    """Two results as one; ``first`` comes from the earlier cells."""
    return {name: _MERGE[rules[name]](first[name], second[name]) for name in first}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """How cells and genes are cut; no result depends on it but through rounding."""

    part_cells: int = 16_384
    """Cells of a part; rounded to whole chunks of the store."""
    block_genes: int = 1_024
    """Genes of a block of results."""

    def __post_init__(self) -> None:
        if self.part_cells < 1 or self.block_genes < 1:
            raise ConfigError(
                "part_cells and block_genes must be at least 1, seen "
                f"{self.part_cells} and {self.block_genes}."
            )

    def cells(self, n_cells: int, chunk_rows: int = 1) -> list[tuple[int, int]]:
        """Positions ``(start, stop)`` of the parts, in order."""
        size = max(self.part_cells // chunk_rows, 1) * chunk_rows
        return [(a, min(a + size, n_cells)) for a in range(0, n_cells, size)]

    def genes(self, n_genes: int) -> list[slice]:
        """The blocks of genes, in order."""
        size = self.block_genes
        return [slice(a, min(a + size, n_genes)) for a in range(0, n_genes, size)]


def part_of(cells: StoreCells, start: int, stop: int) -> StoreCells:
    """The cells at positions ``start … stop - 1``, as cells of their own with the same noise."""
    selection = cells.selection.subset(np.arange(start, stop, dtype=np.int64))
    return StoreCells(cells.source, selection, cells.config)


def cut_genes(
    cell_pass: CellPass, partial: Partial, blocks: Sequence[slice]
) -> list[dict[str, np.ndarray]]:
    """A result cut into blocks of genes; what has no gene axis goes with the first block."""
    pieces: list[dict[str, np.ndarray]] = [{} for _ in blocks]
    for name, value in partial.items():
        if name in cell_pass.by_gene:
            for piece, genes in zip(pieces, blocks, strict=True):
                piece[name] = value[..., genes]
        else:
            pieces[0][name] = value
    return pieces


def run_here(
    cell_pass: CellPass,
    module: BaseModule | None,
    cells: StoreCells,
    parts: Parts | None = None,
) -> dict[str, np.ndarray]:
    """The whole pass in this thread, in memory that does not grow with the cells."""
    parts = Parts() if parts is None else parts
    total: Partial | None = None
    for start, stop in parts.cells(cells.n_cells, cells.source.store.chunk_rows):
        payload = cell_pass.payload(np.arange(start, stop, dtype=np.int64))
        partial = cell_pass.compute(module, part_of(cells, start, stop), payload)
        total = partial if total is None else merge(cell_pass.rules, total, partial)
    assert total is not None
    return joined(cell_pass, finished(cell_pass, total, parts))


def finished(cell_pass: CellPass, merged: Partial, parts: Parts) -> Iterator[Partial]:
    """Each block of genes of a merged result, finished."""
    n_genes = max(
        (merged[name].shape[-1] for name in cell_pass.by_gene if name in merged), default=1
    )
    blocks = parts.genes(n_genes)
    for piece, genes in zip(cut_genes(cell_pass, merged, blocks), blocks, strict=True):
        yield cell_pass.finish(piece, genes)


def joined(cell_pass: CellPass, pieces: Iterator[Partial]) -> dict[str, np.ndarray]:
    """Finished blocks of genes as whole arrays; the last axis is joined."""
    collected: dict[str, list[np.ndarray]] = {}
    for piece in pieces:
        for name, value in piece.items():
            collected.setdefault(name, []).append(value)
    return {
        name: values[0] if len(values) == 1 else np.concatenate(values, axis=-1)
        for name, values in collected.items()
    }
