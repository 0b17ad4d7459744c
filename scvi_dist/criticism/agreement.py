"""Whether genes that tell groups of cells apart do so in the counts a model draws, too.

Axis suffixes: ``f`` features, ``c`` groups, ``s`` samples.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from scvi_dist.analysis.group_tests import (
    GroupSums,
    GroupTests,
    binned_rank_sums,
    exact_rank_sums,
    rank_sum_tests,
    welch_tests,
)
from scvi_dist.analysis.predictive_pass import RAW, Grouping
from scvi_dist.errors import ConfigError, did_you_mean

Method: TypeAlias = Literal["t-test", "wilcoxon"]
COLUMNS = ("gene_f1", "lfc_mae", "lfc_pearson", "lfc_spearman", "roc_auc", "pr_auc")
"""What :func:`agreement` measures; scvi-tools' names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DEOptions:
    """How differential expression in drawn counts is compared with that in those observed."""

    de_groupby: str | None = None
    """Column of obs with the groups; each is compared with all other cells."""
    de_method: Method = "t-test"
    """Test on ``log(1 + normalised count)``."""
    n_samples: int = 1
    """Draws that are tested, each by itself; results are means over them."""
    cell_scale_factor: float = 1e4
    """Counts that each cell is brought to."""
    p_val_thresh: float = 1e-3
    """Genes with a smaller adjusted p-value in the observed counts are the ones to find again."""
    n_top_genes_fallback: int = 100
    """Genes of the highest scores that are compared as a set; also the ones to find again where
    the threshold leaves none, or more than half. At most a tenth of all."""

    def __post_init__(self) -> None:
        if self.de_method not in get_args(Method):
            raise ConfigError(
                f"de_method={self.de_method!r}; {did_you_mean(self.de_method, get_args(Method))}"
            )
        if self.n_samples < 1 or self.n_top_genes_fallback < 1 or self.cell_scale_factor <= 0:
            raise ConfigError(
                "n_samples and n_top_genes_fallback must be at least 1 and cell_scale_factor "
                f"positive, seen {self.n_samples}, {self.n_top_genes_fallback} and "
                f"{self.cell_scale_factor}."
            )

    def n_top(self, n_features: int) -> int:
        """Genes of the sets of highest scores."""
        return max(min(self.n_top_genes_fallback, n_features // 10), 1)


def tests_of(
    results: dict[str, np.ndarray], who: str, sample: int, grouping: Grouping
) -> GroupTests:
    """Tests in one draw (``who`` is ``model``), or in the observed counts (``raw``)."""
    sums = GroupSums(
        results["group_cells"],
        results[f"{who}_group_sum"][sample],
        results[f"{who}_group_square"][sample],
    )
    if grouping.ranks == "none":
        return welch_tests(sums)
    if grouping.ranks == "exact":
        values_nf = results[f"{who}_values"][:, sample]
        ranks_cf = exact_rank_sums(values_nf, grouping.codes, grouping.n_groups)
    else:
        ranks_cf = binned_rank_sums(results[f"{who}_histogram"][sample], sums.n_c)
    return rank_sum_tests(sums, ranks_cf)


def agreement(
    raw: GroupTests, model: GroupTests, group: int, options: DEOptions
) -> dict[str, float]:
    """How well a draw's differential expression of one group agrees with the observed one.

    Returns
    -------
    ``gene_f1`` of the sets of genes of the highest scores; ``lfc_mae``, ``lfc_pearson``,
    ``lfc_spearman`` of the log fold changes; ``roc_auc`` and ``pr_auc`` of the draw's scores, in
    the direction that the gene has in the observed counts, as a predictor of which genes are
    differentially expressed there. Correlations and areas that do not exist are NaN.
    """
    n_top = options.n_top(raw.score_cf.shape[1])
    raw_score_f, score_f = _single(raw.score_cf[group]), _single(model.score_cf[group])
    raw_lfc_f, lfc_f = _single(raw.lfc_cf[group]), _single(model.lfc_cf[group])
    top = [set(_highest(score, n_top).tolist()) for score in (raw_score_f, score_f)]
    is_wanted_f = _to_find_again(raw.adjusted_cf[group], raw_score_f, n_top, options)
    directed_f = score_f * np.where(raw_score_f < 0, -1.0, 1.0)
    return {
        "gene_f1": len(top[0] & top[1]) / n_top,
        "lfc_mae": float(np.mean(np.abs(raw_lfc_f - lfc_f))),
        **_correlations(raw_lfc_f, lfc_f),
        **_areas(is_wanted_f, directed_f),
    }


def _single(values: np.ndarray) -> np.ndarray:
    """In the precision in which scanpy keeps them: equal numbers there are ties here."""
    return values.astype(np.float32).astype(np.float64)


def _highest(values_f: np.ndarray, n: int) -> np.ndarray:
    return np.argsort(-values_f, kind="stable")[:n]


def _to_find_again(
    adjusted_f: np.ndarray, score_f: np.ndarray, n_top: int, options: DEOptions
) -> np.ndarray:
    is_wanted_f = adjusted_f < options.p_val_thresh
    if 0 < is_wanted_f.sum() <= 0.5 * len(is_wanted_f):
        return is_wanted_f
    is_wanted_f = np.zeros_like(is_wanted_f)
    is_wanted_f[np.lexsort((-np.abs(score_f), adjusted_f))[:n_top]] = True
    return is_wanted_f


def _correlations(first_f: np.ndarray, second_f: np.ndarray) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    both = np.isfinite(first_f) & np.isfinite(second_f)
    first_f, second_f = first_f[both], second_f[both]
    if len(first_f) < 2 or np.ptp(first_f) == 0 or np.ptp(second_f) == 0:
        return {"lfc_pearson": np.nan, "lfc_spearman": np.nan}
    return {
        "lfc_pearson": float(pearsonr(first_f, second_f)[0]),
        "lfc_spearman": float(spearmanr(first_f, second_f)[0]),
    }


def _areas(is_wanted_f: np.ndarray, score_f: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    if is_wanted_f.all() or not is_wanted_f.any():
        return {"roc_auc": np.nan, "pr_auc": np.nan}
    return {
        "roc_auc": float(roc_auc_score(is_wanted_f, score_f)),
        "pr_auc": float(average_precision_score(is_wanted_f, score_f)),
    }


@dataclass(frozen=True, slots=True)
class Groups:
    """Names of groups, and the group of each cell."""

    names: tuple[str, ...]
    codes: np.ndarray
    """int32 ``[n]``; cells of no group have the last code, behind those of the names."""

    @property
    def n_codes(self) -> int:
        """Codes in use: one more than names where some cells are in no group."""
        return max(int(self.codes.max()) + 1, len(self.names))

    @classmethod
    def of(cls, labels: pd.Series) -> "Groups":
        """Groups by label; missing labels are no group, and belong to every group's rest."""
        column = labels.astype("category").cat.remove_unused_categories()
        codes = column.cat.codes.to_numpy().astype(np.int32)
        names = tuple(map(str, column.cat.categories))
        return cls(names, np.where(codes < 0, np.int32(len(names)), codes))


def table_of(
    raw: GroupTests, samples: list[GroupTests], n_c: np.ndarray, groups: Groups, options: DEOptions
) -> pd.DataFrame:
    """Agreement of each group with at least two cells on both sides, mean over the samples."""
    rows: list[dict[str, Any]] = []
    for group, name in enumerate(groups.names):
        if min(n_c[group], n_c.sum() - n_c[group]) < 2:
            values = dict.fromkeys(COLUMNS, np.nan)
        else:
            each = [agreement(raw, sample, group, options) for sample in samples]
            values = {key: float(np.mean([one[key] for one in each])) for key in COLUMNS}
        rows.append({**values, "group": name, "n_cells": int(n_c[group])})
    return pd.DataFrame(rows)


def fold_changes(
    raw: GroupTests, samples: list[GroupTests], groups: Groups, features: pd.Index
) -> dict[str, pd.DataFrame]:
    """Group -> log fold changes observed (``raw``) and drawn (``approx``, mean over samples)."""
    drawn_cf = np.mean([sample.lfc_cf for sample in samples], axis=0)
    return {
        name: pd.DataFrame({RAW: raw.lfc_cf[c], "approx": drawn_cf[c]}, index=features)
        for c, name in enumerate(groups.names)
    }
