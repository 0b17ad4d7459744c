"""The difference of two populations from their histograms.

Two draws that are independent differ by a value whose law is the convolution of theirs. Within a
bin draws are taken to be spread evenly, so that a difference of bins is a triangle two bins wide.

Axis suffixes: ``f`` features, ``t`` strata decoded as one batch after the other, ``s`` strata,
``b`` bins,
``z`` batches that are compared, ``l`` levels.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from scvi_dist.analysis.differential import convolution_kernels as kernels
from scvi_dist.analysis.differential.counts import Columns
from scvi_dist.analysis.differential.histograms import Grid, Histograms
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.pairs import lfc_columns
from scvi_dist.analysis.differential.sample import Batch
from scvi_dist.analysis.differential.statistics import (
    REDUCED,
    bayes_factor,
    found_delta,
    found_pseudocount,
)

_PER_THREAD = 512
"""Features that a thread works on at a time."""


@dataclass(frozen=True, slots=True)
class Side:
    """One population: its histograms, and what is exact of it."""

    mass_zfb: np.ndarray
    """float64: share of the draws in each bin."""
    log_mean_zf: np.ndarray
    log_variance_zf: np.ndarray
    scale_f: np.ndarray
    """float64: mean scale."""
    low_f: np.ndarray
    high_f: np.ndarray
    """float64: smallest and largest log2 scale."""


class Sides:
    """The populations that histograms of strata make.

    Parameters
    ----------
    histograms
        Of all strata, decoded as each of the batches.
    batches
        These batches, in order.
    cells_s, draws_s
        Cells of each stratum, and draws of each of its cells.
    """

    def __init__(
        self,
        histograms: Histograms,
        batches: tuple[Batch, ...],
        cells_s: np.ndarray,
        draws_s: np.ndarray,
    ) -> None:
        self._histograms = histograms
        self._batches = batches
        self._cells_s = cells_s
        self._cells_per_draw_s = 1.0 / draws_s
        everything = np.ones(len(cells_s), dtype=bool)
        self._all = {batch: self._cells(batch, everything) for batch in batches}

    def _at(self, batch: Batch) -> slice:
        first = self._batches.index(batch) * len(self._cells_s)
        return slice(first, first + len(self._cells_s))

    def _cells(self, batch: Batch, member_s: np.ndarray) -> np.ndarray:
        """float64 ``[b, f]``: cells of some strata in each bin, each shared among its draws."""
        counts_sbf = self._histograms.counts_tbf[self._at(batch)]
        cells_bf = np.zeros(counts_sbf.shape[1:])
        for s in np.flatnonzero(member_s):
            cells_bf += self._cells_per_draw_s[s] * counts_sbf[s]
        return cells_bf

    def of(self, strata: tuple[int, ...], batches: list[Batch], *, mixed: bool) -> Side:
        """The population of some strata; its batches are one where ``mixed``."""
        member_s = np.isin(np.arange(len(self._cells_s)), strata)
        n_cells = float(self._cells_s[member_s].sum())
        parts = [self._of_batch(batch, member_s, n_cells) for batch in batches]
        mass, mean, variance = (
            np.stack([getattr(part, name)[0] for part in parts])
            for name in ("mass_zfb", "log_mean_zf", "log_variance_zf")
        )
        if mixed:
            variance = (variance.mean(axis=0) + mean.var(axis=0))[None]
            mass, mean = mass.mean(axis=0)[None], mean.mean(axis=0)[None]
        return Side(
            mass_zfb=mass,
            log_mean_zf=mean,
            log_variance_zf=variance,
            scale_f=np.mean([part.scale_f for part in parts], axis=0),
            low_f=np.min([part.low_f for part in parts], axis=0),
            high_f=np.max([part.high_f for part in parts], axis=0),
        )

    def _of_batch(self, batch: Batch, member_s: np.ndarray, n_cells: float) -> Side:
        if 2 * member_s.sum() > len(member_s):
            # Most strata are all but a few, which are taken away.
            cells_bf = np.maximum(self._all[batch] - self._cells(batch, ~member_s), 0.0)
        else:
            cells_bf = self._cells(batch, member_s)
        weight_s = member_s * self._cells_per_draw_s / n_cells
        moments_mtf = self._histograms.moments_mtf[:, self._at(batch)]
        scale_f, mean_f, square_f = np.einsum("s,msf->mf", weight_s, moments_mtf)
        extremes_msf = self._histograms.extremes_mtf[:, self._at(batch)][:, member_s]
        return Side(
            mass_zfb=np.ascontiguousarray(cells_bf.T)[None] / n_cells,
            log_mean_zf=mean_f[None],
            log_variance_zf=np.maximum(square_f - np.square(mean_f), 0.0)[None],
            scale_f=scale_f,
            low_f=extremes_msf[0].min(axis=0),
            high_f=extremes_msf[1].max(axis=0),
        )


def compared(
    first: Side,
    second: Side,
    grid: Grid,
    options: DifferentialOptions,
    mean_counts: tuple[np.ndarray, np.ndarray] | None,
) -> Columns:
    """Columns of the table, as those that :mod:`~scvi_dist.analysis.differential.pairs` compares.

    The batches ``z`` of both sides are compared with each other, one by one.
    """
    scale = {"scale1": first.scale_f, "scale2": second.scale_f}
    if options.mode == "vanilla":
        more_f = 1.0 - _over_features(first, second, grid, _Question(0.0, 0.0, 0.0, ()))[0]
        more_f = np.clip(more_f, 0.0, 1.0)
        return {
            "proba_m1": more_f,
            "proba_m2": 1.0 - more_f,
            "bayes_factor": bayes_factor(more_f),
            **scale,
        }
    pseudocount = options.pseudocounts
    if pseudocount is None:
        assert mean_counts is not None, "a pseudocount is found from counts"
        silent = [mean_f < options.threshold_counts for mean_f in mean_counts]
        largest = np.exp2(first.high_f), np.exp2(second.high_f)
        pseudocount = found_pseudocount(*largest, *silent)
    delta = options.delta
    if delta is None:
        whole = _Question(0.0, pseudocount, pseudocount, ())
        delta = found_delta(_over_features(first, second, grid, whole)[2], options.seed)
    asked = _Question(delta, pseudocount, REDUCED * pseudocount, options.cred_interval_lvls)
    found = _over_features(first, second, grid, asked)
    down_f, up_f = np.clip(found[0], 0.0, 1.0), np.clip(1.0 - found[1], 0.0, 1.0)
    probability_f = np.maximum(up_f, down_f)
    if options.test_mode == "two":
        probability_f = np.clip(up_f + down_f, 0.0, 1.0)
    return {
        "proba_de": probability_f,
        "proba_not_de": 1.0 - probability_f,
        "bayes_factor": bayes_factor(probability_f),
        **scale,
        "pseudocounts": pseudocount,
        "delta": delta,
        **lfc_columns(found[2:], options.cred_interval_lvls),
    }


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of the law of a difference."""

    delta: float
    pseudocount: float
    """With which the LFC is compared with ``delta``."""
    described: float
    """The pseudocount with which the LFC is described."""
    levels: tuple[float, ...]


