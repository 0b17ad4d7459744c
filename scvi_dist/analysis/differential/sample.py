"""Differential expression from draws: only cells that are drawn are read, encoded and decoded.

The cells of all populations are encoded in one pass. All second populations are described by one
pool of draws: "the rest" is, for each comparison, a part of the pool that has each stratum in its
right share. The draws of a first population are in memory while it is compared.

Axis suffixes: ``n`` cells, ``r`` draws, ``q`` pairs, ``f`` features, ``s`` strata.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from scvi_dist.analysis.differential.decode import DecodeOptions, PosteriorPass, Posteriors, decoded
from scvi_dist.analysis.differential.draws import drawn_rows, draws_of, repeated, shares
from scvi_dist.analysis.differential.groups import Grouping
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.pairs import Draws, PairedDraws, Scratch
from scvi_dist.analysis.expression import ExpressionOptions
from scvi_dist.analysis.importance import importance_sampled_expression
from scvi_dist.analysis.passes.cell_pass import Parts
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.module.base import BaseModule

Batch: TypeAlias = int | None
"""Code of a batch that cells are decoded as; their own where None."""
Executor: TypeAlias = Callable[..., dict[str, np.ndarray]]
"""Runs a pass; see :func:`~scvi_dist.analysis.passes.cell_pass.run_here`."""

ENCODED_TOGETHER = Parts(part_cells=16_384)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """Cells to be drawn from: their rows, ascending, and their posteriors."""

    n_obs: int
    rows: np.ndarray
    cells: Posteriors

    def of(self, rows_r: np.ndarray) -> Posteriors:
        """Posteriors of some of the rows, repeats included."""
        at = np.searchsorted(self.rows, rows_r)
        return {name: value[at] for name, value in self.cells.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Design:
    """Which rows are drawn, decided before any cell is read."""

    firsts: tuple[dict[Batch, np.ndarray], ...]
    """For each comparison and batch, rows of the first population's draws."""
    pool: dict[tuple[Batch, int], np.ndarray]
    """Batch and stratum -> rows of the pool's draws of that stratum."""
    taken: tuple[dict[tuple[Batch, int], int], ...]
    """For each comparison, how many of them, from the front, are the second population's."""


def batches_of(options: DifferentialOptions, n_batch: int) -> tuple[list[Batch], list[Batch]]:
    """The batches that the populations are decoded as."""
    if not options.batch_correction:
        return [None], [None]
    everything: list[Batch] = list(range(n_batch))
    first, second = options.batchid1, options.batchid2
    return (
        everything if first is None else list(first),
        everything if second is None else list(second),
    )


def is_matched(first: list[Batch], second: list[Batch]) -> bool:
    """Whether pairs are of one batch."""
    return first != [None] and set(first) == set(second)


def sampled(
    module: BaseModule,
    cells: StoreCells,
    grouping: Grouping,
    options: DifferentialOptions,
    how: DecodeOptions,
    run: Executor,
) -> Iterator[PairedDraws]:
    """The draws of each comparison, in order; those of one are gone when the next is asked for."""
    if options.importance is not None:
        yield from _weighted(module, cells, grouping, options)
        return
    n_batch = max(cells.source.schema.n_batch, 1)
    batches1, batches2 = batches_of(options, n_batch)
    design = _design(grouping, options, batches1, batches2)
    rows = np.unique(np.concatenate([*_all_rows(design)]))
    those = StoreCells(cells.source, Selection(cells.selection.n_obs, rows), cells.config)
    encoded = run(PosteriorPass(), module, those, ENCODED_TOGETHER)
    drawn = _Drawn(n_obs=cells.selection.n_obs, rows=rows, cells=encoded)
    pool, place = _decoded(module, drawn, design.pool, options.seed + 1, how, Scratch())
    scratch = Scratch()
    for i, firsts in enumerate(design.firsts):
        keyed = {(batch, 0): rows_r for batch, rows_r in firsts.items()}
        first_draws, first_place = _decoded(module, drawn, keyed, options.seed, how, scratch)
        rng = np.random.default_rng([options.seed, 0xDE, i])
        first = {batch: first_place[batch, 0] for batch in batches1}
        second = {
            batch: np.concatenate(
                [place[key][:n] for key, n in design.taken[i].items() if key[0] == batch]
            )
            for batch in batches2
        }
        i1_q, i2_q = _pairs(first, second, options, rng)
        rows2_r = np.sort(np.concatenate(list(second.values()))).astype(np.uint64)
        yield PairedDraws(first=first_draws, second=pool, i1_q=i1_q, i2_q=i2_q, rows2_r=rows2_r)


