"""Differential expression from every cell: histograms of log2 scales, of which all else follows.

Each stratum has a histogram of every feature, and sums of scales and of their logarithms. They add
up, so that one pass serves every comparison, "the rest" is the sum of the other strata, and the
difference of two independent draws is the convolution of two histograms.

Every cell is encoded once and drawn at least once; cells of a small stratum are drawn more often,
all equally, so that no stratum is described by fewer draws than
:mod:`~scvi_dist.analysis.differential.draws` asks for.

Axis suffixes: ``n`` cells, ``r`` draws, ``f`` features, ``s`` strata, ``t`` strata decoded as one
batch after the other, ``b`` bins, ``c`` comparisons.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from scvi_dist.analysis.differential.convolution import Sides, compared
from scvi_dist.analysis.differential.counts import Columns, CountsOfSides, counts_of, taking_part
from scvi_dist.analysis.differential.decode import (
    DECODED_TOGETHER,
    DecodeOptions,
    PosteriorPass,
    decoder_of,
    draw_keys,
    posteriors,
    scales,
)
from scvi_dist.analysis.differential.draws import draws_of
from scvi_dist.analysis.differential.groups import Comparison, Grouping
from scvi_dist.analysis.differential.histograms import MOMENTS, SMALLEST_LOG, Grid, Histograms
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.sample import Batch, Executor, batches_of, is_matched
from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, Parts, Rule, run_here
from scvi_dist.analysis.raw_statistics import (
    PROTEIN_RULES,
    RAW_BY_GENE,
    RAW_RULES,
    RawSums,
    added,
    digest_of,
)
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import CellGroup, StoreCells, computed
from scvi_dist.module.base import BaseModule

_PILOT_CELLS = 2_048
"""Cells by which the range of each feature's histogram is chosen."""
_HISTOGRAM_BYTES = 128 << 20
"""Of one result. There are three at a time in one thread, whatever the number of cells: that of a
part, that of the parts it merges with, and the total."""
_MOST_BINS, _FEWEST_BINS = 128, 32


