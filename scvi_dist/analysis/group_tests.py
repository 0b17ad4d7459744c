"""Each group of cells against all others, from sums of normalised values: tests and fold changes.

The statistics are those of scanpy's ``rank_genes_groups`` with ``reference="rest"``.

Axis suffixes: ``n`` cells, ``f`` features, ``c`` groups, ``b`` bins.
"""

from dataclasses import dataclass

import numpy as np

from scvi_dist.analysis.raw_statistics import mean_and_variance

_LFC_FLOOR = 1e-9
"""Added to mean expression before the ratio; scanpy's."""
_FEATURES_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class GroupSums:
    """Sums over the cells of each group of ``v = log(1 + normalised count)``."""

    n_c: np.ndarray
    """Cells."""
    sum_cf: np.ndarray
    square_cf: np.ndarray
    """Of ``v²``."""

    def rest(self) -> "GroupSums":
        """The same of all cells that are not in the group."""
        return GroupSums(
            self.n_c.sum() - self.n_c,
            self.sum_cf.sum(0) - self.sum_cf,
            self.square_cf.sum(0) - self.square_cf,
        )

    def mean(self) -> np.ndarray:
        """``[c, f]``; NaN for groups without cells."""
        return self._moments()[0]

    def variance(self) -> np.ndarray:
        """Unbiased, ``[c, f]``; NaN for groups of fewer than two cells."""
        return np.where(self.n_c[:, None] > 1, self._moments()[1], np.nan)

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return mean_and_variance(self.sum_cf, self.square_cf, self.n_c[:, None].astype(float))


@dataclass(frozen=True, slots=True)
class GroupTests:
    """Each group against the rest."""

    score_cf: np.ndarray
    """t, or z of a rank sum; positive where the group has more."""
    p_value_cf: np.ndarray
    """Two-sided."""
    adjusted_cf: np.ndarray
    """The same, after Benjamini and Hochberg over features."""
    lfc_cf: np.ndarray
    """log2 of the ratio of mean normalised counts."""


def log_fold_changes(sums: GroupSums) -> np.ndarray:
    """``log2 (expm1(mean of group) / expm1(mean of rest))``, ``[c, f]``."""
    group, rest = (np.expm1(part.mean()) + _LFC_FLOOR for part in (sums, sums.rest()))
    return np.log2(group / rest)


def welch_tests(sums: GroupSums) -> GroupTests:
    """Welch's t-test of the means."""
    from scipy.stats import ttest_ind_from_stats

    rest = sums.rest()
    with np.errstate(invalid="ignore", divide="ignore"):
        score_cf, p_value_cf = ttest_ind_from_stats(
            sums.mean(),
            np.sqrt(sums.variance()),
            sums.n_c[:, None],
            rest.mean(),
            np.sqrt(rest.variance()),
            rest.n_c[:, None],
            equal_var=False,
        )
    return _tests(score_cf, p_value_cf, sums)


def rank_sum_tests(sums: GroupSums, rank_sum_cf: np.ndarray) -> GroupTests:
    """Wilcoxon's rank sum test by its normal approximation, without a correction for ties."""
    from scipy.stats import norm

    n_c1 = sums.n_c[:, None].astype(float)
    n_cells = n_c1.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.sqrt(n_c1 * (n_cells - n_c1) * (n_cells + 1) / 12)
        score_cf = (rank_sum_cf - n_c1 * (n_cells + 1) / 2) / deviation
    return _tests(score_cf, 2 * norm.sf(np.abs(score_cf)), sums)


def _tests(score_cf: np.ndarray, p_value_cf: np.ndarray, sums: GroupSums) -> GroupTests:
    from scipy.stats import false_discovery_control

    score_cf = np.where(np.isnan(score_cf), 0.0, score_cf)
    p_value_cf = np.where(np.isnan(p_value_cf), 1.0, p_value_cf)
    adjusted_cf = false_discovery_control(p_value_cf, axis=1)
    return GroupTests(score_cf, p_value_cf, adjusted_cf, log_fold_changes(sums))


def exact_rank_sums(values_nf: np.ndarray, group_n: np.ndarray, n_groups: int) -> np.ndarray:
    """Sum of the ranks of each group's cells among all cells, ``[c, f]``; ties share their mean."""
    from scipy.stats import rankdata

    n_features = values_nf.shape[1]
    total_cf = np.empty((n_groups, n_features))
    is_in_cn = (group_n == np.arange(n_groups)[:, None]).astype(float)
    for start in range(0, n_features, _FEATURES_AT_ONCE):
        those = slice(start, start + _FEATURES_AT_ONCE)
        total_cf[:, those] = is_in_cn @ rankdata(values_nf[:, those], axis=0)
    return total_cf


def binned_rank_sums(histogram_cbf: np.ndarray, n_c: np.ndarray) -> np.ndarray:
    """The same from numbers in bins of positive values, ``[c, f]``: a bin is one large tie.

    Zeros, which are most of the ties there are, stay exact.
    """
    n_zero_cf = n_c[:, None] - histogram_cbf.sum(1)
    whole_cbf = np.concatenate([n_zero_cf[:, None], histogram_cbf], axis=1).astype(float)
    in_bin_bf = whole_cbf.sum(0)
    rank_bf = np.cumsum(in_bin_bf, axis=0) - in_bin_bf / 2 + 0.5
    return np.einsum("cbf,bf->cf", whole_cbf, rank_bf)
