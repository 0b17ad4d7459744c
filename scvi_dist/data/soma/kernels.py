"""Compiled loops that turn coordinates of a sparse array into CSR. They release the GIL.

A *run* is a stretch of entries of one row, as they are stored: the row's identifier and the place
of its first entry. Sparse arrays keep entries in tiles; sorted by rows inside of each, so that
runs are few and a row is looked up once for all its entries.
"""

import numpy as np

from scvi_dist.batch import CsrRows
from scvi_dist.kernels.code_cache import cached_njit


@cached_njit(nogil=True)
def runs_of_column(column: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> int:
    """Fill ``rows`` and ``starts`` (as long as the column, at least) and give the runs' number."""
    n_runs = 0
    for entry in range(len(column)):
        if entry == 0 or column[entry] != column[entry - 1]:
            rows[n_runs] = column[entry]
            starts[n_runs] = entry
            n_runs += 1
    return n_runs


@cached_njit(nogil=True)
def slots_of_runs(rows: np.ndarray, wanted: np.ndarray, slots: np.ndarray) -> None:
    """The place of each run's row among the wanted ones (ascending), -1 for those not wanted."""
    n = len(wanted)
    slot = 0
    for run in range(len(rows)):
        row = rows[run]
        # Runs of a tile mostly ascend: look at the next one first, then search.
        if not (slot < n and wanted[slot] >= row and (slot == 0 or wanted[slot - 1] < row)):
            slot = np.searchsorted(wanted, row)
        slots[run] = slot if slot < n and wanted[slot] == row else -1
        if slots[run] >= 0:
            slot += 1


@cached_njit(nogil=True)
def count_runs(slots: np.ndarray, starts: np.ndarray, n_entries: int, counts: np.ndarray) -> int:
    """Add the lengths of runs to their rows' counts; how many entries are wanted."""
    total = 0
    for run in range(len(slots)):
        if slots[run] >= 0:
            stop = starts[run + 1] if run + 1 < len(starts) else n_entries
            counts[slots[run]] += stop - starts[run]
            total += stop - starts[run]
    return total


@cached_njit(nogil=True)
def mark_blocks(
    slots: np.ndarray, starts: np.ndarray, n_entries: int, block: int, marks: np.ndarray
) -> None:
    """Set the marks of the blocks of ``block`` entries that hold an entry of a wanted run."""
    for run in range(len(slots)):
        if slots[run] >= 0:
            stop = starts[run + 1] if run + 1 < len(starts) else n_entries
            for i in range(starts[run] // block, (stop - 1) // block + 1):
                marks[i] = True


@cached_njit(nogil=True)
def place_runs(
    slots: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    lookup: np.ndarray,
    cursor: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
) -> int:
    """Copy the entries of wanted runs behind what their rows have so far.

    Parameters
    ----------
    slots, starts
        Row of the result and first entry of each run.
    columns, values
        The entries; as many as the runs have together.
    lookup
        Gene of each column; -1 leaves the entry out.
    cursor
        Where each row's next entry goes; moved on.

    Returns
    -------
    int
        -1, or the first entry whose column is none of the array's.
    """
    for run in range(len(slots)):
        if slots[run] < 0:
            continue
        stop = starts[run + 1] if run + 1 < len(starts) else len(columns)
        at = cursor[slots[run]]
        for entry in range(starts[run], stop):
            column = columns[entry]
            if column < 0 or column >= len(lookup):
                return entry
            gene = lookup[column]
            if gene >= 0:
                indices[at] = gene
                data[at] = values[entry]
                at += 1
        cursor[slots[run]] = at
    return -1


@cached_njit(nogil=True)
def close_gaps(starts: np.ndarray, stops: np.ndarray, indices: np.ndarray, data: np.ndarray) -> int:
    """Move rows that did not fill the room left for them together, in place; entries in all."""
    at = 0
    for row in range(len(starts)):
        for entry in range(starts[row], stops[row]):
            indices[at] = indices[entry]
            data[at] = data[entry]
            at += 1
    return at


@cached_njit(nogil=True)
def first_unsorted(indptr: np.ndarray, indices: np.ndarray) -> int:
    """The first row whose columns do not strictly rise, or -1."""
    for row in range(len(indptr) - 1):
        for entry in range(indptr[row] + 1, indptr[row + 1]):
            if indices[entry] <= indices[entry - 1]:
                return row
    return -1


@cached_njit(nogil=True)
def unshuffle_bytes(shuffled: np.ndarray, out: np.ndarray, itemsize: int) -> None:
    """Undo TileDB's byte shuffle: bytes of equal significance lie together in ``shuffled``."""
    n = len(out) // itemsize
    for plane in range(itemsize):
        for i in range(n):
            out[i * itemsize + plane] = shuffled[plane * n + i]
    # What does not fill an item is kept as it is.
    for i in range(n * itemsize, len(out)):
        out[i] = shuffled[i]


def bits(values: np.ndarray) -> np.ndarray:
    """The same memory as unsigned integers: kernels are compiled once for every width of values."""
    return values.view(f"u{values.dtype.itemsize}")


def sorted_rows(block: CsrRows) -> tuple[CsrRows, int]:
    """The rows with their columns sorted, and the first row that has a column twice, or -1."""
    if first_unsorted(block.indptr, block.indices) < 0:
        return block, -1
    rows = np.repeat(np.arange(block.n_cells), np.diff(block.indptr))
    order = np.lexsort((block.indices, rows))
    ordered = CsrRows(block.indptr, block.indices[order], block.data[order], block.n_genes)
    return ordered, int(first_unsorted(ordered.indptr, ordered.indices))
