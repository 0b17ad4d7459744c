"""What pairs of draws say of the difference between two populations.

Axis suffixes: ``r`` draws, ``q`` pairs, ``g`` genes (features).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch

from scvi_dist.analysis import de_kernels as kernels
from scvi_dist.analysis.de_options import DifferentialOptions
from scvi_dist.analysis.de_statistics import (
    REDUCED,
    bayes_factor,
    found_delta,
    found_pseudocount,
    interval_name,
)
from scvi_dist.errors import ConfigError

_TILE = 48
"""Genes of a tile: the changes of 5,000 pairs then fit the second-level cache."""
LFC_COLUMNS = ("lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDraws:
    """Draws of two populations, and which are compared with which."""

    first_rg: np.ndarray
    """float32: scales of draws of the first population."""
    second_rg: np.ndarray
    """float32: scales of draws that those of the second population are among."""
    i1_q: np.ndarray
    i2_q: np.ndarray
    """int64: rows of the pairs."""
    rows2_r: np.ndarray
    """int64: rows of the second population's draws."""

    @staticmethod
    def aligned(first_rg: np.ndarray, second_rg: np.ndarray) -> "PairedDraws":
        """Each draw with the one in the same row."""
        rows = np.arange(len(first_rg))
        return PairedDraws(
            first_rg=first_rg, second_rg=second_rg, i1_q=rows, i2_q=rows, rows2_r=rows
        )


