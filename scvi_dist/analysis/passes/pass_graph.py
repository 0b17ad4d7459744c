"""A pass as Dask graphs, one for each root of its merge tree; whoever runs Dask graphs runs it."""

import pickle
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from dask.delayed import Delayed, delayed

from scvi_dist.analysis.passes.cell_pass import (
    CellPass,
    Partial,
    PassPlan,
    merge_into,
    own_pieces,
    with_common,
)
from scvi_dist.analysis.passes.merge_tree import FAN_IN, TreeFold
from scvi_dist.analysis.passes.part_cuts import PartCuts
from scvi_dist.analysis.passes.part_work import PartCells, compute_parts, merge_pieces
from scvi_dist.analysis.streaming import StoreCells

_PART = "scvi_dist-part"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A task that computes parts."""

    done: Delayed
    """Something small that is there once the task is done."""
    n_cells: int


@dataclass
class PassGraph:
    """Builds the graphs of a pass.

    Parameters
    ----------
    fuses
        Whether four parts that merge are computed one after the other by one task: less travels,
        if there is work for everybody even so.
    """

    cell_pass: CellPass
    cells: StoreCells
    plan: PassPlan
    cuts: PartCuts
    fuses: bool = False

    @property
    def tasks_per_root(self) -> int:
        """Tasks that compute parts of the first root, which has the most."""
        n_parts = len(self.plan.tree.parts(self.plan.tree.height, 0))
        return -(-n_parts // FAN_IN) if self.fuses else n_parts

    def root(self, index: int, job: Delayed) -> tuple[list[Delayed], list[Leaf]]:
        """The graph of a root.

        Returns
        -------
        Its result in blocks of genes, and something small of every task that computes parts.
        """
        leaves: list[Leaf] = []
        attempt = uuid.uuid4().hex[:8]
        return self._node(self.plan.tree.height, index, job, attempt, leaves), leaves

    def _node(
        self, level: int, index: int, job: Delayed, attempt: str, leaves: list[Leaf]
    ) -> list[Delayed]:
        if level == (1 if self.fuses else 0):
            leaf, pieces = self._leaf(self.plan.tree.parts(level, index), job, attempt)
            leaves.append(leaf)
            return pieces
        children = [
            self._node(level - 1, child, job, attempt, leaves)
            for child in self.plan.tree.children(level, index)
        ]
        rules = dict(self.cell_pass.rules)
        return [
            delayed(merge_pieces)(
                rules,
                [child[block] for child in children],
                dask_key_name=f"scvi_dist-merge-{attempt}-{level}-{index}-{block}",
            )
            for block in range(len(self.plan.blocks))
        ]

    def _leaf(self, parts: range, job: Delayed, attempt: str) -> tuple[Leaf, list[Delayed]]:
        todo = [(part, *piece) for part in parts for piece in self.cuts.of(part)]
        cells = [
            PartCells.of(self.cell_pass, self.cells, start, stop, self.cuts.budget_bytes(part))
            for part, start, stop in todo
        ]
        n_blocks = len(self.plan.blocks)
        # Bytes: Dask would look into anything else for graphs, cell by cell.
        computed = delayed(compute_parts, nout=n_blocks + 1)(
            job,
            pickle.dumps(cells, protocol=pickle.HIGHEST_PROTOCOL),
            [part for part, _, _ in todo],
            dask_key_name=f"{_PART}-{attempt}-{parts.start}-{parts.stop}",
        )
        leaf = Leaf(computed[n_blocks], sum(stop - start for _, start, stop in todo))
        return leaf, [computed[block] for block in range(n_blocks)]

    def parts_of_task(self, key: str) -> range | None:
        """The parts that the task of this key computes; None for another kind of task."""
        if not key.startswith(f"{_PART}-"):
            return None
        start, stop = key.rsplit("-", 2)[1:]
        return range(int(start), int(stop))


def fold_pieces(
    cell_pass: CellPass, plan: PassPlan, total: Partial | None, n_done: int
) -> TreeFold[list[Partial]]:
    """What merges results that come in blocks of genes; goes on from whole results."""
    rules = cell_pass.rules

    def merge_blocks(first: list[Partial], second: list[Partial]) -> list[Partial]:
        return [merge_into(rules, a, b) for a, b in zip(first, second, strict=True)]

    pieces: list[Partial] | None = None
    if total is not None:
        pieces = [*own_pieces(cell_pass, total, plan.blocks)]
    return TreeFold(plan.tree, merge_blocks, pieces, n_done)


def packed_blocks(pieces: Sequence[Partial]) -> list[bytes]:
    """Merged blocks of genes as they travel to where they are finished."""
    return [
        pickle.dumps(dict(block), protocol=pickle.HIGHEST_PROTOCOL) for block in with_common(pieces)
    ]
