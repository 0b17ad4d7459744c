"""Names of the metrics, which are scvi-tools', and what users say about them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.errors import ConfigError

CV_CELL = "cv_cell"
CV_GENE = "cv_gene"
ZERO_FRACTION = "zero_fraction"
CALIBRATION = "calibration"
DIFF_EXP = "diff_exp"
METRICS = (CV_CELL, CV_GENE, ZERO_FRACTION, CALIBRATION, DIFF_EXP)
RAW_COLUMN = "Raw"
"""Column of the observed counts in tables that have one for each model."""

_PERCENT = (2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 17.5, 82.5, 85.0, 87.5, 90.0, 92.5, 95.0, 97.5)
DEFAULT_QUANTILES = tuple(percent / 100 for percent in _PERCENT)
"""Seven central intervals, as scvi-tools has them."""


def checked_intervals(given: Sequence[float] | float | None) -> tuple[tuple[float, float], ...]:
    """Pairs of quantiles, the widest first.

    Raises
    ------
    ConfigError
        They are not an even number of ascending quantiles, or not a width.
    """
    if given is None:
        quantiles = list(DEFAULT_QUANTILES)
    elif isinstance(given, int | float):
        quantiles = [0.5 - given / 2, 0.5 + given / 2]
    else:
        quantiles = [float(q) for q in given]
    n = len(quantiles)
    is_right = n > 0 and n % 2 == 0 and bool(np.all(np.diff(quantiles) > 0))
    if not is_right or quantiles[0] < 0 or quantiles[-1] > 1:
        raise ConfigError(
            "confidence_intervals are an even number of quantiles between 0 and 1 in ascending "
            f"order, of which the first and the last make an interval and so on; seen {given!r}."
        )
    return tuple(zip(quantiles[: n // 2], quantiles[: n // 2 - 1 : -1], strict=True))


def described(metrics: Mapping[str, Any]) -> str:
    """The metrics as JSON, tables by their sizes."""

    def of_table(value: Any) -> str:
        if isinstance(value, pd.DataFrame):
            return f"Pandas DataFrame with shape={value.shape}, columns={value.columns.to_list()}"
        return repr(value)

    return json.dumps(dict(metrics), indent=4, default=of_table)
