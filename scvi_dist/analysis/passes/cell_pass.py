"""One pass over cells, in parts whose results merge: what every statistic over an atlas is made of.

A pass says what is computed of some cells and how two results become one. Engines (in this process,
on Dask, on Ray) decide where the parts are computed; they merge along one tree, so the result is
the same to the last bit whatever the engine, the number of workers, or parts computed twice.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch

from scvi_dist.analysis.passes.merge_tree import MergeTree, TreeFold
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import ConfigError, PlanError
from scvi_dist.module.base import BaseModule

Partial: TypeAlias = Mapping[str, np.ndarray]
"""Statistics of some cells by name; sums in float64 or integers."""
Rule: TypeAlias = Literal["sum", "max", "min", "concat"]
"""How two results of a name become one; ``concat`` appends along the first axis, which is cells."""

_ADD: dict[Rule, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class CellPass(ABC):
    """What is computed of each part of the cells. Small and picklable: workers get a copy."""

    rules: ClassVar[Mapping[str, Rule]]
    """Name of each result -> how it merges."""
    by_gene: ClassVar[frozenset[str]] = frozenset()
    """Results whose last axis is genes: they merge, travel and are finished by blocks of genes."""

    def n_genes(self, cells: StoreCells) -> int:
        """Length of the longest axis of genes of :attr:`by_gene` results, or more; shorter ones
        have nothing in the last blocks."""
        schema = cells.source.schema
        return schema.n_vars + schema.n_proteins

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
        """The statistics of some cells, in arrays of their own: they are added to in place.

        Several threads may compute with one pass, which must therefore not change.

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
        """Called once for each block of genes with everything merged, in any process.

        Parameters
        ----------
        merged
            :attr:`by_gene` results of these genes, and whole results of all others.
        genes
            Which genes of the axis they are.

        Returns
        -------
        Results whose last axis is these genes. Of those of ``merged`` that have no axis of genes,
        what the first block gives is taken.
        """
        return merged


def merge(rules: Mapping[str, Rule], first: Partial, second: Partial) -> dict[str, np.ndarray]:
    """Two results as one; ``first`` comes from the earlier cells."""
    return {
        name: np.concatenate([value, second[name]])
        if rules[name] == "concat"
        else _ADD[rules[name]](value, second[name])
        for name, value in first.items()
    }


def merge_into(rules: Mapping[str, Rule], first: Partial, second: Partial) -> dict[str, np.ndarray]:
    """As :func:`merge`, in the memory of ``first`` where that has room for the result."""
    merged = {}
    for name, value in first.items():
        other = second[name]
        rule = rules[name]
        fits = (
            rule != "concat"
            and isinstance(value, np.ndarray)
            and value.flags.writeable
            and value.shape == np.shape(other)
            and value.dtype == np.result_type(value, other)
        )
        if fits:
            merged[name] = _ADD[rule](value, other, out=value)
        else:
            merged |= merge({name: rule}, {name: value}, {name: other})
    return merged


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PassPlan:
    """What there is to do for a pass: the same for every engine."""

    parts: tuple[tuple[int, int], ...]
    """Positions ``(start, stop)`` of the cells of each part."""
    blocks: tuple[slice, ...]
    """Genes of each block of results."""

    @classmethod
    def of(cls, cell_pass: CellPass, cells: StoreCells, parts: Parts | None) -> "PassPlan":
        """The plan of a pass over cells."""
        parts = Parts() if parts is None else parts
        n_genes = cell_pass.n_genes(cells) if cell_pass.by_gene else 1
        return cls(
            parts=tuple(parts.cells(cells.n_cells, cells.source.store.chunk_rows)),
            blocks=tuple(parts.genes(n_genes)),
        )

    @property
    def tree(self) -> MergeTree:
        """How the parts merge."""
        return MergeTree(len(self.parts))

    @property
    def n_cells(self) -> int:
        """Cells of all parts."""
        return self.parts[-1][1]

    def parts_before(self, root: int) -> int:
        """Parts of the roots before this one."""
        tree = self.tree
        return tree.parts(tree.height, root - 1).stop if root else 0

    def cells_before(self, root: int) -> int:
        """Cells of the roots before this one."""
        n_parts = self.parts_before(root)
        return self.parts[n_parts - 1][1] if n_parts else 0


