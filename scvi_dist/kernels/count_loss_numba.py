"""Likelihoods of counts by compiled loops, between the matrix products of torch. For CPUs.

Axis suffixes: ``n`` cells, ``r`` those of a block, ``g`` genes, ``h`` hidden units.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvi_dist.kernels import threads
from scvi_dist.kernels.active_units import ActiveProducts
from scvi_dist.kernels.count_rows import (
    CellArrays,
    Dispersions,
    GeneSums,
    fill_dispersions,
    nb_rows,
    poisson_rows,
)
from scvi_dist.kernels.count_terms import COLUMNS, PADDING, Rows, Scratch
from scvi_dist.kernels.dense_rows import STRETCH
from scvi_dist.kernels.problem import CountProblem, CountResult, Head
from scvi_dist.kernels.workspace import Workspace

BLOCK_ENTRIES = 3_000_000
"""Logits of one head in memory: some stay in the cache until they are used again."""
LEAST_ROWS, MOST_ROWS = 64, 512
"""Of a block: matrix products of fewer rows are slow, of more no faster."""

LEAST_ROWS_OF_PART = 16
"""Of fewer rows the products take longer to lay out the weights than to multiply."""
LEAST_ENTRIES_OF_PART = 20_000
"""Logits that take some 0.2 ms: less is not worth a thread."""

MOST_ACTIVE = 0.75
"""Part of the hidden units, from which on dense products are faster."""

_SPACE = Workspace()


def evaluate(problem: CountProblem, weight_n: Tensor, wanted: frozenset[str]) -> CountResult:
    """Losses and derivatives; see :data:`~scvi_dist.kernels.count_loss.Evaluate`."""
    run = _Evaluation(problem, weight_n, wanted)
    n, n_genes = problem.counts.shape
    block = max(LEAST_ROWS, min(MOST_ROWS, BLOCK_ENTRIES // max(n_genes, 1)))
    for first in range(0, n, block):
        run.block(first, min(first + block, n))
    return run.result()


@dataclass(frozen=True, slots=True)
class _Part:
    """What one thread writes to."""

    sums: GeneSums
    dispersions: Dispersions
    scratch: Scratch
    products: ActiveProducts


class _Evaluation:
    """One evaluation: cells are done block by block, those of a block by all threads."""

    def __init__(self, problem: CountProblem, weight_n: Tensor, wanted: frozenset[str]) -> None:
        self.p, self.wanted = problem, wanted
        self.dtype = problem.hidden_nh.dtype
        self.hidden_nh = problem.hidden_nh.contiguous()
        hidden_nh = self.hidden_nh.numpy()
        self.real = hidden_nh.dtype
        # Bits that are not all zero are counted several times as fast as numbers.
        n_active = np.count_nonzero(hidden_nh.view(f"i{self.real.itemsize}"))
        self.is_active = n_active <= MOST_ACTIVE * hidden_nh.size
        counts = problem.counts
        self.rows = Rows(counts.indptr.numpy(), counts.indices.numpy(), counts.data.numpy())
        n = counts.shape[0]
        _check_groups(problem)
        self.cells = CellArrays(
            size=problem.log_size_n.double().exp().numpy(),
            weight=weight_n.double().numpy(),
            group=problem.groups().numpy(),
            loss=np.empty(n),
            size_slope=np.zeros(n),
        )
        self.gradients: dict[str, Tensor] = {}
        if "hidden_nh" in wanted:
            self.gradients["hidden_nh"] = torch.empty_like(self.hidden_nh)
        for name, head in problem.heads:
            if f"{name}.weight" in wanted:
                self.gradients[f"{name}.weight"] = torch.empty_like(head.weight_gh)
        self.table = None if problem.log_theta_tg is None else _table(problem.log_theta_tg)
        least = max(LEAST_ROWS_OF_PART * counts.n_genes, LEAST_ENTRIES_OF_PART)
        n_parts = threads.n_parts(n * counts.n_genes, least)
        self.parts = [self._part(k) for k in range(n_parts)]

    def _part(self, thread: int) -> _Part:
        g, real = self.p.counts.n_genes, self.real
        heads = dict(self.p.heads)
        table = self.p.log_theta_tg
        return _Part(
            GeneSums(
                theta=np.zeros((0 if table is None else len(table), g), real),
                bias=np.zeros(g, real),
                dropout_bias=np.zeros(g if "dropout" in heads else 0, real),
                dispersion_bias=np.zeros(g if "dispersion" in heads else 0, real),
            ),
            self.table or self._own_table(thread),
            Scratch(
                scale=_SPACE.array(f"scale {thread}", (g,), real),
                slope=_SPACE.array(f"slope {thread}", (g,), real),
                logits=_SPACE.array(f"logits {thread}", (g + PADDING,), real),
                counts=_SPACE.array(f"counts {thread}", (COLUMNS, g + PADDING), np.float64),
                genes=_SPACE.array(f"genes {thread}", (g,), np.int64),
                stretch=_SPACE.array(f"stretch {thread}", (3, STRETCH), real),
            ),
            ActiveProducts(_SPACE, str(thread), self.hidden_nh.numpy()),
        )

    def _own_table(self, thread: int) -> Dispersions:
        """A row to fill for each cell, where each has its own."""
        shape = (1, self.p.counts.n_genes)
        names = Dispersions._fields
        return Dispersions(*(_SPACE.array(f"{k} {thread}", shape, self.real) for k in names))

    def block(self, first: int, stop: int) -> None:
        """Losses of some cells, and what they add to the gradients."""
        r, g = stop - first, self.p.counts.n_genes
        blocks = {
            name: torch.from_numpy(_SPACE.array(name, (r, g), self.real))
            for name, _ in self.p.heads
        }
        tasks = [
            partial(self._rows, self.parts[k], blocks, (a, b, first))
            for k, (a, b) in enumerate(threads.cuts(first, stop, len(self.parts)))
        ]
        threads.run(tasks)
        if any(f"{name}.weight" in self.wanted for name in blocks):
            spans = threads.cuts(0, g, len(self.parts))
            threads.run(
                [
                    partial(self._weights, self.parts[k], blocks, (first, stop), ab)
                    for k, ab in enumerate(spans)
                ]
            )

    def _rows(self, part: _Part, blocks: dict[str, Tensor], span: tuple[int, int, int]) -> None:
        a, b, first = span
        mine = {name: block[a - first : b - first] for name, block in blocks.items()}
        hidden_rh = self.hidden_nh[a:b]
        for name, head in self.p.heads:
            weight_hg = head.weight_gh.t()
            if self._takes_active(head):
                rest = weight_hg.numpy(), head.bias_g.numpy(), mine[name].numpy()
                part.products.logits((a, b), head.units, *rest)
            else:
                torch.addmm(head.bias_g, head.seen(hidden_rh), weight_hg, out=mine[name])
        self._loops(part, blocks, span)
        if "hidden_nh" not in self.wanted:
            return
        slope_rh = self.gradients["hidden_nh"][a:b]
        is_first = True
        for name, head in self.p.heads:
            seen_rh = head.seen(slope_rh)
            if self.p.zeros_are_cut and self._takes_active(head):
                given = head.weight_gh.t().numpy(), mine[name].numpy()
                part.products.slopes((a, b), head.units, *given, slope_rh.numpy(), is_first)
            elif is_first and seen_rh.shape == slope_rh.shape:
                torch.mm(mine[name], head.weight_gh, out=slope_rh)
            else:
                if is_first:
                    slope_rh.zero_()
                seen_rh.addmm_(mine[name], head.weight_gh)
            is_first = False

    def _loops(self, part: _Part, blocks: dict[str, Tensor], span: tuple[int, int, int]) -> None:
        flags = self.p.law.scale == "softmax", bool(self.wanted)
        scale_rg = blocks["scale"].numpy()
        if self.p.law.counts == "poisson":
            poisson_rows(span, scale_rg, self.rows, self.cells, part.sums, part.scratch, *flags)
            return
        none = np.empty((0, 0), self.real)
        dropout_rg, log_theta_rg = (
            blocks[name].numpy() if name in blocks else none for name in ("dropout", "dispersion")
        )
        nb_rows(
            span,
            scale_rg,
            dropout_rg,
            log_theta_rg,
            self.rows,
            self.cells,
            part.dispersions,
            part.sums,
            part.scratch,
            *flags,
        )

    def _takes_active(self, head: Head) -> bool:
        """Whether the head's products leave out units that are zero."""
        return self.is_active and head.weight_gh.t().is_contiguous()

    def _weights(
        self,
        part: _Part,
        blocks: dict[str, Tensor],
        rows: tuple[int, int],
        genes: tuple[int, int],
    ) -> None:
        (first, stop), (a, b) = rows, genes
        for name, head in self.p.heads:
            gradient_gh = self.gradients.get(f"{name}.weight")
            if gradient_gh is None:
                continue
            seen_rh = head.seen(self.hidden_nh[first:stop])
            slope_gr = blocks[name][:, a:b].t()
            if self._takes_active(head):
                slope_rg, gradient_hg = blocks[name].numpy(), gradient_gh.t().numpy()
                is_new = first == 0
                part.products.add_weights(rows, head.units, slope_rg, genes, gradient_hg, is_new)
            elif first:
                gradient_gh[a:b].addmm_(slope_gr, seen_rh)
            else:
                torch.mm(slope_gr, seen_rh, out=gradient_gh[a:b])

    def result(self) -> CountResult:
        """The losses, and the gradients that were wanted."""
        found: dict[str, Any] = {
            "log_size_n": lambda: torch.from_numpy(self.cells.size_slope).to(self.dtype),
            "log_theta_tg": self._log_theta_slopes,
            "scale.bias": lambda: self._sum("bias"),
            "dropout.bias": lambda: self._sum("dropout_bias"),
            "dispersion.bias": lambda: self._sum("dispersion_bias"),
        }
        for name, value in found.items():
            if name in self.wanted:
                self.gradients[name] = value()
        return CountResult(torch.from_numpy(self.cells.loss).to(self.dtype), self.gradients)

    def _sum(self, name: str) -> Tensor:
        """The threads' sums, added in their order."""
        total, *others = (getattr(part.sums, name) for part in self.parts)
        for other in others:
            total += other
        return torch.from_numpy(total)

    def _log_theta_slopes(self) -> Tensor:
        assert self.table is not None
        return self._sum("theta").mul_(torch.from_numpy(self.table.theta))


def _table(log_theta_tg: Tensor) -> Dispersions:
    log_theta = log_theta_tg.contiguous().numpy()
    table = Dispersions(*(np.empty_like(log_theta) for _ in Dispersions._fields))
    fill_dispersions(log_theta, table)
    return table


def _check_groups(problem: CountProblem) -> None:
    """Refuse kinds of cells without dispersions: compiled loops would read beside the table."""
    if problem.group_n is None or problem.log_theta_tg is None or not len(problem.group_n):
        return
    low, high = (int(end) for end in torch.aminmax(problem.group_n))
    n_kinds = len(problem.log_theta_tg)
    if low < 0 or high >= n_kinds:
        raise IndexError(
            f"there are dispersions for {n_kinds} kinds of cells (batches or labels), but codes "
            f"from {low} to {high} were seen: these data have a category unknown to the model."
        )
