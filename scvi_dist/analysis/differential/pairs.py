"""What pairs of draws say of the difference between two populations.

Axis suffixes: ``r`` draws, ``q`` pairs, ``f`` features, ``t`` tiles of ``g`` features.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from inspect import signature
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch

from scvi_dist.analysis.differential import kernels, tile_kernels
from scvi_dist.analysis.differential.decode import Decoded
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.statistics import (
    REDUCED,
    bayes_factor,
    found_delta,
    found_pseudocount,
    interval_name,
)
from scvi_dist.errors import ConfigError
from scvi_dist.kernels import threads
from scvi_dist.kernels.lanes import LANES

IN_MEMORY_BYTES = 300 << 20
"""Draws of one population that take more are kept in a temporary file."""
_LINE = 16
"""Numbers of a line of the processor's cache: a vector that lies in two takes twice as long."""
LFC_COLUMNS = ("lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max")


class Scratch:
    """Memory that is used again: the system takes its time to give out new memory."""

    def __init__(self) -> None:
        self._flat = np.empty(0, dtype=np.float32)

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """float32 array; in a temporary file if it is large."""
        size = int(np.prod(shape))
        if size > len(self._flat):
            self._flat = np.empty(0, dtype=np.float32)
            self._flat = _in_file(size) if 4 * size > IN_MEMORY_BYTES else _in_memory(size)
        return self._flat[:size].reshape(shape)


def _in_memory(size: int) -> np.ndarray:
    room = np.empty(size + _LINE, dtype=np.float32)
    skipped = -room.ctypes.data % (4 * _LINE) // 4
    return room[skipped : skipped + size]


def _in_file(size: int) -> np.ndarray:
    with TemporaryFile(prefix="scvi_dist_draws_") as file:
        # The mapping outlives the file's name.
        return np.memmap(file, dtype=np.float32, mode="w+", shape=size).view(np.ndarray)


