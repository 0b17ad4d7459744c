"""Differences of histograms are those of all pairs of draws, within the bound that is stated."""

from typing import Any

import numpy as np
import pytest
import torch

from scvi_dist.analysis.differential.convolution import Side, Sides, compared
from scvi_dist.analysis.differential.histograms import Grid, Histograms
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.pairs import Draws, PairedDraws, compared_draws

N_FEATURES, N_BINS = 6, 128
BATCHES = (None,)


def draws(seed: int, n: int) -> np.ndarray:
    """float32 ``[r, f]``: scales of features that lie and spread differently."""
    rng = np.random.default_rng(seed)
    centre = np.linspace(-18, -4, N_FEATURES)
    spread = np.array([0.1, 0.5, 1.0, 1.5, 0.3, 2.0])
    shift = rng.normal(0, 0.5, N_FEATURES)
    return np.exp2(rng.normal(centre + shift, spread, (n, N_FEATURES))).astype(np.float32)


def grid_of(*parts: np.ndarray) -> Grid:
    logs = np.log2(np.concatenate(parts))
    return Grid.around(logs.min(0), logs.max(0), N_BINS)


def counted(parts: list[np.ndarray], grid: Grid) -> Histograms:
    """Each part is a stratum."""
    room = Histograms.empty(len(parts), grid)
    for s, scale_rf in enumerate(parts):
        room.add(torch.from_numpy(scale_rf), np.full(len(scale_rf), s))
    return room


def sides_of(parts: list[np.ndarray], grid: Grid) -> Sides:
    cells_s = np.array([len(part) for part in parts])
    return Sides(counted(parts, grid), BATCHES, cells_s, np.ones(len(parts), dtype=int))


def of(sides: Sides, *strata: int) -> Side:
    return sides.of(strata, [None], mixed=True)


def all_pairs(
    first: np.ndarray, second: np.ndarray, options: DifferentialOptions
) -> dict[str, Any]:
    n1, n2 = len(first), len(second)
    i1, i2 = (i.astype(np.uint64) for i in np.divmod(np.arange(n1 * n2), n2))
    rows = np.arange(n2, dtype=np.uint64)
    pairs = PairedDraws(
        first=Draws.of(first), second=Draws.of(second), i1_q=i1, i2_q=i2, rows2_r=rows
    )
    return compared_draws(pairs, options)


@pytest.mark.parametrize("pseudocounts", [1e-12, 1e-6, 1e-3, 1.0])
def test_a_difference_is_that_of_all_pairs_within_a_bin(pseudocounts: float) -> None:
    first, second = draws(0, 300), draws(1, 250)
    grid = grid_of(first, second)
    sides = sides_of([first, second], grid)
    options = DifferentialOptions(
        mode="change", pseudocounts=pseudocounts, cred_interval_lvls=(0.5, 0.9)
    )
    got = compared(of(sides, 0), of(sides, 1), grid, options, None)
    expected = all_pairs(first, second, options)
    assert list(got) == list(expected)
    width = grid.width_f
    for name in ("lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max"):
        assert (np.abs(got[name] - expected[name]) <= width).all(), name
    for name in ("scale1", "scale2"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
    # A probability is that of a delta no further off than a bin.
    low, high = (
        all_pairs(
            first,
            second,
            DifferentialOptions(mode="change", pseudocounts=pseudocounts, delta=delta),
        )["proba_de"]
        for delta in (0.25 + float(width.max()), max(0.25 - float(width.max()), 0.0))
    )
    assert (low - 1e-9 <= got["proba_de"]).all()
    assert (got["proba_de"] <= high + 1e-9).all()
    for level in ("0.5", "0.9"):
        names = [f"lfc_confidence_interval_{level}_{end}" for end in ("min", "max")]
        length, shortest = (t[names[1]] - t[names[0]] for t in (got, expected))
        assert (length <= shortest + 2 * width).all()


def test_the_mean_without_a_pseudocount_is_exact() -> None:
    first, second = draws(0, 40), draws(1, 50)
    grid = grid_of(first, second)
    sides = sides_of([first, second], grid)
    options = DifferentialOptions(mode="change", pseudocounts=1e-30)
    got = compared(of(sides, 0), of(sides, 1), grid, options, None)
    expected = np.log2(first.astype(float)).mean(0) - np.log2(second.astype(float)).mean(0)
    np.testing.assert_allclose(got["lfc_mean"], expected, atol=1e-6)


def test_which_has_more_is_the_share_of_pairs() -> None:
    first, second = draws(0, 200), draws(1, 150)
    grid = grid_of(first, second)
    sides = sides_of([first, second], grid)
    options = DifferentialOptions(mode="vanilla")
    got = compared(of(sides, 0), of(sides, 1), grid, options, None)
    more = (first[:, None] > second[None]).mean((0, 1))
    np.testing.assert_allclose(got["proba_m1"], more, atol=0.02)
    swapped = compared(of(sides, 1), of(sides, 0), grid, options, None)
    np.testing.assert_allclose(got["proba_m1"] + swapped["proba_m1"], 1.0)


def test_the_rest_is_the_complement() -> None:
    parts = [draws(seed, 60 + 10 * seed) for seed in range(4)]
    grid = grid_of(*parts)
    options = DifferentialOptions(mode="change", pseudocounts=1e-6)
    sides = sides_of(parts, grid)
    as_two = sides_of([parts[0], np.concatenate(parts[1:])], grid)
    got = compared(of(sides, 0), of(sides, 1, 2, 3), grid, options, None)
    expected = compared(of(as_two, 0), of(as_two, 1), grid, options, None)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_strata_that_are_drawn_more_often_count_by_their_cells() -> None:
    few, many = draws(0, 50), draws(1, 100)
    grid = grid_of(few, many)
    options = DifferentialOptions(mode="change", pseudocounts=1e-6)
    once = Sides(counted([few, many], grid), BATCHES, np.array([50, 100]), np.array([1, 1]))
    thrice = Sides(
        counted([np.tile(few, (3, 1)), many], grid),
        BATCHES,
        np.array([50, 100]),
        np.array([3, 1]),
    )
    got = compared(of(thrice, 0, 1), of(thrice, 1), grid, options, None)
    expected = compared(of(once, 0, 1), of(once, 1), grid, options, None)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_what_lies_outside_is_counted_and_its_moments_are_kept() -> None:
    inside, outside = draws(0, 80), draws(0, 80)
    outside[:8] *= 2.0**20
    outside[8:12] = 0.0
    grid = grid_of(inside)
    room = counted([outside], grid)
    assert (room.outside_1f == 12).all()
    assert (room.counts_tbf.sum(axis=1) == 80).all()
    np.testing.assert_allclose(room.moments_mtf[0, 0], outside.sum(0, dtype=float), rtol=1e-6)
    assert (room.extremes_mtf[0] == -126).all()
