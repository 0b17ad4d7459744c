"""Are these counts? Negative, fractional and missing values and empty cells, found in passing.

Every entry that is read is looked at, in one pass; what is found is named by cell and gene.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scvi_dist.batch import CsrRows
from scvi_dist.errors import BadCounts

_CHUNK_ENTRIES = 1 << 16  # a chunk and what is computed from it stay in the processor's cache


@dataclass(frozen=True, slots=True, order=True)
class Offender:
    """One entry that is not a count."""

    row: int
    """Row of the store."""
    gene: int
    """Column of the counts; -1 for a whole cell."""
    value: float


@dataclass(frozen=True, slots=True)
class CountReport:
    """What is wrong with the counts of some cells. Reports of different cells add up."""

    n_cells: int = 0
    n_negative: int = 0
    """Entries below zero, without -inf."""
    n_non_integer: int = 0
    """Finite entries with a fractional part, without the negative ones."""
    n_nan: int = 0
    """Entries that are NaN or infinite."""
    n_empty: int = 0
    """Cells without any count."""
    first_negative: Offender | None = None
    first_non_integer: Offender | None = None
    first_nan: Offender | None = None
    first_empty: Offender | None = None

    @property
    def is_clean(self) -> bool:
        """True if there is nothing to report."""
        return not (self.n_negative or self.n_non_integer or self.n_nan or self.n_empty)

    def __add__(self, other: "CountReport") -> "CountReport":
        return CountReport(
            self.n_cells + other.n_cells,
            self.n_negative + other.n_negative,
            self.n_non_integer + other.n_non_integer,
            self.n_nan + other.n_nan,
            self.n_empty + other.n_empty,
            _first(self.first_negative, other.first_negative),
            _first(self.first_non_integer, other.first_non_integer),
            _first(self.first_nan, other.first_nan),
            _first(self.first_empty, other.first_empty),
        )


def _first(a: Offender | None, b: Offender | None) -> Offender | None:
    """The offender of the lower row, so that reports add up to the same in any order."""
    if a is None or b is None:
        return a or b
    return min(a, b, key=lambda offender: (offender.row, offender.gene))


def check_counts(block: CsrRows, rows: np.ndarray, where: str) -> CountReport:
    """What is wrong with these cells.

    Parameters
    ----------
    block
        Their counts.
    rows
        int64 ``[n]``: row of the store of each cell.
    where
        Name of the store, for the message if the block and the rows do not fit together.
    """
    if len(rows) != block.n_cells:
        raise ValueError(f"{where}: {block.n_cells} cells were read for {len(rows)} rows.")
    has_zeros, suspects = _scan(block.data)
    report = CountReport(n_cells=block.n_cells)
    if len(suspects):
        report += _classify(block, rows, suspects)
    return report + _empty_cells(block, rows, has_zeros)


def check_counts_among(held: CsrRows, rows: np.ndarray, where: str) -> CountReport:
    """What is wrong with some of the cells that are in memory; ``rows`` says which.

    As :func:`check_counts` of a copy of them, which is made only where something is wrong.
    """
    from scvi_dist.data.count_check import rows_are_counts

    if rows_are_counts(held.indptr, held.data, rows):
        return CountReport(n_cells=len(rows))
    return check_counts(held.take(rows), rows, where)


def _scan(data: np.ndarray) -> tuple[bool, np.ndarray]:
    """Whether there are explicit zeros, and the entries that are no counts (int64)."""
    has_zeros, suspects = False, []
    is_whole = not np.issubdtype(data.dtype, np.floating)
    for start in range(0, len(data), _CHUNK_ENTRIES):
        chunk = data[start : start + _CHUNK_ENTRIES]
        lowest = chunk.min()
        # NaN fails every comparison, so that it never passes for clean.
        clean = bool(lowest >= 0) and (
            is_whole or (bool(chunk.max() < np.inf) and bool((np.floor(chunk) == chunk).all()))
        )
        has_zeros = has_zeros or not lowest > 0
        if not clean:
            bad = ~((chunk >= 0) & (chunk < np.inf) & (np.floor(chunk) == chunk))
            suspects.append(np.flatnonzero(bad) + start)
    return has_zeros, np.concatenate(suspects) if suspects else np.empty(0, dtype=np.int64)


def _classify(block: CsrRows, rows: np.ndarray, suspects: np.ndarray) -> CountReport:
    values = block.data[suspects].astype(np.float64)
    cells = np.searchsorted(block.indptr, suspects, side="right") - 1
    kinds = np.where(~np.isfinite(values), 0, np.where(values < 0, 1, 2))

    def count_and_first(kind: int) -> tuple[int, Offender | None]:
        at = np.flatnonzero(kinds == kind)
        if not len(at):
            return 0, None
        genes = block.indices[suspects[at]]
        first = np.lexsort((genes, rows[cells[at]]))[0]
        return len(at), Offender(
            int(rows[cells[at[first]]]), int(genes[first]), float(values[at[first]])
        )

    (n_nan, nan), (n_negative, negative), (n_fraction, fraction) = map(count_and_first, range(3))
    return CountReport(
        n_nan=n_nan,
        first_nan=nan,
        n_negative=n_negative,
        first_negative=negative,
        n_non_integer=n_fraction,
        first_non_integer=fraction,
    )


def _empty_cells(block: CsrRows, rows: np.ndarray, has_zeros: bool) -> CountReport:
    indptr = block.indptr
    if has_zeros:
        # Explicit zeros are no counts: point at the entries that are left without them.
        before = np.zeros(len(block.data) + 1, dtype=np.int64)
        np.cumsum(block.data != 0, out=before[1:])
        indptr = before[indptr]
    empty = np.flatnonzero(np.diff(indptr) == 0)
    if not len(empty):
        return CountReport()
    return CountReport(n_empty=len(empty), first_empty=Offender(int(rows[empty].min()), -1, 0.0))


def raise_or_warn(report: CountReport, var_names: Sequence[str] | np.ndarray, where: str) -> None:
    """Refuse what no count model can take, warn of what it should not be given.

    Raises
    ------
    BadCounts
        An entry is NaN, infinite or negative.

    Warns
    -----
    UserWarning
        Counts are not whole numbers; cells are empty.
    """
    wrong = []
    if report.first_nan:
        wrong.append(_found(report.n_nan, "NaN or infinite", report.first_nan, var_names))
    if report.first_negative:
        wrong.append(_found(report.n_negative, "negative", report.first_negative, var_names))
    if wrong:
        raise BadCounts(
            f"{where}: counts are whole numbers from 0 on; of {report.n_cells} cells, "
            f"{' and '.join(wrong)}. Give the raw counts (another layer, or raw)."
        )
    if report.first_non_integer:
        found = _found(report.n_non_integer, "not whole", report.first_non_integer, var_names)
        warnings.warn(
            f"{where} does not contain unnormalized count data: of {report.n_cells} cells, "
            f"{found}. Are you sure this is what you want? Raw counts may be in another layer.",
            UserWarning,
            stacklevel=2,
        )
    if report.first_empty:
        warnings.warn(
            f"{where}: {report.n_empty} of {report.n_cells} cells have no counts at all, first "
            f"row {report.first_empty.row}. Models learn nothing from them; leave them out.",
            UserWarning,
            stacklevel=2,
        )


def _found(n: int, what: str, first: Offender, var_names: Sequence[str] | np.ndarray) -> str:
    return (
        f"{n} {'entry is' if n == 1 else 'entries are'} {what}, first row {first.row}, "
        f"gene {first.gene} ({var_names[first.gene]}): {first.value:g}"
    )