def _design(
    grouping: Grouping,
    options: DifferentialOptions,
    batches1: list[Batch],
    batches2: list[Batch],
) -> _Design:
    rng = np.random.default_rng([options.seed, 0xDE5])
    cells_s = grouping.cells_s
    n1, n2 = (_draws_per_batch(options, batches) for batches in (batches1, batches2))
    firsts, taken = [], []
    for comparison in grouping.comparisons:
        rows = np.concatenate([grouping.rows((s,)) for s in comparison.first])
        n_draws = draws_of(len(rows), n1)
        firsts.append({batch: drawn_rows(rows, n_draws, rng) for batch in batches1})
        strata = np.array(comparison.second)
        n_draws = draws_of(int(cells_s[strata].sum()), n2)
        taken.append(
            {
                (batch, s): int(n)
                for batch in batches2
                for s, n in zip(strata.tolist(), shares(cells_s[strata], n_draws, rng), strict=True)
            }
        )
    most: dict[tuple[Batch, int], int] = {}
    for needed in taken:
        for key, n in needed.items():
            most[key] = max(most.get(key, 0), n)
    pool = {key: drawn_rows(grouping.rows((key[1],)), n, rng) for key, n in most.items() if n}
    kept = tuple({key: n for key, n in needed.items() if n} for needed in taken)
    return _Design(firsts=tuple(firsts), pool=pool, taken=kept)


def _draws_per_batch(options: DifferentialOptions, batches: list[Batch]) -> int:
    return max(options.n_samples_overall // len(batches), 2)


def _all_rows(design: _Design) -> Iterator[np.ndarray]:
    for firsts in design.firsts:
        yield from firsts.values()
    yield from design.pool.values()


def _decoded(
    module: BaseModule,
    drawn: _Drawn,
    wanted: dict[tuple[Batch, int], np.ndarray],
    seed: int,
    how: DecodeOptions,
    scratch: Scratch,
) -> tuple[Draws, dict[tuple[Batch, int], np.ndarray]]:
    """Draws of all that is wanted, and where those of each entry are."""
    n_draws = sum(len(rows) for rows in wanted.values())
    draws: Draws | None = None
    place: dict[tuple[Batch, int], np.ndarray] = {}
    done = 0
    for batch in dict.fromkeys(key[0] for key in wanted):
        keys = [key for key in wanted if key[0] == batch]
        rows_r = np.concatenate([wanted[key] for key in keys])
        start = done
        noise_r = Selection(drawn.n_obs, rows_r).keys(
            np.arange(len(rows_r)), seed + 2 * (0 if batch is None else batch + 1)
        )
        for piece in decoded(module, drawn.of(rows_r), noise_r, batch, how):
            n_piece, n_features = piece.value_rf.shape
            if draws is None:
                draws = Draws.room(n_draws, n_features, scratch)
            draws.put(done, piece)
            done += n_piece
        for key in keys:
            place[key] = np.arange(start, start + len(wanted[key]))
            start += len(wanted[key])
    assert draws is not None, "a population has cells"
    return draws, place


def _pairs(
    first: dict[Batch, np.ndarray],
    second: dict[Batch, np.ndarray],
    options: DifferentialOptions,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the draws of each pair; of one batch where both sides have the same batches."""
    if not is_matched(list(first), list(second)):
        first = {None: np.concatenate(list(first.values()))}
        second = {None: np.concatenate(list(second.values()))}
    n_batches = len(first)
    pairs = []
    for batch in first:
        n1, n2 = len(first[batch]), len(second[batch])
        if options.use_permutation:
            n_pairs = max(options.m_permutation // n_batches, 1)
            at1, at2 = rng.integers(n1, size=n_pairs), rng.integers(n2, size=n_pairs)
        else:
            n_pairs = max(options.n_samples_overall // n_batches, 2)
            at1, at2 = repeated(n1, n_pairs, rng), repeated(n2, n_pairs, rng)
            # One side at random is enough; the other is read in order.
            at2 = np.sort(at2)
        pairs.append((first[batch][at1], second[batch][at2]))
    i1_q, i2_q = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    return i1_q.astype(np.uint64), i2_q.astype(np.uint64)


def _weighted(
    module: BaseModule, cells: StoreCells, grouping: Grouping, options: DifferentialOptions
) -> Iterator[PairedDraws]:
    """Draws by their importance, for which every cell of a population is encoded."""
    assert options.importance is not None
    batches1, batches2 = batches_of(options, max(cells.source.schema.n_batch, 1))
    for i, comparison in enumerate(grouping.comparisons):
        first_rf, first = _weighted_side(
            module, cells, grouping.rows(comparison.first), batches1, options
        )
        second_rf, second = _weighted_side(
            module, cells, grouping.rows(comparison.second), batches2, options
        )
        rng = np.random.default_rng([options.seed, 0xDE, i])
        i1_q, i2_q = _pairs(first, second, options, rng)
        yield PairedDraws(
            first=Draws.of(first_rf),
            second=Draws.of(second_rf),
            i1_q=i1_q,
            i2_q=i2_q,
            rows2_r=np.arange(len(second_rf), dtype=np.uint64),
        )


def _weighted_side(
    module: BaseModule,
    cells: StoreCells,
    rows: np.ndarray,
    batches: list[Batch],
    options: DifferentialOptions,
) -> tuple[np.ndarray, dict[Batch, np.ndarray]]:
    n = _draws_per_batch(options, batches)
    those = StoreCells(cells.source, Selection(cells.selection.n_obs, rows), cells.config)
    values, place = [], {}
    for j, batch in enumerate(batches):
        how = ExpressionOptions(transform_batch=(batch,))
        drawn, _ = importance_sampled_expression(
            module,  # type: ignore[arg-type]
            those,
            how,
            options.importance,  # type: ignore[arg-type]
            n_samples_overall=n,
        )
        values.append(drawn)
        place[batch] = np.arange(j * n, (j + 1) * n)
    return np.concatenate(values), place
