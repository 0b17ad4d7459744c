"""Tests of groups against the rest, from sums: those of SciPy on the values themselves."""

import numpy as np
import pytest
from scipy import stats

from scvi_dist.analysis.group_tests import (
    GroupSums,
    binned_rank_sums,
    exact_rank_sums,
    log_fold_changes,
    rank_sum_tests,
    welch_tests,
)
from scvi_dist.analysis.predictive_kernels import add_group_moments, add_histogram, write_normalised

N, F, C = 400, 30, 4
TARGET = 1e4


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Counts ``[1, n, f]`` of which most are 0, and groups."""
    rng = np.random.default_rng(0)
    codes = rng.integers(C, size=N)
    rates = rng.lognormal(-1, 1, (C, F))[codes] * rng.gamma(2, 0.5, (N, 1))
    counts = rng.poisson(rates).astype(np.float32)
    counts[5] = 0
    return counts[None], codes.astype(np.int32)


@pytest.fixture(scope="module")
def values(drawn: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Normalised, by NumPy."""
    x = drawn[0][0].astype(float)
    return np.log1p(TARGET * x / np.maximum(x.sum(1, keepdims=True), 1))


@pytest.fixture(scope="module")
def sums(drawn: tuple[np.ndarray, np.ndarray]) -> GroupSums:
    counts, codes = drawn
    total, square = np.zeros((1, C, F)), np.zeros((1, C, F))
    # In two parts: sums are added to.
    for part in (slice(0, 150), slice(150, N)):
        there = np.ascontiguousarray(counts[:, part])
        add_group_moments(there, codes[part], TARGET, total, square)
    return GroupSums(np.bincount(codes), total[0], square[0])


def test_means_and_variances(
    drawn: tuple[np.ndarray, np.ndarray], values: np.ndarray, sums: GroupSums
) -> None:
    codes = drawn[1]
    for c in range(C):
        for part, is_in in ((sums, codes == c), (sums.rest(), codes != c)):
            np.testing.assert_allclose(part.mean()[c], values[is_in].mean(0), rtol=1e-6)
            np.testing.assert_allclose(part.variance()[c], values[is_in].var(0, ddof=1), rtol=1e-6)


def test_welchs_test_is_scipys(
    drawn: tuple[np.ndarray, np.ndarray], values: np.ndarray, sums: GroupSums
) -> None:
    got, codes = welch_tests(sums), drawn[1]
    for c in range(C):
        t, p = stats.ttest_ind(values[codes == c], values[codes != c], equal_var=False)
        np.testing.assert_allclose(got.score_cf[c], t, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(got.p_value_cf[c], p, rtol=1e-5)
        adjusted = stats.false_discovery_control(p)
        np.testing.assert_allclose(got.adjusted_cf[c], adjusted, rtol=1e-5)


def test_rank_sums_are_scipys_whatever_the_ties(
    drawn: tuple[np.ndarray, np.ndarray], values: np.ndarray, sums: GroupSums
) -> None:
    counts, codes = drawn
    kept = np.empty((N, 1, F), dtype=np.float32)
    write_normalised(counts, TARGET, kept)
    np.testing.assert_allclose(kept[:, 0], values, rtol=1e-6)
    got = rank_sum_tests(sums, exact_rank_sums(kept[:, 0], codes, C))
    for c in range(C):
        u = stats.mannwhitneyu(kept[codes == c, 0], kept[codes != c, 0]).statistic
        n, m = (codes == c).sum(), (codes != c).sum()
        z = (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
        np.testing.assert_allclose(got.score_cf[c], z, rtol=1e-6, atol=1e-9)


def test_rank_sums_of_bins_are_near(
    drawn: tuple[np.ndarray, np.ndarray], sums: GroupSums, values: np.ndarray
) -> None:
    counts, codes = drawn
    exact = rank_sum_tests(sums, exact_rank_sums(values.astype(np.float32), codes, C)).score_cf
    errors = []
    for n_bins in (16, 64, 256):
        histogram = np.zeros((1, C, n_bins, F), dtype=np.int32)
        add_histogram(counts, codes, TARGET, histogram)
        ranks = binned_rank_sums(histogram[0], sums.n_c)
        np.testing.assert_allclose(ranks.sum(0), N * (N + 1) / 2)
        errors.append(np.abs(rank_sum_tests(sums, ranks).score_cf - exact).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.15
    assert errors[2] < 0.05


def test_fold_changes_and_groups_too_small_for_a_test() -> None:
    one = GroupSums(np.array([1, 3]), np.array([[0.7], [0.0]]), np.array([[0.49], [0.0]]))
    assert log_fold_changes(one)[0, 0] == pytest.approx(np.log2(np.expm1(0.7) / 1e-9), rel=1e-6)
    tests = welch_tests(one)
    assert tests.score_cf.tolist() == [[0.0], [0.0]]
    assert tests.p_value_cf.tolist() == [[1.0], [1.0]]