@dataclass(frozen=True, slots=True)
class Draws:
    """Scales of draws, in tiles of features."""

    tiles_trg: np.ndarray
    """float32; features that fill the last tile up have a scale of 1."""
    n_features: int

    @staticmethod
    def room(n_draws: int, n_features: int, scratch: "Scratch | None" = None) -> "Draws":
        """For so many draws; in the memory of ``scratch``, whatever was there before."""
        scratch = Scratch() if scratch is None else scratch
        return Draws(scratch.take((-(-n_features // LANES), n_draws, LANES)), n_features)

    @staticmethod
    def of(scale_rf: np.ndarray) -> "Draws":
        """Of an array."""
        draws = Draws.room(*scale_rf.shape)
        draws.put(0, Decoded(scale_rf.astype(np.float32, copy=False)))
        return draws

    def put(self, start: int, decoded: Decoded) -> None:
        """Keep draws, the first of which is number ``start``; what is decoded is written over."""
        put = tile_kernels.put_proportions if decoded.are_logits else tile_kernels.put_scales
        value_rf = np.ascontiguousarray(decoded.value_rf)
        threads.run(
            [
                partial(put, value_rf, first, stop, start + first, self.tiles_trg)
                for first, stop in threads.cuts(0, len(value_rf), threads.n_threads())
            ]
        )

    def rows(self, rows_r: np.ndarray) -> np.ndarray:
        """float32 ``[r, f]``: some of the draws."""
        taken_trg = self.tiles_trg[:, rows_r.astype(np.int64)]
        whole = np.ascontiguousarray(taken_trg.transpose(1, 0, 2))
        return whole.reshape(len(rows_r), -1)[:, : self.n_features]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDraws:
    """Draws of two populations, and which are compared with which."""

    first: Draws
    second: Draws
    """Draws that those of the second population are among."""
    i1_q: np.ndarray
    i2_q: np.ndarray
    """uint64: rows of the pairs."""
    rows2_r: np.ndarray
    """uint64: rows of the second population's draws."""

    @staticmethod
    def aligned(first_rf: np.ndarray, second_rf: np.ndarray) -> "PairedDraws":
        """Each draw with the one in the same row."""
        rows = np.arange(len(first_rf), dtype=np.uint64)
        return PairedDraws(
            first=Draws.of(first_rf),
            second=Draws.of(second_rf),
            i1_q=rows,
            i2_q=rows,
            rows2_r=rows,
        )

    @property
    def pairs(self) -> tuple[np.ndarray, ...]:
        """What the loops over pairs take first."""
        return self.first.tiles_trg, self.second.tiles_trg, self.i1_q, self.i2_q


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
    first = _mean_and_largest(
        draws.first, np.arange(draws.first.tiles_trg.shape[1], dtype=np.uint64)
    )
    second = _mean_and_largest(draws.second, draws.rows2_r)
    scales = {"scale1": first[0], "scale2": second[0]}
    if options.mode == "vanilla":
        counted = _over_tiles(draws.first, 1, kernels.count_more, *draws.pairs)[0]
        more_f = counted / len(draws.i1_q)
        return {
            "proba_m1": more_f,
            "proba_m2": 1.0 - more_f,
            "bayes_factor": bayes_factor(more_f),
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
        means = _over_tiles(draws.first, 1, kernels.mean_changes, *draws.pairs, last=(pseudocount,))
        delta = found_delta(means[0], options.seed)
    levels = np.array(options.cred_interval_lvls, dtype=np.float64)
    found = _over_tiles(
        draws.first,
        7 + 2 * len(levels),
        kernels.describe_changes,
        *draws.pairs,
        last=(pseudocount, 2.0**delta, REDUCED * pseudocount, levels),
    )
    up_f, down_f = found[:2] / len(draws.i1_q)
    return up_f, down_f, delta, lfc_columns(found[2:], options.cred_interval_lvls)


def lfc_columns(values: np.ndarray, levels: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Columns by name, of the rows :data:`LFC_COLUMNS` and the ends of each interval."""
    names = list(LFC_COLUMNS)
    for level in levels:
        names += [interval_name(level, "min"), interval_name(level, "max")]
    return dict(zip(names, values, strict=True))


def _custom_change(draws: PairedDraws, options: DifferentialOptions, pseudocount: float) -> _Change:
    """As :func:`_change`, of functions of the user's, which see all pairs and genes at once."""
    change_fn = options.change_fn or log_fold_change
    _check_arguments(change_fn, 3, "change_fn", "both scales and the pseudocount")
    x_qg, y_qg = draws.first.rows(draws.i1_q), draws.second.rows(draws.i2_q)
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
    described = described_changes(reduced_qg, options.cred_interval_lvls)
    return np.mean(up, axis=0), np.mean(down, axis=0), delta, described


def described_changes(x_qf: np.ndarray, levels: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Columns by name that describe changes which are there."""
    changes = Draws.of(x_qf)
    level_l = np.array(levels, dtype=np.float64)
    n_rows = len(LFC_COLUMNS) + 2 * len(levels)
    tiles_tqg = changes.tiles_trg
    found = _over_tiles(changes, n_rows, kernels.describe, tiles_tqg, last=(level_l,))
    return lfc_columns(found, levels)


def log_fold_change(x: np.ndarray, y: np.ndarray, pseudocount: float) -> np.ndarray:
    """The LFC of two arrays of scales."""
    return np.log2(x + pseudocount) - np.log2(y + pseudocount)


def _check_arguments(function: Callable[..., Any], n: int, name: str, what: str) -> None:
    seen = len(signature(function).parameters)
    if seen != n:
        raise ConfigError(f"{name} is called with {n} arguments, {what}; it takes {seen}.")


def _mean_and_largest(draws: Draws, rows_r: np.ndarray) -> np.ndarray:
    return _over_tiles(draws, 2, kernels.mean_and_largest, draws.tiles_trg, rows_r)


def _over_tiles(
    draws: Draws,
    n_rows: int,
    kernel: Callable[..., None],
    *first: Any,
    last: tuple[Any, ...] = (),
) -> np.ndarray:
    """float64 ``[rows, f]``, which a loop fills; as many threads as torch has."""
    n_tiles = len(draws.tiles_trg)
    found = np.empty((n_rows, n_tiles * LANES))
    edges = np.linspace(0, n_tiles, min(torch.get_num_threads(), n_tiles) + 1).astype(int)

    def compute(part: int) -> None:
        kernel(*first, int(edges[part]), int(edges[part + 1]), *last, found)

    if len(edges) == 2:
        compute(0)
    else:
        with ThreadPoolExecutor(len(edges) - 1) as pool:
            list(pool.map(compute, range(len(edges) - 1)))
    return found[:, : draws.n_features]
