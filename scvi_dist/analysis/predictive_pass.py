"""One pass over cells that draws counts and compares them with those observed.

Each cell's counts are drawn once for all statistics that are asked for; only the draws of one
minibatch are in memory. The draws follow from the cells' keys: another pass with the same seed
sees the same.

Axis suffixes: ``n`` cells, ``f`` features, ``s`` samples, ``c`` groups, ``b`` bins, ``i``
intervals.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, ClassVar, Literal, TypeAlias, cast

import numpy as np
from torch import Tensor
from torch.distributions import Distribution

from scvi_dist.analysis.count_draws import draw_by_cell
from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, Rule
from scvi_dist.analysis.protein_counts import PROTEIN_KEYS
from scvi_dist.analysis.streaming import CellGroup, StoreCells, computed
from scvi_dist.batch import REGISTRY_KEYS, CellBatch
from scvi_dist.dataloaders.source import CellSource, OpenSource
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule

Feature: TypeAlias = Literal["rna", "protein"]
"""Whose counts are looked at."""
Ranks: TypeAlias = Literal["none", "exact", "histogram"]
"""What is kept for tests of ranks: nothing, every normalised value, or how many are in each bin."""
MODEL, RAW = "model", "raw"
"""Prefixes of results: of the draws, and of the counts observed."""

_LAW: dict[Feature, str] = {"rna": "px", "protein": "py"}
_EACH: dict[str, Rule] = {
    "sum": "sum",
    "square": "sum",
    "nonzero": "sum",
    "cv_cell": "concat",
    "group_sum": "sum",
    "group_square": "sum",
    "values": "concat",
    "histogram": "sum",
}
"""Result of the draws and of the counts observed -> how it merges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grouping:
    """Groups of cells whose normalised values are compared."""

    codes: np.ndarray
    """int32 ``[n]``: group of each cell, by its position."""
    n_groups: int
    n_samples: int = 1
    """Draws that are looked at, the first of all; each is a data set of its own."""
    target_sum: float = 1e4
    """What a cell's counts sum to before the logarithm."""
    ranks: Ranks = "none"
    n_bins: int = 64
    """Of a histogram of ``log(1 + x)``, up to its maximum."""

    def facts(self) -> dict[str, Any]:
        """JSON values that the sums follow from."""
        codes = blake2b(np.ascontiguousarray(self.codes).tobytes(), digest_size=16).hexdigest()
        return {**{k: getattr(self, k) for k in self.__slots__ if k != "codes"}, "codes": codes}


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictiveStatistics:
    """What a pass computes."""

    n_samples: int = 10
    """Draws of each cell."""
    feature: Feature = "rna"
    moments: bool = False
    """Sums for coefficients of variation and fractions of zeros."""
    intervals: tuple[tuple[float, float], ...] = ()
    """Pairs of quantiles between which observed counts are counted."""
    grouping: Grouping | None = None
    raw: bool = True
    """Compute the same of the observed counts, too."""

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ConfigError(f"n_samples must be at least 1, seen {self.n_samples}.")
        if self.grouping is not None and not 1 <= self.grouping.n_samples <= self.n_samples:
            raise ConfigError(
                f"differential expression looks at 1 … {self.n_samples} of the draws, not "
                f"{self.grouping.n_samples}."
            )


