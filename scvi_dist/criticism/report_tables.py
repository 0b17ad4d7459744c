"""The numbers of a report: one table for each metric, and all of them as JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.criticism.check import PosteriorPredictiveCheck
from scvi_dist.criticism.names import (
    CALIBRATION,
    CV_CELL,
    CV_GENE,
    DIFF_EXP,
    RAW_COLUMN,
    ZERO_FRACTION,
)
from scvi_dist.criticism.report_text import markdown_table

MODEL_NAME = "model"
"""Name of the model in the tables of the check."""
ALL_CELLS = "all cells"
"""Column of a table that does not tell training and validation apart."""


def fit_of(model: np.ndarray, raw: np.ndarray) -> dict[str, float]:
    """How near values of a model are to the observed ones; NaN where it cannot be said.

    ``R²`` is the share of the variance of the observed values that the model's explain.
    """
    from scipy.stats import pearsonr, spearmanr

    both = np.isfinite(model) & np.isfinite(raw)
    model, raw = model[both], raw[both]
    n = len(raw)
    varies = n > 1 and np.ptp(model) > 0 and np.ptp(raw) > 0
    spread = float(((raw - raw.mean()) ** 2).sum()) if n else 0.0
    return {
        "Mean Absolute Error": float(np.abs(model - raw).mean()) if n else np.nan,
        "Pearson Correlation": float(pearsonr(model, raw)[0]) if varies else np.nan,
        "Spearman Correlation": float(spearmanr(model, raw)[0]) if varies else np.nan,
        "R² (R-Squared)": 1 - float(((raw - model) ** 2).sum()) / spread if spread else np.nan,
    }


def tables_of(
    check: PosteriorPredictiveCheck, parts: Mapping[str, np.ndarray]
) -> dict[str, pd.DataFrame]:
    """A table for each metric of the check; ``parts`` are cells that are told apart."""
    tables = {}
    for key in (CV_GENE, CV_CELL, ZERO_FRACTION):
        if key in check.metrics:
            values = check.metrics[key]
            chosen = parts if parts and key == CV_CELL else {ALL_CELLS: slice(None)}
            tables[key] = pd.DataFrame(
                {
                    name: fit_of(*(values[c].to_numpy()[at] for c in (MODEL_NAME, RAW_COLUMN)))
                    for name, at in chosen.items()
                }
            ).rename_axis("Metric")
    if check.coverage is not None:
        shares = check.coverage[MODEL_NAME].sort_index()
        shares.index = pd.Index([f"{width:.3g}" for width in shares.index], name="width")
        tables[CALIBRATION] = pd.DataFrame({"share within": shares})
    if DIFF_EXP in check.metrics:
        summary = check.metrics[DIFF_EXP]["summary"].drop(columns="model").set_index("group")
        tables[DIFF_EXP] = summary.sort_values("n_cells", ascending=False, kind="stable")
    return tables


def json_of(check: PosteriorPredictiveCheck, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """scvi-tools' three keys with tables in Markdown, and all numbers."""
    text = {key: markdown_table(table) for key, table in tables.items()}
    numbers: dict[str, Any] = {
        key: {column: _plain(table[column]) for column in table.columns}
        for key, table in tables.items()
    }
    if CALIBRATION in check.metrics:
        numbers["calibration_error"] = float(check.metrics[CALIBRATION].iloc[0, 0])
    return {
        "cell_wise_cv": text.get(CV_CELL, ""),
        "gene_wise_cv": text.get(CV_GENE, ""),
        "diff_exp": text.get(DIFF_EXP, ""),
        "numbers": numbers,
        "n_cells": check.n_cells,
        "n_features": len(check.features),
        "n_samples": check.n_samples,
        "seed": check.seed,
    }


def _plain(column: pd.Series) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {str(k): float(v) if np.isfinite(v) else None for k, v in column.items()}
