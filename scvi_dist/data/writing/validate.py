"""Whether a store is what it says: every row is read, every value looked at, nothing is changed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from scvi_dist.data.counts import CountReport, Offender, check_counts
from scvi_dist.data.on_disk.anndata_store import AnnDataStore
from scvi_dist.data.store import Store
from scvi_dist.data.writing.content import Content
from scvi_dist.data.writing.convert import stored_content
from scvi_dist.data.writing.writer import OnProgress
from scvi_dist.errors import ScviDistError, StoreCorrupt, StoreUnreachable

_BLOCK_BYTES = 16 << 20
_NAMES_AT_ONCE = 1 << 18
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is wrong."""

    what: str
    rows: tuple[int, int] | None = None
    """First row, and the row after the last; ``None`` for the store as a whole."""

    def __str__(self) -> str:
        if self.rows is None:
            return self.what
        first, last = self.rows[0], self.rows[1] - 1
        return (
            f"row {first}: {self.what}" if first == last else f"rows {first} … {last}: {self.what}"
        )


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What was looked at, and what is wrong with it."""

    url: str
    layer: str | None
    n_obs: int
    n_vars: int
    digest: str
    content: Content
    """Of the rows that could be read."""
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = field(default=())
    """What is odd, but no mistake."""

    @property
    def is_valid(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def validate_store(
    store: Store,
    *,
    digest: str | None = None,
    most_problems: int = 20,
    on_progress: OnProgress | None = None,
) -> Validation:
    """Read all of a store and say what is wrong: damaged chunks (by their checksums), row
    pointers or gene numbers out of bounds, values that are no counts, repeated names, a matrix
    that is not the one that was written.

    Parameters
    ----------
    digest
        What the store's digest is expected to be.
    most_problems
        Stop after so many.

    Raises
    ------
    StoreUnreachable
        The service does not answer: that says nothing about the store.
    """
    problems: list[Problem] = []
    found = store.digest()
    if digest is not None and found != digest:
        problems.append(Problem(what=f"the digest is {found}, expected {digest}."))
    problems += _repeated_names(store)
    content, report, damaged = Content(), CountReport(), []
    for block_content, block_report, problem in _look_at_rows(store, on_progress):
        content, report = content + block_content, report + block_report
        if problem is not None:
            damaged.append(problem)
            if len(problems) + len(damaged) >= most_problems:
                break
    problems += damaged
    problems += _count_problems(report, store.var_names)
    if not damaged:
        problems += _differences(store, content)
    return Validation(
        url=store.locator.redacted_url,
        layer=store.locator.layer,
        n_obs=store.n_obs,
        n_vars=store.n_vars,
        digest=found,
        content=content,
        problems=tuple(problems[:most_problems]),
        notes=tuple(_notes(report)),
    )


Looked = tuple[Content, CountReport, Problem | None]
"""What was found in some consecutive rows."""


def _look_at_rows(store: Store, on_progress: OnProgress | None) -> Iterator[Looked]:
    try:
        store.read_rows([])  # Row pointers are wrong for all rows or for none.
    except StoreUnreachable:
        raise
    except ScviDistError as error:
        yield Content(), CountReport(), Problem(what=str(error))
        return
    size = max(store.chunk_rows, int(_BLOCK_BYTES // max(1.0, store.bytes_per_cell)))
    for start in range(0, store.n_obs, size):
        stop = min(start + size, store.n_obs)
        yield from _look_at(store, start, stop)
        if on_progress:
            on_progress(stop, store.n_obs)


def _look_at(store: Store, start: int, stop: int) -> Iterator[Looked]:
    """The rows, in halves where something is damaged, until the rows that are have been found."""
    try:
        block = store.read_rows([(start, stop)])
    except StoreUnreachable:
        raise
    except StoreCorrupt as error:
        if stop - start == 1:
            yield Content(), CountReport(), Problem(what=str(error), rows=(start, stop))
            return
        middle = (start + stop) // 2
        yield from _joined([*_look_at(store, start, middle), *_look_at(store, middle, stop)])
        return
    rows = np.arange(start, stop)
    yield Content.of(block), check_counts(block, rows, store.locator.redacted_url), None


def _joined(looked: list[Looked]) -> list[Looked]:
    """Neighbouring damaged rows as one problem: a chunk usually holds many.

    Cells without entries lie in no chunk, and do not part the rows on both sides of them.
    """
    joined: list[Looked] = []
    for part in looked:
        waiting = 1 if joined and joined[-1][2] is None and not joined[-1][0].n_entries else 0
        before = joined[-1 - waiting][2] if len(joined) > waiting else None
        now = part[2]
        if now is None or before is None or now.rows is None or before.rows is None:
            joined.append(part)
            continue
        between = joined[-1][0].n_cells if waiting else 0
        if before.rows[1] + between != now.rows[0]:
            joined.append(part)
            continue
        whole = Problem(what=before.what, rows=(before.rows[0], now.rows[1]))
        group = [*joined[-1 - waiting :], part]
        del joined[-1 - waiting :]
        content = sum((one[0] for one in group), Content())
        joined.append((content, sum((one[1] for one in group), CountReport()), whole))
    return joined


def _repeated_names(store: Store) -> list[Problem]:
    problems = []
    repeated = [name for name, n in Counter(store.var_names.tolist()).items() if n > 1]
    if repeated:
        shown = ", ".join(map(repr, repeated[:_SHOWN]))
        problems.append(
            Problem(what=f"{len(repeated)} gene names occur more than once, such as {shown}.")
        )
    row = _repeated_cell(store)
    if row is not None:
        name = store.obs_names(row, row + 1)[0]
        problems.append(
            Problem(what=f"the cell name {name!r} occurred before.", rows=(row, row + 1))
        )
    return problems


def _repeated_cell(store: Store) -> int | None:
    """The first row whose name an earlier row has; by 8 bytes a cell, names are compared then."""
    hashes = np.empty(store.n_obs, dtype=np.int64)
    for start in range(0, store.n_obs, _NAMES_AT_ONCE):
        stop = min(start + _NAMES_AT_ONCE, store.n_obs)
        hashes[start:stop] = [hash(name) for name in store.obs_names(start, stop)]
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    for place in np.sort(order[same + 1]).tolist():
        name = store.obs_names(place, place + 1)[0]
        twins = np.flatnonzero(hashes[:place] == hashes[place])
        if any(store.obs_names(twin, twin + 1)[0] == name for twin in twins.tolist()):
            return place
    return None


def _count_problems(report: CountReport, var_names: np.ndarray) -> list[Problem]:
    def told(n: int, what: str, first: Offender | None) -> list[Problem]:
        if first is None:
            return []
        text = (
            f"{n} value{' is' if n == 1 else 's are'} {what}, the first is {first.value:g} for "
            f"gene {first.gene} ({var_names[first.gene]})."
        )
        return [Problem(what=text, rows=(first.row, first.row + 1))]

    return [
        *told(report.n_nan, "NaN or infinite", report.first_nan),
        *told(report.n_negative, "negative", report.first_negative),
        *told(report.n_non_integer, "not whole", report.first_non_integer),
    ]


def _notes(report: CountReport) -> Iterator[str]:
    if report.first_empty is not None:
        yield (
            f"{report.n_empty:,} cells have no counts at all, first row {report.first_empty.row}."
        )


def _differences(store: Store, content: Content) -> list[Problem]:
    """Where the matrix is not the one that the store was written with."""
    if not isinstance(store, AnnDataStore):
        return []
    written = stored_content(store.tree.attributes("")).get(store.matrix_path)
    if written is None or written == content:
        return []
    named = {"n_cells": "cells", "n_entries": "non-zero entries", "checksum": "checksum"}
    differ = [
        f"{words} {getattr(content, name):,}, written {getattr(written, name):,}"
        for name, words in named.items()
        if getattr(content, name) != getattr(written, name)
    ]
    return (
        [Problem(what=f"{store.matrix_path} is not what was written: {'; '.join(differ)}.")]
        if differ
        else []
    )
