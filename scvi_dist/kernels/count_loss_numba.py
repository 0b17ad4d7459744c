"""Likelihoods of counts by compiled loops, between the matrix products of torch. For CPUs.

Axis suffixes: ``n`` cells, ``r`` those of a block, ``g`` genes, ``h`` hidden units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

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
_NO_GROUPS = np.empty(0, np.int64)


def evaluate(problem: CountProblem, weight_n: Tensor, wanted: frozenset[str]) -> CountResult:
    """Losses and derivatives; see :data:`~scvi_dist.kernels.count_loss.Evaluate`."""
    run = _Evaluation(problem, weight_n, wanted)
    n, n_genes = problem.counts.shape
    block = max(LEAST_ROWS, min(MOST_ROWS, BLOCK_ENTRIES // max(n_genes, 1)))
    for first in range(0, n, block):
        run.block(first, min(first + block, n))
    return run.result()


class _HeadArrays(NamedTuple):
    """What the products of a head need."""

    head: Head
    is_active: bool
    """Whether they leave out units that are zero."""
    weight_hg: np.ndarray
    bias_g: np.ndarray
    gradient_hg: np.ndarray | None
    """To be filled; None where it is not wanted."""

    def seen(self, hidden_nh: np.ndarray) -> Tensor:
        """The hidden units that the weights are for; a view."""
        return self.head.seen(torch.from_numpy(hidden_nh))


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
        counts, self.hidden_nh = problem.counts, problem.hidden_nh.contiguous().numpy()
        self.real, (n, g) = self.hidden_nh.dtype, counts.shape
        # Bits that are not all zero are counted several times as fast as numbers.
        n_active = np.count_nonzero(self.hidden_nh.view(f"i{self.real.itemsize}"))
        self.is_active = int(n_active) <= MOST_ACTIVE * self.hidden_nh.size
        self.rows = Rows(counts.indptr.numpy(), counts.indices.numpy(), counts.data.numpy())
        _check_groups(problem)
        group_n = problem.group_n
        self.cells = CellArrays(
            log_size=problem.log_size_n.contiguous().numpy(),
            weight=weight_n.numpy(),
            group=_NO_GROUPS if group_n is None else group_n.contiguous().numpy(),
            loss=np.empty(n, self.real),
            size_slope=np.empty(n, self.real),
        )
        self.heads = {name: self._head(name, head) for name, head in problem.heads}
        self.hidden_slope_nh = np.empty_like(self.hidden_nh) if "hidden_nh" in wanted else None
        self.table = None if problem.log_theta_tg is None else _table(problem.log_theta_tg)
        least = max(LEAST_ROWS_OF_PART * g, LEAST_ENTRIES_OF_PART)
        self.parts = [self._part(k) for k in range(threads.n_parts(n * g, least))]

    def _head(self, name: str, head: Head) -> _HeadArrays:
        weight_hg = head.weight_gh.numpy().T
        is_wanted = f"{name}.weight" in self.wanted
        return _HeadArrays(
            head,
            self.is_active and weight_hg.flags.c_contiguous,
            weight_hg,
            head.bias_g.numpy(),
            np.empty_like(weight_hg) if is_wanted else None,
        )

    def _part(self, thread: int) -> _Part:
        g, real = self.p.counts.n_genes, self.real
        n_kinds = 0 if self.p.log_theta_tg is None else len(self.p.log_theta_tg)
        return _Part(
            GeneSums(
                theta=np.zeros((n_kinds, g), real),
                bias=np.zeros(g, real),
                dropout_bias=np.zeros(g if "dropout" in self.heads else 0, real),
                dispersion_bias=np.zeros(g if "dispersion" in self.heads else 0, real),
            ),
            self.table or _room_for_table(thread, 1, g, real),
            _SPACE.kept(("scratch", thread, g, real), lambda: _scratch(thread, g, real)),
            ActiveProducts(_SPACE, str(thread), self.hidden_nh),
        )

    def block(self, first: int, stop: int) -> None:
        """Losses of some cells, and what they add to the gradients."""
        shape, n_parts = (stop - first, self.p.counts.n_genes), len(self.parts)
        blocks = {name: _SPACE.array(name, shape, self.real) for name in self.heads}
        spans = threads.cuts(first, stop, n_parts)
        threads.run(
            [
                partial(self._rows, part, blocks, (*ab, first))
                for part, ab in zip(self.parts, spans, strict=False)
            ]
        )
        if any(head.gradient_hg is not None for head in self.heads.values()):
            spans = threads.cuts(0, shape[1], n_parts)
            threads.run(
                [
                    partial(self._weights, part, blocks, (first, stop), ab)
                    for part, ab in zip(self.parts, spans, strict=False)
                ]
            )

    def _rows(self, part: _Part, blocks: dict[str, np.ndarray], span: tuple[int, int, int]) -> None:
        a, b, first = span
        for name, head in self.heads.items():
            logits_rg = blocks[name][a - first : b - first]
            if head.is_active:
                rest = head.weight_hg, head.bias_g, logits_rg
                part.products.logits((a, b), head.head.units, *rest)
            else:
                factors = head.seen(self.hidden_nh[a:b]), head.head.weight_gh.t()
                torch.addmm(head.head.bias_g, *factors, out=torch.from_numpy(logits_rg))
        self._loops(part, blocks, span)
        if self.hidden_slope_nh is None:
            return
        slope_rh, is_first = self.hidden_slope_nh[a:b], True
        for name, head in self.heads.items():
            slope_rg = blocks[name][a - first : b - first]
            if self.p.zeros_are_cut and head.is_active:
                given = head.weight_hg, slope_rg, slope_rh, is_first
                part.products.slopes((a, b), head.head.units, *given)
            else:
                _add_slopes(head, torch.from_numpy(slope_rg), slope_rh, is_first)
            is_first = False

    def _loops(
        self, part: _Part, blocks: dict[str, np.ndarray], span: tuple[int, int, int]
    ) -> None:
        flags = self.p.law.scale == "softmax", bool(self.wanted)
        rest = self.rows, self.cells
        if self.p.law.counts == "poisson":
            poisson_rows(span, blocks["scale"], *rest, part.sums, part.scratch, *flags)
            return
        none = _nothing(self.real)
        logits = blocks["scale"], blocks.get("dropout", none), blocks.get("dispersion", none)
        nb_rows(span, *logits, *rest, part.dispersions, part.sums, part.scratch, *flags)

    def _weights(
        self,
        part: _Part,
        blocks: dict[str, np.ndarray],
        rows: tuple[int, int],
        genes: tuple[int, int],
    ) -> None:
        (first, stop), (a, b) = rows, genes
        for name, head in self.heads.items():
            gradient_hg, slope_rg = head.gradient_hg, blocks[name]
            if gradient_hg is None:
                continue
            if head.is_active:
                rest = slope_rg, genes, gradient_hg, first == 0
                part.products.add_weights(rows, head.head.units, *rest)
                continue
            seen_rh = head.seen(self.hidden_nh[first:stop])
            slope_gr, gradient_gh = (torch.from_numpy(x.T) for x in (slope_rg[:, a:b], gradient_hg))
            if first:
                gradient_gh[a:b].addmm_(slope_gr, seen_rh)
            else:
                torch.mm(slope_gr, seen_rh, out=gradient_gh[a:b])

    def result(self) -> CountResult:
        """The losses, and the gradients that were wanted."""
        found: dict[str, Callable[[], np.ndarray]] = {
            "hidden_nh": self._hidden_slopes,
            "log_size_n": lambda: self.cells.size_slope,
            "log_theta_tg": self._log_theta_slopes,
            "scale.bias": lambda: self._sum("bias"),
            "dropout.bias": lambda: self._sum("dropout_bias"),
            "dispersion.bias": lambda: self._sum("dispersion_bias"),
        }
        gradients = {
            name: torch.from_numpy(value()) for name, value in found.items() if name in self.wanted
        }
        for name, head in self.heads.items():
            if head.gradient_hg is not None:
                gradients[f"{name}.weight"] = torch.from_numpy(head.gradient_hg.T)
        return CountResult(torch.from_numpy(self.cells.loss), gradients)

    def _sum(self, name: str) -> np.ndarray:
        """The threads' sums, added in their order."""
        total, *others = (getattr(part.sums, name) for part in self.parts)
        for other in others:
            total += other
        return total

    def _hidden_slopes(self) -> np.ndarray:
        assert self.hidden_slope_nh is not None
        return self.hidden_slope_nh

    def _log_theta_slopes(self) -> np.ndarray:
        assert self.table is not None
        slope_tg = self._sum("theta")
        slope_tg *= self.table.theta
        return slope_tg