def _over_features(first: Side, second: Side, grid: Grid, asked: _Question) -> np.ndarray:
    """float64 ``[7 + 2 l, f]``: distribution function at ``-delta`` and at ``delta``, mean,
    median, standard deviation, smallest and largest value, ends of the intervals."""
    mean_zf = first.log_mean_zf - second.log_mean_zf
    variance_zf = first.log_variance_zf + second.log_variance_zf
    mean_f = mean_zf.mean(axis=0)
    std_f = np.sqrt(variance_zf.mean(axis=0) + mean_zf.var(axis=0))
    low_f = np.minimum(first.low_f, second.low_f)
    levels = np.array(asked.levels, dtype=np.float64)
    found = np.empty((7 + 2 * len(levels), len(mean_f)))
    found[2], found[4] = mean_f, std_f
    found[5] = _shifted(first.low_f, asked.described) - _shifted(second.high_f, asked.described)
    found[6] = _shifted(first.high_f, asked.described) - _shifted(second.low_f, asked.described)

    def compute(start: int) -> None:
        kernels.describe_differences(
            first.mass_zfb,
            second.mass_zfb,
            grid.start_f.astype(np.float64),
            grid.width_f.astype(np.float64),
            low_f,
            asked.delta,
            asked.pseudocount,
            asked.described,
            levels,
            start,
            min(start + _PER_THREAD, len(mean_f)),
            found,
        )

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(compute, range(0, len(mean_f), _PER_THREAD)):
            pass
    return found


def _shifted(log_f: np.ndarray, pseudocount: float) -> np.ndarray:
    return np.log2(np.exp2(log_f) + pseudocount)
