"""Laws of ranges: what is read is what was asked for, in order, and little else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.data.spans import (
    check_rows,
    expand,
    groups_of,
    in_order,
    read_joined,
    runs_of,
    spans_of,
    spans_of_rows,
    total_length,
)

N = 200


def members(spans: np.ndarray) -> list[int]:
    return [row for start, stop in spans.tolist() for row in range(start, stop)]


@st.composite
def ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    starts = draw(st.lists(st.integers(0, N), max_size=12))
    return [(start, draw(st.integers(start, N))) for start in starts]


@st.composite
def ascending(draw: st.DrawFn) -> np.ndarray:
    edges = sorted(draw(st.sets(st.integers(0, N), min_size=2, max_size=24)))
    edges = edges[: len(edges) // 2 * 2]
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


@given(ranges())
def test_expanding_lists_every_member(asked: list[tuple[int, int]]) -> None:
    spans = spans_of(asked, N, "here")
    assert expand(spans).tolist() == [row for a, b in asked for row in range(a, b)]
    assert total_length(spans) == len(expand(spans))


@given(ranges())
def test_ordering_and_going_back_is_the_identity(asked: list[tuple[int, int]]) -> None:
    spans = spans_of(asked, N, "here")
    ordered, back = in_order(spans)
    rows = expand(ordered)
    assert (np.diff(rows) > 0).all()
    assert (rows if back is None else rows[back]).tolist() == expand(spans).tolist()


@given(st.sets(st.integers(0, N)))
def test_spans_of_rows_are_the_fewest(rows: set[int]) -> None:
    wanted = np.array(sorted(rows), dtype=np.int64)
    spans = spans_of_rows(wanted)
    assert members(spans) == wanted.tolist()
    assert (spans[1:, 0] > spans[:-1, 1]).all()


@given(ascending(), st.integers(1, 50))
def test_groups_are_the_same_members_in_small_portions(spans: np.ndarray, limit: int) -> None:
    groups = list(groups_of(spans, limit))
    assert [row for group in groups for row in members(group)] == members(spans)
    assert all(0 < total_length(group) <= limit for group in groups)


@given(
    ascending(),
    st.one_of(st.none(), st.integers(1, 60)),
    st.integers(0, 30),
    st.booleans(),
    st.integers(1, 300),
)
def test_runs_cover_the_spans_and_touch_no_other_chunk(
    spans: np.ndarray, chunk: int | None, max_gap: int, decodes: bool, max_length: int
) -> None:
    runs = list(
        runs_of(spans, chunk=chunk, max_gap=max_gap, decodes=decodes, max_length=max_length)
    )
    assert [i for *_, first, last in runs for i in range(first, last)] == list(range(len(spans)))
    for start, stop, first, last in runs:
        assert (start, stop) == (spans[first, 0], spans[last - 1, 1])
        assert last - first == 1 or stop - start <= max_length
    if chunk is not None:
        wanted = {row // chunk for row in members(spans)}
        touched = {row // chunk for start, stop, *_ in runs for row in range(start, stop)}
        assert touched == wanted


@given(ascending(), st.one_of(st.none(), st.integers(1, 60)), st.integers(0, 30), st.booleans())
def test_joined_reads_give_the_members(
    spans: np.ndarray, chunk: int | None, max_gap: int, decodes: bool
) -> None:
    stored = np.random.default_rng(0).integers(0, 1000, (N, 3))
    out = np.full((total_length(spans), 3), -1, dtype=np.int32)
    read_joined(lambda a, b: stored[a:b], spans, out, chunk=chunk, max_gap=max_gap, decodes=decodes)
    np.testing.assert_array_equal(out, stored[expand(spans)])


def test_long_reads_are_cut_where_chunks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scvi_dist.data.spans.MAX_RUN_BYTES", 8 * 25)
    seen: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> np.ndarray:
        seen.append((start, stop))
        return np.arange(start, stop)

    out = np.zeros(N - 3, dtype=np.int64)
    spans = np.array([[3, N]])
    read_joined(read, spans, out, chunk=10, max_gap=0, decodes=True)
    assert out.tolist() == list(range(3, N))
    assert all(stop - start <= 20 for start, stop in seen)
    assert all(stop % 10 == 0 for _, stop in seen)


@pytest.mark.parametrize("outside", [(-1, 2), (0, N + 1), (5, 4), (N + 1, N + 1)])
def test_ranges_outside_are_refused(outside: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match=rf"here: rows {outside[0]} to {outside[1]}"):
        spans_of([(0, 1), outside], N, "here")


@pytest.mark.parametrize("odd", [[(0.0, 1.0)], [(0, 1, 2)], [3, 4]], ids=str)
def test_what_is_no_range_is_refused(odd: list[object]) -> None:
    with pytest.raises(TypeError, match="pairs of integers"):
        spans_of(odd, N, "here")  # type: ignore[arg-type]


def test_rows_are_checked() -> None:
    assert check_rows([3, 1], 4, "here").dtype == np.int64
    assert check_rows([], 0, "here").tolist() == []
    with pytest.raises(IndexError, match="row 4"):
        check_rows([0, 4], 4, "here")
    with pytest.raises(IndexError, match="row -1"):
        check_rows([-1], 4, "here")
    with pytest.raises(TypeError, match="integers"):
        check_rows([0.5], 4, "here")  # type: ignore[list-item]
