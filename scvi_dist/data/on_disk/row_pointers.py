"""Where the rows of a CSR matrix begin, in a quarter of the memory of its row pointers.

An atlas of a hundred million cells has 800 MB of 8-byte pointers, in every process that reads it.
Kept are the number of entries of each row, in 2 bytes while they fit, and where each 64th row
begins; what lies between is added up when it is asked for.
"""

import numpy as np

from scvi_dist.data.on_disk.layout import StoredArray
from scvi_dist.data.spans import expand, span
from scvi_dist.errors import StoreCorrupt

STRETCH = 64
"""Rows from one known beginning to the next."""
_ROWS_AT_A_TIME = 1 << 18
_STRETCHES = 1 << 11
"""Stretches that are looked into together: a megabyte."""


class RowPointers:
    """The row pointers of a stored CSR matrix, read in one pass and checked.

    Parameters
    ----------
    stored
        The pointers, ``[n + 1]``.
    n_stored
        Entries of the matrix.
    where
        Its name, for messages.

    Raises
    ------
    StoreCorrupt
        They fall, or do not go from 0 to ``n_stored``; names the row.
    """

    def __init__(self, stored: StoredArray, n_stored: int, where: str) -> None:
        n = stored.shape[0] - 1
        self._lengths_n = np.zeros(n, dtype=np.uint16)
        self._begins = np.zeros(-(-n // STRETCH), dtype=np.int64)
        first = last = 0
        for start in range(0, max(n, 1), _ROWS_AT_A_TIME):
            stop = min(start + _ROWS_AT_A_TIME, n)
            pointers = stored.read(span(start, stop + 1)).astype(np.int64, copy=False)
            self._take_in(start, pointers, where)
            first = int(pointers[0]) if start == 0 else first
            last = int(pointers[-1])
        if first != 0 or last != n_stored:
            raise StoreCorrupt(
                f"{where}: the row pointers go from {first} to {last}, expected 0 to {n_stored} "
                f"(the number of values); the last row is {n - 1}."
            )

    def _take_in(self, start: int, pointers: np.ndarray, where: str) -> None:
        lengths = np.diff(pointers)
        falls = np.flatnonzero(lengths < 0)
        if len(falls):
            row = int(falls[0])
            overflown = " 32 bits were too few for them: write the matrix again with int64."
            raise StoreCorrupt(
                f"{where}: the row pointers fall from {pointers[row]} to {pointers[row + 1]} at "
                f"row {start + row}; they have to rise.{overflown if pointers[row + 1] < 0 else ''}"
            )
        needed = np.min_scalar_type(lengths.max(initial=0))
        if needed.itemsize > self._lengths_n.dtype.itemsize:
            self._lengths_n = self._lengths_n.astype(needed)
        self._lengths_n[start : start + len(lengths)] = lengths
        begins = pointers[:-1][::STRETCH]
        self._begins[start // STRETCH : start // STRETCH + len(begins)] = begins

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._lengths_n.nbytes + self._begins.nbytes

    def read(self, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the rows of some spans have.

        Returns
        -------
        entries
            int64 ``[m, 2]``: for each span, its first entry and the one after its last.
        indptr
            int64 ``[n + 1]``: row pointers of all these rows, as a matrix of their own.
        """
        ends = np.cumsum(spans[:, 1] - spans[:, 0])
        indptr = np.zeros(int(ends[-1]) + 1 if len(ends) else 1, dtype=np.int64)
        np.cumsum(self._lengths_n[expand(spans)], dtype=np.int64, out=indptr[1:])
        n_entries = np.diff(indptr[np.concatenate([[0], ends])])
        begins = self._begins_of(spans[:, 0])
        return np.stack([begins, begins + n_entries], axis=1), indptr

    def _begins_of(self, rows: np.ndarray) -> np.ndarray:
        """int64 ``[m]``: first entry of rows that exist."""
        pieces = [rows[i : i + _STRETCHES] for i in range(0, len(rows), _STRETCHES)]
        return np.concatenate([np.empty(0, np.int64), *map(self._begins_of_few, pieces)])

    def _begins_of_few(self, rows: np.ndarray) -> np.ndarray:
        stretch, inside = np.divmod(rows, STRETCH)
        before = np.arange(STRETCH)
        # Members of the stretch that lie behind the row may not exist; they are not counted.
        members = np.minimum(stretch[:, None] * STRETCH + before, len(self._lengths_n) - 1)
        counted = self._lengths_n[members] * (before < inside[:, None])
        return self._begins[stretch] + counted.sum(axis=1, dtype=np.int64)
