"""Which cells an expression over obs columns keeps."""

import re
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import pandas as pd

from scvi_dist.data.store import Store
from scvi_dist.errors import ConfigError, FieldNotFound, did_you_mean

_BLOCK_ROWS = 1 << 20


def cells_matching(store: Store, expression: str, block_rows: int = _BLOCK_ROWS) -> np.ndarray:
    """int64: rows for which a pandas expression such as ``tissue == "lung" and n_counts > 500``
    holds, ascending; a missing value does not match.

    Reads only the columns that the expression names, ``block_rows`` cells at a time.
    Raises :class:`FieldNotFound` for a name that is no column, :class:`ConfigError` for what is
    not an expression with one truth value a cell.
    """
    columns = columns_named(expression, store.obs_columns)
    where = f"filter {expression!r} on {store.locator.redacted_url}"
    if "@" in expression:
        raise ConfigError(f"{where}: '@' has no meaning here; write the value itself.")
    found = []
    for start in range(0, max(1, store.n_obs), block_rows):
        stop = min(start + block_rows, store.n_obs)
        table = store.read_obs(columns, start, stop)
        matches = _evaluate(store, table, expression, where)
        found.append(np.flatnonzero(matches) + start)
    return np.concatenate(found).astype(np.int64, copy=False)


def columns_named(expression: str, columns: Iterable[str]) -> list[str]:
    """The columns whose name occurs in an expression, as a word or between backticks."""
    return [
        name
        for name in columns
        if f"`{name}`" in expression or re.search(rf"(?<!\w){re.escape(name)}(?!\w)", expression)
    ]


def _evaluate(store: Store, table: pd.DataFrame, expression: str, where: str) -> np.ndarray:
    try:
        # The python engine, so that the meaning does not depend on numexpr being installed.
        values = table.eval(expression, engine="python", local_dict={}, global_dict={})
    except pd.errors.UndefinedVariableError as error:
        name = re.sub(r"^name '(.*)' is not defined$", r"\1", str(error))
        with suppress(FieldNotFound):
            store.read_obs([name], 0, 0)  # may tell more, such as which of many stores lacks it
        raise FieldNotFound(
            f"{where}: obs has no column {name!r}; {did_you_mean(name, store.obs_columns)}"
        ) from error
    except (SyntaxError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise ConfigError(
            f"{where} is not an expression that pandas can evaluate: {error}. An example: "
            "tissue == 'lung' and n_counts > 500"
        ) from error
    if not isinstance(values, pd.Series) or not pd.api.types.is_bool_dtype(values.dtype):
        seen = values.dtype if isinstance(values, pd.Series) else type(values).__name__
        raise ConfigError(f"{where}: expected true or false for each cell, got {seen}.")
    return values.fillna(False).to_numpy(dtype=bool)