def _add_slopes(head: _HeadArrays, slope_rg: Tensor, slope_rh: np.ndarray, is_new: bool) -> None:
    """Add the derivatives by hidden units that come through a head, by a dense product."""
    seen_rh, weight_gh = head.seen(slope_rh), head.head.weight_gh
    if is_new and seen_rh.shape == slope_rh.shape:
        torch.mm(slope_rg, weight_gh, out=seen_rh)
        return
    if is_new:
        slope_rh[:] = 0.0
    seen_rh.addmm_(slope_rg, weight_gh)


def _scratch(thread: int, g: int, real: np.dtype) -> Scratch:
    def room(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return _SPACE.array(f"{name} {thread}", shape, dtype)

    return Scratch(
        scale=room("scale", (g,), real),
        slope=room("slope", (g,), real),
        logits=room("logits", (g + PADDING,), real),
        counts=room("counts", (COLUMNS, g + PADDING), np.float64),
        genes=room("genes", (g,), np.int64),
        stretch=room("stretch", (3, STRETCH), real),
    )


@cache
def _nothing(real: np.dtype) -> np.ndarray:
    return np.empty((0, 0), real)


def _room_for_table(thread: int, n_kinds: int, g: int, real: np.dtype) -> Dispersions:
    """Rows to fill: for each kind of cells, or one for each cell in turn."""
    names = Dispersions._fields
    return Dispersions(*(_SPACE.array(f"{k} {thread}", (n_kinds, g), real) for k in names))


def _table(log_theta_tg: Tensor) -> Dispersions:
    log_theta = log_theta_tg.contiguous().numpy()
    n_kinds, g = log_theta.shape
    table = _room_for_table(0, n_kinds, g, log_theta.dtype)
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