class HistogramPass(CellPass):
    """Histograms and moments of the decoded scales of each stratum, and sums of its counts.

    Parameters
    ----------
    codes_n
        int: stratum of each cell in the caller's order.
    draws_s
        int64: draws of each cell of a stratum.
    grid
        Bins of each feature.
    batches
        Batches that every cell is decoded as.
    how
        Which features.
    has_counts
        Whether counts are summed too.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "histogram": "sum",
        **dict.fromkeys(MOMENTS, "sum"),
        "log_min": "min",
        "log_max": "max",
        "outside": "sum",
        **RAW_RULES,
        **PROTEIN_RULES,
    }
    by_gene: ClassVar[frozenset[str]] = RAW_BY_GENE | {
        "histogram",
        *MOMENTS,
        "log_min",
        "log_max",
        "outside",
    }

    def __init__(
        self,
        codes_n: np.ndarray,
        draws_s: np.ndarray,
        grid: Grid,
        batches: tuple[Batch, ...],
        how: DecodeOptions,
        has_counts: bool,
    ) -> None:
        self._codes_n: np.ndarray | None = codes_n
        self._digest = digest_of(codes_n)
        self.draws_s = draws_s
        self.grid = grid
        self.batches = batches
        self.how = how
        self.has_counts = has_counts

    def __getstate__(self) -> dict[str, Any]:
        # Each part gets the codes of its own cells.
        return {**self.__dict__, "_codes_n": None}

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "pass": "histograms of scales",
            "strata": self._digest,
            "grid": self.grid.digest(),
            "draws": self.draws_s.tolist(),
            "batches": list(self.batches),
            "how": {name: getattr(self.how, name) for name in self.how.__slots__},
            "counts": self.has_counts,
        }

    def payload(self, positions: np.ndarray) -> np.ndarray:
        assert self._codes_n is not None, "codes do not travel with the pass"
        return self._codes_n[positions]

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        assert module is not None
        n_strata = len(self.draws_s)
        schema = cells.source.schema
        sums = RawSums(n_strata, schema.n_vars, schema.n_proteins)
        blocks = added(sums, cells.blocks(), payload) if self.has_counts else cells.blocks()
        room = Histograms.empty(n_strata * len(self.batches), self.grid)

        def count(group: CellGroup) -> dict[str, torch.Tensor]:
            self._count(module, group, payload[group.positions], room)
            return {}

        for _ in computed(module, (g for block in blocks for g in cells.cut(block)), count):
            pass
        return {**room.partial(), **(sums.partial() if self.has_counts else {})}

    def _count(
        self, module: BaseModule, group: CellGroup, codes_n: np.ndarray, room: Histograms
    ) -> None:
        """Draw, decode and count the cells of one forward pass, stratum by stratum."""
        known = posteriors(module, group)
        draws_n = self.draws_s[codes_n]
        order = np.argsort(codes_n, kind="stable")
        at_r = np.repeat(order, draws_n[order])
        starts_n = np.cumsum(draws_n[order]) - draws_n[order]
        draw_r = np.arange(len(at_r)) - np.repeat(starts_n, draws_n[order])
        keys_r = draw_keys(group.keys[at_r], draw_r)
        decoders = [decoder_of(module, batch, self.how) for batch in self.batches]
        for start in range(0, len(at_r), DECODED_TOGETHER):
            part = slice(start, start + DECODED_TOGETHER)
            where = torch.from_numpy(at_r[part]).to(module.device)
            there = {name: value[where] for name, value in known.items()}
            for i, decode in enumerate(decoders):
                module.noise.bind(keys_r[part])  # type: ignore[attr-defined]
                scale_rf = decode(there).scales()
                strata_r = codes_n[at_r[part]].astype(np.int64)
                room.add(scale_rf, strata_r + i * len(self.draws_s))


@dataclass(frozen=True, slots=True)
class Found:
    """What histograms say of all comparisons."""

    columns: Iterator[tuple[Comparison, Columns, CountsOfSides | None]]
    facts: dict[str, float]
    """The bound of the error, and for how much it does not hold."""


def histogram_columns(
    module: BaseModule,
    cells: StoreCells,
    grouping: Grouping,
    options: DifferentialOptions,
    how: DecodeOptions,
    run: Executor,
    has_counts: bool,
) -> Found:
    """The columns of each comparison's table, from one pass over all cells that take part."""
    batches1, batches2 = batches_of(options, max(cells.source.schema.n_batch, 1))
    batches = tuple(dict.fromkeys([*batches1, *batches2]))
    those, codes_n = taking_part(cells, grouping)
    cells_s = grouping.cells_s
    wanted = max(options.n_samples_overall // len(batches), 2)
    draws_s = np.array([-(-draws_of(int(n), wanted) // max(int(n), 1)) for n in cells_s])
    grid = _grid(module, cells, grouping, batches, how, run, options.seed)
    the_pass = HistogramPass(codes_n, draws_s, grid, batches, how, has_counts)
    # Here parts would follow one another, and each needs the memory of all histograms.
    parts = Parts(part_cells=max(those.n_cells, 1)) if run is run_here else Parts()
    merged = run(the_pass, module, those, parts)
    drawn_s = np.tile(cells_s * draws_s, len(batches))
    facts = {
        "lfc_error_bound": float(grid.width_f.max()),
        "outside_histograms": float((merged["outside"][0] / drawn_s.sum()).max()),
    }
    raw = {name: merged[name] for name in (*RAW_RULES, *PROTEIN_RULES)} if has_counts else None
    counts = [
        None if raw is None else counts_of(raw, comparison, grouping.n_strata)
        for comparison in grouping.comparisons
    ]
    sides = Sides(Histograms.of(merged, grid), batches, cells_s, draws_s)

    def columns() -> Iterator[Columns]:
        is_mixed = not is_matched(batches1, batches2)
        for comparison, known in zip(grouping.comparisons, counts, strict=True):
            first = sides.of(comparison.first, batches1, mixed=is_mixed)
            # Within a batch both sides are of that batch.
            others = batches2 if is_mixed else batches1
            second = sides.of(comparison.second, others, mixed=is_mixed)
            means = None if known is None else known.means(how)
            yield compared(first, second, grid, options, means)

    return Found(zip(grouping.comparisons, columns(), counts, strict=True), facts)


def _grid(
    module: BaseModule,
    cells: StoreCells,
    grouping: Grouping,
    batches: tuple[Batch, ...],
    how: DecodeOptions,
    run: Executor,
    seed: int,
) -> Grid:
    """Bins that the scales of some cells of every stratum fall into, with room at both ends."""
    rng = np.random.default_rng([seed, 0xD1])
    per_stratum = max(_PILOT_CELLS // grouping.n_strata, 16)
    picked = []
    for s in range(grouping.n_strata):
        rows = grouping.rows((s,))
        picked.append(rng.permutation(rows)[:per_stratum])
    rows = np.sort(np.concatenate(picked))
    selection = Selection(cells.selection.n_obs, rows)
    known = run(PosteriorPass(), module, StoreCells(cells.source, selection, cells.config), Parts())
    keys = selection.keys(np.arange(len(rows)), seed + 1)
    low_f: Any = np.inf
    high_f: Any = -np.inf
    for batch in batches:
        for scale_rf in scales(module, known, keys, batch, how):
            logs_rf = np.log2(np.maximum(scale_rf, 2.0**SMALLEST_LOG))
            low_f = np.minimum(low_f, logs_rf.min(axis=0))
            high_f = np.maximum(high_f, logs_rf.max(axis=0))
    bytes_of_a_bin = 4 * grouping.n_strata * len(batches) * len(low_f)
    n_bins = int(np.clip(_HISTOGRAM_BYTES // bytes_of_a_bin, _FEWEST_BINS, _MOST_BINS))
    return Grid.around(low_f, high_f, n_bins)
