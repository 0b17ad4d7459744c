"""Whatever is no count is found, wherever it is, and named by cell and gene."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from scvi_dist.batch import CsrRows
from scvi_dist.data import counts
from scvi_dist.data.counts import (
    CountReport,
    check_counts,
    check_counts_among,
    raise_or_warn,
)
from scvi_dist.errors import BadCounts

NAMES = [f"gene{i}" for i in range(6)]
BAD = {"negative": -2.0, "non_integer": 1.5, "nan": np.nan, "infinite": np.inf}


def rows_of(dense_ng: np.ndarray) -> CsrRows:
    sparse = csr_matrix(dense_ng)
    return CsrRows(sparse.indptr.astype(np.int64), sparse.indices, sparse.data, dense_ng.shape[1])


def counted(values: np.ndarray) -> dict[str, int]:
    """The same, the slow way."""
    finite = np.isfinite(values)
    return {
        "n_nan": int((~finite).sum()),
        "n_negative": int((finite & (values < 0)).sum()),
        "n_non_integer": int((finite & (values > 0) & (np.floor(values) != values)).sum()),
        "n_empty": int((values == 0).all(axis=1).sum()),
    }


@settings(deadline=None)
@given(
    values=st.lists(
        st.lists(
            st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, -1.0, -0.5, 0.25, np.nan, np.inf, -np.inf]),
            min_size=6,
            max_size=6,
        ),
        min_size=1,
        max_size=12,
    ),
    cut=st.integers(0, 12),
    chunk=st.integers(1, 9),
)
def test_every_kind_is_counted_and_parts_add_up(values: list, cut: int, chunk: int) -> None:
    dense_ng = np.array(values, dtype=np.float32)
    block, rows = rows_of(dense_ng), np.arange(len(values)) + 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "_CHUNK_ENTRIES", chunk)
        whole = check_counts(block, rows, "here")
        front = check_counts(block.take(np.arange(len(rows))[:cut]), rows[:cut], "here")
        back = check_counts(block.take(np.arange(len(rows))[cut:]), rows[cut:], "here")
    assert {name: getattr(whole, name) for name in counted(dense_ng)} == counted(dense_ng)
    assert repr(front + back) == repr(back + front) == repr(whole)
    for name in ("negative", "non_integer", "nan"):
        first = getattr(whole, f"first_{name}")
        assert (first is None) == (getattr(whole, f"n_{name}") == 0)
        if first is not None:
            np.testing.assert_equal(first.value, float(dense_ng[first.row - 100, first.gene]))
    assert whole.is_clean == (not any(counted(dense_ng).values()))


@settings(deadline=None)
@given(
    values=st.lists(
        st.sampled_from([0.0, 0.0, 1.0, 2.0, 2.0, 7.0, -1.0, 0.25, np.nan, np.inf, -np.inf]),
        min_size=12,
        max_size=12,
    ),
    among=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    explicit=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_cells_among_others_are_as_a_copy_of_them(
    values: list, among: list, explicit: bool, dtype: type
) -> None:
    dense_ng, rows = np.array(values, dtype=dtype).reshape(4, 3), np.array(among)
    held = rows_of(dense_ng)
    if explicit:
        genes = np.tile(np.arange(3, dtype=np.int32), 4)
        held = CsrRows(np.arange(5) * 3, genes, dense_ng.ravel(), 3)
    report = check_counts_among(held, rows, "here")
    assert repr(report) == repr(check_counts(held.take(rows), rows, "here"))


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_bad_entry_among_a_million_is_found(kind: str, dtype: type) -> None:
    n, width = 5_000, 200
    block = CsrRows(
        np.arange(n + 1) * width,
        np.tile(np.arange(width, dtype=np.int32), n),
        np.ones(n * width, dtype=dtype),
        width,
    )
    assert check_counts(block, np.arange(n), "here").is_clean
    block.data[4_321 * width + 77] = BAD[kind]
    report = check_counts(block, np.arange(n), "here")
    found = report.first_nan or report.first_negative or report.first_non_integer
    assert found is not None
    assert (found.row, found.gene) == (4_321, 77)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_whole_numbers_can_only_be_negative(dtype: type) -> None:
    dense_ng = np.array([[1, 0, 3], [0, 0, 250]]).astype(dtype)
    for check in (check_counts, check_counts_among):
        assert check(rows_of(dense_ng), np.arange(2), "here").is_clean
    if np.issubdtype(dtype, np.signedinteger):
        dense_ng[1, 2] = -5
        for check in (check_counts, check_counts_among):
            assert check(rows_of(dense_ng), np.arange(2), "here").n_negative == 1


def test_a_cell_of_explicit_zeros_is_empty() -> None:
    block = CsrRows(np.array([0, 2, 2, 3]), np.array([0, 1, 2]), np.array([0.0, 0.0, 1.0]), 3)
    report = check_counts(block, np.array([9, 4, 7]), "here")
    assert (report.n_empty, report.first_empty.row) == (2, 4)


@pytest.mark.parametrize("kind", ["negative", "nan", "infinite"])
def test_what_no_model_can_take_is_refused_by_name(kind: str) -> None:
    dense_ng = np.ones((3, 6), dtype=np.float32)
    dense_ng[2, 4] = BAD[kind]
    report = check_counts(rows_of(dense_ng), np.array([5, 6, 17]), "here")
    with pytest.raises(BadCounts, match=r"here: .*1 entry is .* row 17, gene 4 \(gene4\)"):
        raise_or_warn(report, NAMES, "here")


def test_fractions_and_empty_cells_are_warned_of_once_each() -> None:
    dense_ng = np.array([[1.5, 2.5], [0.0, 0.0], [1.0, 1.0]], dtype=np.float32)
    report = check_counts(rows_of(dense_ng), np.arange(3), "here")
    with pytest.warns(UserWarning, match="here") as caught:
        raise_or_warn(report, ["a", "b"], "here")
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "2 entries are not whole, first row 0, gene 0 (a): 1.5" in messages[0]
    assert "1 of 3 cells have no counts at all, first row 1" in messages[1]


def test_clean_counts_pass_in_silence() -> None:
    with warnings.catch_warnings(record=True) as caught:
        raise_or_warn(CountReport(n_cells=3), NAMES, "here")
    assert caught == []


def test_rows_must_be_those_of_the_block() -> None:
    with pytest.raises(ValueError, match="1 cells were read for 2 rows"):
        check_counts(rows_of(np.ones((1, 2))), np.arange(2), "here")
