"""Laws of sets of rows: what is counted is what is listed, and a hashed split is exact."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.dataloaders.rows import (
    MAX_STORE_ROWS,
    PARTS,
    AllRows,
    ArrayRows,
    HashedRows,
    RangeRows,
    all_members,
    floor_share,
    members,
    spans,
    splitmix64,
)
from scvi_dist.errors import PlanError

SIZES = st.one_of(st.sampled_from([1, 2, 3, 63, 64, 65, 127, 128, 997]), st.integers(1, 2_000))


@st.composite
def hashed(draw: st.DrawFn) -> HashedRows:
    n = draw(SIZES)
    n_validation = draw(st.integers(0, n))
    n_train = draw(st.integers(0, n - n_validation))
    seed, part = draw(st.integers(0, 5)), draw(st.sampled_from(PARTS))
    return HashedRows(n, seed, part, n_validation, n_train)


@st.composite
def row_sets(draw: st.DrawFn) -> RangeRows | ArrayRows | HashedRows:
    kind = draw(st.sampled_from(["range", "array", "hash"]))
    if kind == "hash":
        return draw(hashed())
    n = draw(SIZES)
    if kind == "array":
        keep = np.random.default_rng(draw(st.integers(0, 99))).random(n) < draw(st.floats(0, 1))
        return ArrayRows(np.flatnonzero(keep), n)
    start = draw(st.integers(0, n))
    return RangeRows(start, draw(st.integers(start, n)), n)


@settings(deadline=None, max_examples=150)
@given(row_sets(), st.data())
def test_counts_are_the_lengths_of_the_lists(rows, data):
    listed = all_members(rows)
    assert len(listed) == rows.n
    assert (np.diff(listed) > 0).all()
    cuts = data.draw(st.lists(st.integers(0, rows.n_store // rows.stratum), max_size=6))
    bounds = np.array([*(np.array(cuts, np.int64) * rows.stratum), rows.n_store])
    np.testing.assert_array_equal(
        rows.count_before(bounds), [(listed < bound).sum() for bound in bounds]
    )


@settings(deadline=None, max_examples=150)
@given(row_sets(), st.data())
def test_any_stretch_lists_its_own_members(rows, data):
    listed = all_members(rows)
    edges = st.integers(0, rows.n_store)
    pairs = [sorted(p) for p in data.draw(st.lists(st.tuples(edges, edges), max_size=5))]
    starts, stops = np.array(pairs, np.int64).reshape(-1, 2).T
    expected = [listed[(listed >= a) & (listed < b)] for a, b in pairs]
    found = rows.members_of(starts, stops)
    np.testing.assert_array_equal(found, np.concatenate([*expected, np.empty(0, np.int64)]))
    assert found.dtype == np.int64


@settings(deadline=None, max_examples=60)
@given(hashed())
def test_hashed_parts_share_the_store_without_overlap(one):
    parts = [
        HashedRows(one.n_store, one.seed, part, one.n_validation, one.n_train) for part in PARTS
    ]
    union = np.sort(np.concatenate([all_members(part) for part in parts]))
    np.testing.assert_array_equal(union, np.arange(one.n_store))


def test_hashed_parts_are_even_along_the_store_and_differ_by_seed():
    rows = HashedRows(64_000, 0, "validation", 6_400, 57_600)
    per_stratum = np.diff(rows.count_before(np.arange(0, 64_001, 64)))
    assert per_stratum.min() >= 6
    assert per_stratum.max() <= 7
    other = HashedRows(64_000, 1, "validation", 6_400, 57_600)
    common = np.intersect1d(all_members(rows), all_members(other))
    assert 300 < len(common) < 1_100  # a tenth of a tenth of 64,000 is 640
    within = all_members(rows) % 64
    assert np.bincount(within, minlength=64).min() > 50  # no place in a stratum is favoured


@pytest.mark.parametrize("n", [1_000_000_007, 30_000_000_001, MAX_STORE_ROWS - 1])
def test_totals_are_exact_where_products_overflow(n):
    x = np.array([0, 64, n // 3 // 64 * 64, n // 64 * 64, n], np.int64)
    for part in (1, n // 10, n - 1, n):
        expected = [int(value) * part // n for value in x]
        np.testing.assert_array_equal(floor_share(x, part, n), expected)
    train = HashedRows(n, 0, "train", n // 10, n - n // 10)
    assert train.count_before(np.array([n]))[0] == train.n
    assert len(members(train, n // 2, n // 2 + 640)) in range(574, 579)


def test_hash_is_one_to_one_and_matches_the_reference():
    x = np.arange(10_000, dtype=np.uint64)
    assert len(np.unique(splitmix64(x))) == len(x)
    # First outputs of the published generator for the states 0 and 1234567.
    seen = splitmix64(np.array([0, 1234567], np.uint64))
    assert seen.tolist() == [16294208416658607535, 6457827717110365317]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_spans_are_ranges_one_after_the_other(pairs):
    starts, stops = np.array(pairs, np.int64).reshape(-1, 2).T
    assert spans(starts, stops).tolist() == [x for a, b in pairs for x in range(a, b)]


@settings(deadline=None, max_examples=40)
@given(row_sets())
def test_sets_cross_processes_and_name_themselves(rows):
    again = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(all_members(again), all_members(rows))
    assert again.digest() == rows.digest()
    assert len(rows.digest()) == 32
    assert f"{rows.n_store:,}" in rows.describe()


def test_digests_tell_sets_apart():
    sets = [
        AllRows(100),
        RangeRows(0, 50, 100),
        ArrayRows(np.arange(50), 100),
        ArrayRows(np.arange(1, 51), 100),
        ArrayRows(np.arange(50), 101),
        *(HashedRows(100, seed, part, 10, 80) for seed in (0, 1) for part in PARTS),
    ]
    assert len({rows.digest() for rows in sets}) == len(sets)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ArrayRows(np.array([3, 2]), 5), "strictly increasing"),
        (lambda: ArrayRows(np.array([2, 2]), 5), "strictly increasing"),
        (lambda: ArrayRows(np.array([2, 5]), 5), r"expected rows in 0 … 4, seen 2 … 5"),
        (lambda: ArrayRows(np.array([-1, 2]), 5), "seen -1"),
        (lambda: RangeRows(3, 9, 5), "do not lie in a store of 5"),
        (lambda: HashedRows(10, 0, "training", 1, 9), "not one of train, validation, test"),
        (lambda: HashedRows(10, 0, "train", 2, 9), "do not fit in 10 rows"),
        (lambda: HashedRows(MAX_STORE_ROWS, 0, "train", 2, 9), "2.39"),
    ],
)
def test_sets_that_cannot_be_are_refused(make, words):
    with pytest.raises(PlanError, match=words):
        make()