def compared_draws(
    draws: PairedDraws,
    options: DifferentialOptions,
    mean_counts: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Columns of the table that follow from draws: arrays ``[g]``, and numbers of all genes.

    Parameters
    ----------
    mean_counts
        Mean count of each gene in each population; needed where the pseudocount is to be found.

    Source
    ------
    Lopez et al. 2018 (mode ``"vanilla"``); Boyeau et al. 2019, "Deep generative models for
    detecting differential expression in single cells" (mode ``"change"``).
    """
    first = kernels.mean_and_largest(draws.first_rg, np.arange(len(draws.first_rg)))
    second = kernels.mean_and_largest(draws.second_rg, draws.rows2_r)
    scales = {"scale1": first[0], "scale2": second[0]}
    n_pairs = len(draws.i1_q)
    if options.mode == "vanilla":
        more = _over_genes(
            draws, lambda d: kernels.count_more(d.first_rg, d.second_rg, d.i1_q, d.i2_q)
        )
        more_g = more / n_pairs
        return {
            "proba_m1": more_g,
            "proba_m2": 1.0 - more_g,
            "bayes_factor": bayes_factor(more_g),
            **scales,
        }
    pseudocount = options.pseudocounts
    if pseudocount is None:
        assert mean_counts is not None, "a pseudocount is found from counts"
        silent = [mean_g < options.threshold_counts for mean_g in mean_counts]
        pseudocount = found_pseudocount(first[1], second[1], silent[0], silent[1])
    is_custom = options.change_fn is not None or options.m1_domain_fn is not None
    change = _custom_change if is_custom else _change
    up_g, down_g, delta, described = change(draws, options, pseudocount)
    probability_g = up_g + down_g if options.test_mode == "two" else np.maximum(up_g, down_g)
    return {
        "proba_de": probability_g,
        "proba_not_de": 1.0 - probability_g,
        "bayes_factor": bayes_factor(probability_g),
        **scales,
        "pseudocounts": pseudocount,
        "delta": delta,
        **described,
    }


_Change = tuple[np.ndarray, np.ndarray, float | None, dict[str, np.ndarray]]


def _change(draws: PairedDraws, options: DifferentialOptions, pseudocount: float) -> _Change:
    """Shares of the pairs that go up and down, the delta, and the columns of the LFC."""
    delta = options.delta
    if delta is None:
        means = _over_genes(draws, lambda d: kernels.mean_changes(_changes(d, pseudocount)))
        delta = found_delta(means, options.seed)
    fold = 2.0**delta
    levels = np.array(options.cred_interval_lvls, dtype=np.float64)

    def of_tile(d: PairedDraws) -> np.ndarray:
        counts = kernels.count_changes(d.first_rg, d.second_rg, d.i1_q, d.i2_q, pseudocount, fold)
        x_gq = _changes(d, REDUCED * pseudocount)
        rows = [np.stack(counts) / len(d.i1_q), kernels.describe(x_gq)]
        if len(levels):
            rows.append(kernels.shortest_intervals(x_gq, levels).reshape(-1, len(x_gq)))
        return np.concatenate(rows)

    found = _over_genes(draws, of_tile)
    return found[0], found[1], delta, lfc_columns(found[2:], options.cred_interval_lvls)


def lfc_columns(values: np.ndarray, levels: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Columns by name, of the rows :data:`LFC_COLUMNS` and the ends of each interval."""
    names = list(LFC_COLUMNS)
    for level in levels:
        names += [interval_name(level, "min"), interval_name(level, "max")]
    return dict(zip(names, values, strict=True))


def _changes(draws: PairedDraws, pseudocount: float) -> np.ndarray:
    return kernels.changes(draws.first_rg, draws.second_rg, draws.i1_q, draws.i2_q, pseudocount)


def _custom_change(draws: PairedDraws, options: DifferentialOptions, pseudocount: float) -> _Change:
    """As :func:`_change`, of functions of the user's, which see all pairs and genes at once."""
    change_fn = options.change_fn or log_fold_change
    _check_arguments(change_fn, 3, "change_fn", "both scales and the pseudocount")
    x_qg, y_qg = draws.first_rg[draws.i1_q], draws.second_rg[draws.i2_q]
    effect_qg = np.asarray(change_fn(x_qg, y_qg, pseudocount))
    delta = options.delta
    if delta is None:
        delta = found_delta(effect_qg.mean(0, dtype=np.float64), options.seed)
    if options.m1_domain_fn is None:
        up, down = effect_qg >= delta, effect_qg < -delta
    else:
        _check_arguments(options.m1_domain_fn, 1, "m1_domain_fn", "the effect sizes")
        up, down = options.m1_domain_fn(effect_qg)
    reduced_qg = np.asarray(change_fn(x_qg, y_qg, REDUCED * pseudocount), dtype=np.float32)
    x_gq = np.ascontiguousarray(reduced_qg.T)
    rows = [kernels.describe(x_gq)]
    if options.cred_interval_lvls:
        levels = np.array(options.cred_interval_lvls, dtype=np.float64)
        rows.append(kernels.shortest_intervals(x_gq, levels).reshape(-1, len(x_gq)))
    described = lfc_columns(np.concatenate(rows), options.cred_interval_lvls)
    return np.mean(up, axis=0), np.mean(down, axis=0), delta, described


def log_fold_change(x: np.ndarray, y: np.ndarray, pseudocount: float) -> np.ndarray:
    """The LFC of two arrays of scales."""
    return np.log2(x + pseudocount) - np.log2(y + pseudocount)


def _check_arguments(function: Callable[..., Any], n: int, name: str, what: str) -> None:
    seen = len(signature(function).parameters)
    if seen != n:
        raise ConfigError(f"{name} is called with {n} arguments, {what}; it takes {seen}.")


def _over_genes(draws: PairedDraws, compute: Callable[[PairedDraws], np.ndarray]) -> np.ndarray:
    """What is computed of tiles of genes, the last axis; as many threads as torch has."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return np.concatenate(list(pool.map(compute, _tiles(draws))), axis=-1)


def _tiles(draws: PairedDraws) -> Iterator[PairedDraws]:
    for start in range(0, draws.first_rg.shape[1], _TILE):
        genes = slice(start, start + _TILE)
        yield PairedDraws(
            # Copied together: rows of all genes are pages apart.
            first_rg=np.ascontiguousarray(draws.first_rg[:, genes]),
            second_rg=np.ascontiguousarray(draws.second_rg[:, genes]),
            i1_q=draws.i1_q,
            i2_q=draws.i2_q,
            rows2_r=draws.rows2_r,
        )
