"""A table of a SOMA experiment (obs or var): rows in the order of their soma_joinid.

Identifiers may have gaps, tables may be written in any order, and a filter leaves rows out: row
``i`` is the one with the ``i``-th smallest identifier among those that are there.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma

from scvi_dist.data.filesystem import is_remote, unreadable
from scvi_dist.data.soma.columns import (
    IDS,
    JOINID,
    WRITER_MARK,
    empty_column,
    kind_of_type,
    pandas_column,
)
from scvi_dist.errors import (
    ConfigError,
    FieldNotFound,
    ScviDistError,
    StoreChanged,
    did_you_mean,
)

_NAMES = {"obs": (IDS["obs"],), "var": (IDS["var"], "feature_id")}
_UNKNOWN = re.compile(r"Column (.+?) does not exist")


@contextmanager
def damage_of(
    url: str, where: str, what: str, passes: type[Exception] = ScviDistError
) -> Iterator[None]:
    """Errors of TileDB and Arrow become ours; our own and ``passes`` stay as they are."""
    try:
        yield
    except (ScviDistError, passes):
        raise
    except (tiledbsoma.SOMAError, RuntimeError, OSError, ValueError, pa.ArrowException) as error:
        # TileDB has one type of error for a damaged file and a service that does not answer.
        told = ConnectionError(str(error)) if is_remote(url) else error
        raise unreadable(where, what, told)  # noqa: B904 (it sets the cause)


class SomaTable:
    """Rows of obs or var that a filter leaves.

    Parameters
    ----------
    frame
        The open ``tiledbsoma.DataFrame``.
    axis
        ``obs`` or ``var``.
    where
        Name of the store, for messages.
    value_filter
        TileDB expression over the table's columns.
    names_column
        Column with the rows' names; ``None`` for the usual ones.
    """

    def __init__(
        self,
        frame: Any,
        axis: str,
        where: str,
        value_filter: str | None = None,
        names_column: str | None = None,
    ) -> None:
        self._frame, self._axis, self._where = frame, axis, where
        self._filter = value_filter
        self._schema: pa.Schema = frame.schema
        self._is_indexed = tuple(frame.index_column_names) == (JOINID,)
        self._names_column = self._choose_names(names_column)
        self._joinids = self._read_joinids()

    def _choose_names(self, asked: str | None) -> str | None:
        if asked is not None and asked not in self._schema.names:
            raise FieldNotFound(
                f"{self._where}: {self._axis} has no column {asked!r} to take names from; "
                f"{did_you_mean(asked, self._schema.names)}"
            )
        usual = (name for name in _NAMES[self._axis] if name in self._schema.names)
        return asked or next(usual, None)

    def _read_joinids(self) -> np.ndarray | range:
        """Identifiers of all rows, ascending; a range where there are no gaps."""
        if self._filter is None and self._is_indexed:
            n = int(self._frame.count)
            if n == 0:
                return range(0)
            ((low, high),) = self._frame.non_empty_domain()
            if high - low + 1 == n:
                return range(int(low), int(high) + 1)
        joinids = np.sort(self._query([JOINID], (), self._filter)[JOINID].to_numpy())
        n = len(joinids)
        if n and int(joinids[-1]) - int(joinids[0]) + 1 == n:
            return range(int(joinids[0]), int(joinids[-1]) + 1)
        return joinids

    @property
    def n_rows(self) -> int:
        return len(self._joinids)

    def joinids_of(self, rows: np.ndarray) -> np.ndarray:
        """int64: identifiers of rows."""
        if isinstance(self._joinids, range):
            return np.asarray(rows, dtype=np.int64) + self._joinids.start
        return self._joinids[rows]

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Column -> kind, in the table's order; names, identifiers and other types left out."""
        kinds = {field.name: kind_of_type(field.type) for field in self._schema}
        hidden = (JOINID, self._names_column)
        return {
            name: kind
            for name, kind in kinds.items()
            if kind is not None and name not in hidden and not name.startswith("soma_")
        }

    def names(self, start: int, stop: int) -> np.ndarray:
        """Names of rows, object array of str."""
        if self._names_column is None or start == stop:
            ids = self.joinids_of(np.arange(start, stop))
            return ids.astype(str).astype(object)
        values = self._rows([self._names_column], start, stop)[self._names_column]
        plain = pandas_column(values, is_masked=False)
        return np.asarray(plain).astype(str).astype(object)

    def read(self, columns: Sequence[str], start: int, stop: int) -> pd.DataFrame:
        """Columns of rows, with a default index. Raises :class:`FieldNotFound`."""
        for name in columns:
            if name not in self.kinds:
                raise FieldNotFound(
                    f"{self._where}: {self._axis} has no column {name!r}; "
                    f"{did_you_mean(name, self.kinds)}"
                )
        index = pd.RangeIndex(stop - start)
        if start == stop or not columns:
            read = {name: self._empty(name) for name in columns if start == stop}
        else:
            table = self._rows(list(dict.fromkeys(columns)), start, stop)
            read = {name: pandas_column(table[name], self._is_masked(name)) for name in columns}
        series = {
            name: pd.Series(
                values, index=index, dtype=object if self.kinds[name] == "string" else None
            )
            for name, values in read.items()
        }
        return pd.DataFrame(series, index=index, columns=list(columns))

    def _empty(self, name: str) -> Any:
        field = self._schema.field(name)
        categories = None
        if self.kinds[name] == "category":
            categories = self._frame.get_enumeration_values([name])[name]
        return empty_column(field, categories, self._is_masked(name))

    def _is_masked(self, name: str) -> bool:
        """Whether the column says of itself that values may be missing.

        tiledbsoma marks every column of obs as nullable, so only what our writer marked counts.
        """
        is_ours = WRITER_MARK in self._frame.metadata
        return is_ours and self._schema.field(name).nullable

    def _rows(self, columns: list[str], start: int, stop: int) -> pa.Table:
        """Columns of rows, in order."""
        low, high = self.joinids_of(np.array([start, stop - 1])).tolist()
        asked = [JOINID, *(name for name in columns if name != JOINID)]
        if self._is_indexed:
            table = self._query(asked, (slice(low, high),), self._filter)
        else:
            window = f"{JOINID} >= {low} and {JOINID} <= {high}"
            both = window if self._filter is None else f"({self._filter}) and {window}"
            table = self._query(asked, (), both)
        if table.num_rows != stop - start:
            raise StoreChanged(
                f"{self._where}: {self._axis} has {table.num_rows} rows where {stop - start} were "
                f"when it was opened (rows {start} to {stop}). Somebody has written to it since."
            )
        joinids = table[JOINID].to_numpy()
        if len(joinids) > 1 and int(np.diff(joinids).min()) < 0:
            table = table.take(np.argsort(joinids, kind="stable"))
        return table

    def _query(self, columns: list[str], coords: tuple[Any, ...], value_filter: str | None) -> Any:
        try:
            tables = self._frame.read(coords, column_names=columns, value_filter=value_filter)
        except tiledbsoma.SOMAError as error:
            raise self._bad_filter(error) from error
        return tables.concat().unify_dictionaries()

    def _bad_filter(self, error: Exception) -> Exception:
        if self._filter is None:
            return error
        where = f"{self._where}: {self._axis}_value_filter {self._filter!r}"
        unknown = _UNKNOWN.search(str(error))
        if unknown:
            name = unknown[1].strip("'\"")
            return FieldNotFound(
                f"{where}: {self._axis} has no column {name!r}; "
                f"{did_you_mean(name, self._schema.names)}"
            )
        return ConfigError(
            f"{where} is not an expression that TileDB can evaluate: {str(error).splitlines()[0]} "
            "An example: tissue == 'lung' and n_counts > 500"
        )
