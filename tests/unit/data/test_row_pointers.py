"""Row pointers in little memory say what the pointers themselves say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.data.on_disk import row_pointers
from scvi_dist.data.on_disk.row_pointers import RowPointers
from scvi_dist.data.spans import expand
from scvi_dist.errors import StoreCorrupt


class Stored:
    """An array that is read by spans, as on disk."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def read(self, spans: np.ndarray) -> np.ndarray:
        return self.values[expand(spans)]


def pointers_of(lengths: list[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def small(indptr: np.ndarray) -> RowPointers:
    return RowPointers(Stored(indptr), int(indptr[-1]), "here")


LENGTHS = st.lists(
    st.one_of(st.integers(0, 9), st.sampled_from([65_535, 65_536, 2**33])), max_size=300
)


@given(LENGTHS, st.data(), st.integers(1, 4))
def test_any_spans_have_the_entries_that_the_pointers_give_them(
    lengths: list[int], data: st.DataObject, stretches: int
) -> None:
    indptr, n = pointers_of(lengths), len(lengths)
    marks = sorted(data.draw(st.lists(st.integers(0, n), max_size=12)))
    pairs = [(a, b) for a, b in zip(marks[::2], marks[1::2], strict=False) if a < b]
    spans = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        # Read in several goes, whose ends are ends of stretches as in a large store.
        patch.setattr(row_pointers, "_ROWS_AT_A_TIME", stretches * row_pointers.STRETCH)
        patch.setattr(row_pointers, "_STRETCHES", stretches)
        entries, own = small(indptr).read(spans)
    assert np.array_equal(entries, indptr[spans])
    rows = expand(spans)
    assert np.array_equal(own, pointers_of(indptr[rows + 1] - indptr[rows]))


def test_they_take_a_quarter_of_the_memory() -> None:
    indptr = pointers_of(np.random.default_rng(0).integers(0, 5_000, 100_000))
    assert small(indptr).nbytes < 0.3 * indptr.nbytes


@pytest.mark.parametrize("at", [3, 63, 64, 150, 255])
def test_a_fall_is_named_by_its_row(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_pointers, "_ROWS_AT_A_TIME", 128)
    indptr = pointers_of([2] * 256)
    indptr[at + 1] = indptr[at] - 1
    with pytest.raises(StoreCorrupt, match=rf"here: the row pointers fall .* at row {at};"):
        RowPointers(Stored(indptr), 512, "here")


@pytest.mark.parametrize(("add", "n_stored"), [(1, 13), (0, 11), (0, 13)])
def test_ends_that_do_not_fit_are_refused(add: int, n_stored: int) -> None:
    with pytest.raises(StoreCorrupt, match=f"expected 0 to {n_stored} .* last row is 3"):
        RowPointers(Stored(pointers_of([3, 4, 0, 5]) + add), n_stored, "here")
