"""Tables of differential expression, with scvi-tools' columns in their order.

Axis suffixes: ``g`` genes (features), ``s`` strata.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.analysis.differential.groups import Comparison
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.statistics import called
from scvi_dist.analysis.raw_statistics import GroupStatistics

RAW_COLUMNS = ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")


def table_of(
    columns: Mapping[str, Any],
    comparison: Comparison,
    options: DifferentialOptions,
    names_g: np.ndarray,
    *,
    is_named: bool,
) -> pd.DataFrame:
    """The table of one comparison, the likeliest changes first."""
    table = pd.DataFrame(dict(columns), index=pd.Index(names_g))
    by = "proba_de" if options.mode == "change" else "bayes_factor"
    if options.mode == "change":
        table[f"is_de_fdr_{options.fdr_target}"] = called(
            table["proba_de"].to_numpy(), options.fdr_target
        )
    table = table.iloc[np.argsort(-table[by].to_numpy(), kind="stable")]
    if is_named:
        table["comparison"] = f"{comparison.group1} vs {comparison.group2}"
        table["group1"] = comparison.group1
        table["group2"] = comparison.group2
    return table


def raw_columns(
    known: GroupStatistics, first: int, second: int, *, genes: bool, proteins: bool
) -> dict[str, np.ndarray]:
    """Statistics of the counts of two groups; proteins have no normalised mean.

    Parameters
    ----------
    first, second
        Which of the groups that statistics are known of.
    genes, proteins
        Which features the table has.
    """
    of_genes = (known.mean_sg, known.nonzeros_sg, known.normalised_mean_sg)
    nan_sp = np.full_like(known.protein_mean_sp, np.nan)
    of_proteins = (known.protein_mean_sp, known.protein_nonzeros_sp, nan_sp)
    columns = {}
    for name, genes_sg, proteins_sp in zip(RAW_COLUMNS, of_genes, of_proteins, strict=True):
        for side, group in ((1, first), (2, second)):
            parts = [genes_sg[group]] * genes + [proteins_sp[group]] * proteins
            columns[f"{name}{side}"] = np.concatenate(parts)
    return columns