def part_of(cells: StoreCells, start: int, stop: int) -> StoreCells:
    """The cells at positions ``start … stop - 1``, as cells of their own with the same noise."""
    return cells_of(cells, cells.selection.subset(np.arange(start, stop, dtype=np.int64)))


def cells_of(cells: StoreCells, selection: Selection) -> StoreCells:
    """Other cells of the same source; who computes them tells of no progress."""
    return StoreCells(cells.source, selection, replace(cells.config, on_progress=None))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Within it, torch computes on the calling thread alone.

    Sums over cells differ in the last digits with the number of threads, and engines that compute
    several parts at a time have a thread for each anyway.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cut_genes(
    cell_pass: CellPass, partial: Partial, blocks: Sequence[slice]
) -> list[dict[str, np.ndarray]]:
    """A result cut into blocks of genes; what has no gene axis goes with the first block.

    Raises
    ------
    PlanError
        A result has more genes than the pass says.
    """
    pieces: list[dict[str, np.ndarray]] = [{} for _ in blocks]
    for name, value in partial.items():
        if name in cell_pass.by_gene:
            if value.shape[-1] > blocks[-1].stop:
                raise PlanError(
                    f"{type(cell_pass).__name__}: {name} has {value.shape[-1]} genes, but "
                    f"n_genes() says {blocks[-1].stop}."
                )
            for piece, genes in zip(pieces, blocks, strict=True):
                piece[name] = value[..., genes]
        else:
            pieces[0][name] = value
    return pieces


def own_pieces(
    cell_pass: CellPass, partial: Partial, blocks: Sequence[slice]
) -> Iterator[dict[str, np.ndarray]]:
    """As :func:`cut_genes`, in memory of their own: views keep the whole, and travel with it."""
    for piece in cut_genes(cell_pass, partial, blocks):
        yield {name: np.array(value) for name, value in piece.items()}


def run_here(
    cell_pass: CellPass,
    module: BaseModule | None,
    cells: StoreCells,
    parts: Parts | None = None,
) -> dict[str, np.ndarray]:
    """The whole pass in this thread, in memory that hardly grows with the cells.

    There is one result being computed and one of each level of the merge tree.
    """
    plan = PassPlan.of(cell_pass, cells, parts)
    fold = fold_of(cell_pass, plan)
    with one_torch_thread():
        for index, (start, stop) in enumerate(plan.parts):
            payload = cell_pass.payload(np.arange(start, stop, dtype=np.int64))
            partial = cell_pass.compute(module, part_of(cells, start, stop), payload)
            fold.add(0, index, partial)
            del partial
            if cells.config.on_progress is not None:
                cells.config.on_progress(stop, plan.n_cells)
    assert fold.total is not None
    pieces = cut_genes(cell_pass, fold.total, plan.blocks)
    return finished(cell_pass, map(cell_pass.finish, with_common(pieces), plan.blocks))


def fold_of(
    cell_pass: CellPass, plan: PassPlan, total: Partial | None = None, n_done: int = 0
) -> TreeFold[Partial]:
    """What merges whole results of parts."""
    rules = cell_pass.rules
    return TreeFold(
        plan.tree, lambda first, second: merge_into(rules, first, second), total, n_done
    )


def with_common(pieces: Sequence[Partial]) -> list[Partial]:
    """Blocks of genes, each with the results that have no axis of genes."""
    common = {name: value for name, value in pieces[0].items() if name not in pieces[-1]}
    return [{**common, **piece} for piece in pieces]


def finished(cell_pass: CellPass, blocks: Iterable[Partial]) -> dict[str, np.ndarray]:
    """What :meth:`CellPass.finish` gave of each block, as whole arrays."""
    common = set(cell_pass.rules) - cell_pass.by_gene
    return joined(
        {name: value for name, value in block.items() if number == 0 or name not in common}
        for number, block in enumerate(blocks)
    )


def joined(pieces: Iterable[Partial]) -> dict[str, np.ndarray]:
    """Blocks of genes as whole arrays; the last axis is joined."""
    collected: dict[str, list[np.ndarray]] = {}
    for piece in pieces:
        for name, value in piece.items():
            collected.setdefault(name, []).append(value)
    return {
        name: values[0] if len(values) == 1 else np.concatenate(values, axis=-1)
        for name, values in collected.items()
    }