class PredictivePass(CellPass):
    """Statistics of counts drawn from a module's posterior predictive law, and of the observed.

    Parameters
    ----------
    statistics
        Which.
    counts
        Where the observed counts are, by the rows of the cells; those that the module sees where
        None.

    Notes
    -----
    Results, each ``model_…`` of the draws and ``raw_…`` of the observed counts with one sample:
    ``sum``, ``square``, ``nonzero`` ``[s, f]``; ``cv_cell [n]``, the coefficient of variation
    over features, mean of the samples; ``group_sum``, ``group_square`` ``[s, c, f]`` of normalised
    values; ``values [n, s, f]`` or ``histogram [s, c, b, f]`` of them. And ``inside [i]``, observed
    counts within the intervals; ``n_cells [1]``; ``group_cells [c]``.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **{f"{who}_{name}": rule for who in (MODEL, RAW) for name, rule in _EACH.items()},
        "inside": "sum",
        "n_cells": "sum",
        "group_cells": "sum",
    }
    by_gene: ClassVar[frozenset[str]] = frozenset(
        f"{who}_{name}" for who in (MODEL, RAW) for name in _EACH if name != "cv_cell"
    )

    def __init__(
        self, statistics: PredictiveStatistics, counts: "CellSource | OpenSource | None" = None
    ) -> None:
        self.statistics = statistics
        self.counts = counts

    def __getstate__(self) -> dict[str, Any]:
        # Open handles do not travel.
        is_open = isinstance(self.counts, OpenSource)
        counts = self.counts.cell_source if is_open else self.counts  # type: ignore[union-attr]
        return {**self.__dict__, "counts": counts}

    @property
    def facts(self) -> Mapping[str, Any]:
        which = self.statistics
        grouping = None if which.grouping is None else which.grouping.facts()
        named = {k: getattr(which, k) for k in which.__slots__ if k != "grouping"}
        counts = self.counts
        if isinstance(counts, OpenSource):
            counts = counts.cell_source
        where = None if counts is None else [counts.locator.url, counts.locator.layer]
        return {"predictive_statistics": named, "grouping": grouping, "counts": where}

    def n_genes(self, cells: StoreCells) -> int:
        """Features of the results."""
        schema = cells.source.schema
        return schema.n_vars if self.statistics.feature == "rna" else schema.n_proteins

    def payload(self, positions: np.ndarray) -> np.ndarray | None:
        """The groups of these cells."""
        grouping = self.statistics.grouping
        return None if grouping is None else grouping.codes[positions]

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        assert module is not None, "counts are drawn from a module's law"
        which = self.statistics
        draw = partial(_drawn, module=module, which=which)
        n_cells = cells.n_cells
        results: dict[str, np.ndarray] = {"n_cells": np.array([n_cells], dtype=np.int64)}
        sums: _Sums | None = None
        for group, drawn in computed(module, cells.groups(), draw):
            x_snf = np.ascontiguousarray(drawn["x"].numpy())
            counts_1nf = self._observed(group)[None]
            if sums is None:
                sums = _Sums(which, n_cells, x_snf.shape[2], payload)
            sums.add(MODEL, x_snf, group.positions)
            if which.raw:
                sums.add(RAW, counts_1nf, group.positions)
            if which.intervals:
                sums.add_coverage(counts_1nf[0], x_snf)
        assert sums is not None, "a part has cells"
        return results | sums.results

    def _observed(self, group: CellGroup) -> np.ndarray:
        """float32 ``[n, f]``: the counts that these cells have."""
        if self.counts is not None:
            source = self.counts.open() if isinstance(self.counts, CellSource) else self.counts
            rows = cast(CellBatch, group.tensors).rows
            return source.store.read_rows_at(rows, source.genes).to_dense()
        key = REGISTRY_KEYS.X_KEY
        if self.statistics.feature == "protein":
            key = REGISTRY_KEYS.PROTEIN_EXP_KEY
        return np.ascontiguousarray(group.tensors[key].float().numpy())


def _drawn(group: CellGroup, module: BaseModule, which: PredictiveStatistics) -> dict[str, Tensor]:
    """Counts ``[s, n, f]``; those that ``posterior_predictive_sample`` draws."""
    law = _law(module, group.tensors, which)
    is_protein = which.feature == "protein"
    x = draw_by_cell(law, group.keys + PROTEIN_KEYS if is_protein else group.keys)
    return {"x": x if which.n_samples > 1 else x.unsqueeze(0)}


def _law(module: BaseModule, tensors: Any, which: PredictiveStatistics) -> Distribution:
    inferred = module.inference(**module._get_inference_input(tensors), n_samples=which.n_samples)
    given = module._get_generative_input(tensors, inferred)
    return module.generative(**given)[_LAW[which.feature]]


class _Sums:
    """The results of one part while they grow."""

    def __init__(
        self,
        which: PredictiveStatistics,
        n_cells: int,
        n_features: int,
        group_n: np.ndarray | None,
    ) -> None:
        self._which = which
        self._group_n = group_n
        self.results: dict[str, np.ndarray] = {}
        for who, n_samples in ((MODEL, which.n_samples), (RAW, 1)):
            if who == MODEL or which.raw:
                for name, shape, dtype in self._shapes(n_cells, n_features, n_samples):
                    self.results[f"{who}_{name}"] = np.zeros(shape, dtype=dtype)
        if which.intervals:
            self.results["inside"] = np.zeros(len(which.intervals), dtype=np.int64)
        if which.grouping is not None:
            assert group_n is not None
            self.results["group_cells"] = np.bincount(group_n, minlength=which.grouping.n_groups)

    def _shapes(
        self, n_cells: int, n_features: int, n_samples: int
    ) -> Iterator[tuple[str, tuple[int, ...], type]]:
        if self._which.moments:
            for name, dtype in (("sum", np.float64), ("square", np.float64), ("nonzero", np.int64)):
                yield name, (n_samples, n_features), dtype
            yield "cv_cell", (n_cells,), np.float64
        grouping = self._which.grouping
        if grouping is None:
            return
        s, c = min(grouping.n_samples, n_samples), grouping.n_groups
        yield "group_sum", (s, c, n_features), np.float64
        yield "group_square", (s, c, n_features), np.float64
        if grouping.ranks == "exact":
            yield "values", (n_cells, s, n_features), np.float32
        elif grouping.ranks == "histogram":
            yield "histogram", (s, c, grouping.n_bins, n_features), np.int32

    def add(self, who: str, x_snf: np.ndarray, positions: np.ndarray) -> None:
        """Take in the values of the cells at these positions of the part."""
        if self._which.moments:
            self._add_moments(who, x_snf, positions)
        if self._which.grouping is not None:
            self._add_groups(who, x_snf[: self._which.grouping.n_samples], positions)

    def _add_moments(self, who: str, x_snf: np.ndarray, positions: np.ndarray) -> None:
        from scvi_dist.analysis.predictive_kernels import add_moments

        n_samples, n_cells, n_features = x_snf.shape
        sums = [self.results[f"{who}_{name}"] for name in ("sum", "square", "nonzero")]
        cell_sum_ns = np.empty((n_cells, n_samples))
        cell_square_ns = np.empty((n_cells, n_samples))
        add_moments(x_snf, *sums, cell_sum_ns, cell_square_ns)
        cv_ns = coefficient_of_variation(cell_sum_ns, cell_square_ns, n_features)
        self.results[f"{who}_cv_cell"][positions] = mean_of_numbers(cv_ns, axis=1)

    def _add_groups(self, who: str, x_snf: np.ndarray, positions: np.ndarray) -> None:
        from scvi_dist.analysis import predictive_kernels as kernels

        grouping, results = self._which.grouping, self.results
        assert grouping is not None
        assert self._group_n is not None
        group_n, target = self._group_n[positions], grouping.target_sum
        sums = results[f"{who}_group_sum"], results[f"{who}_group_square"]
        kernels.add_group_moments(x_snf, group_n, target, *sums)
        if grouping.ranks == "exact":
            n_samples, n_cells, n_features = x_snf.shape
            values_nsf = np.empty((n_cells, n_samples, n_features), dtype=np.float32)
            kernels.write_normalised(x_snf, target, values_nsf)
            results[f"{who}_values"][positions] = values_nsf
        elif grouping.ranks == "histogram":
            kernels.add_histogram(x_snf, group_n, target, results[f"{who}_histogram"])

    def add_coverage(self, counts_nf: np.ndarray, x_snf: np.ndarray) -> None:
        """Count observed values that lie within the intervals of their draws."""
        from scvi_dist.analysis.predictive_kernels import add_coverage

        below, above = (np.array(ends) for ends in zip(*self._which.intervals, strict=True))
        add_coverage(counts_nf, x_snf, below, above, self.results["inside"])


def coefficient_of_variation(
    total: np.ndarray, square: np.ndarray, n: int | np.ndarray
) -> np.ndarray:
    """Standard deviation over mean, of ``n`` values with these sums; NaN where the mean is 0."""
    mean = total / n
    variance = np.maximum(square / n - mean * mean, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mean == 0, np.nan, np.sqrt(variance) / mean)


def mean_of_numbers(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN where nothing is."""
    is_number = ~np.isnan(values)
    n = is_number.sum(axis=axis)
    total = np.where(is_number, values, 0.0).sum(axis=axis)
    return np.divide(total, n, out=np.full(np.shape(total), np.nan), where=n > 0)


def cells_at_once(n_features: int, n_samples: int, budget_bytes: int = 16 << 20) -> int:
    """Cells of a minibatch whose draws take so much memory; their law takes some times that."""
    return int(np.clip(budget_bytes // (4 * max(n_features, 1) * n_samples), 1, 128))
