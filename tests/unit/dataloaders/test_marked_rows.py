"""A set of bits is the set of rows that a list of them is."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.dataloaders.marked_rows import WORD, MarkedRows
from scvi_dist.dataloaders.rows import ArrayRows, all_members
from scvi_dist.errors import PlanError


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    n = draw(st.one_of(st.sampled_from([1, 63, 64, 65, 128]), st.integers(1, 400)))
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    return np.random.default_rng(n).random(n) < share


@given(masks(), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=6))
def test_bits_and_a_list_are_the_same_set(mask: np.ndarray, stretches: list) -> None:
    n = len(mask)
    parts = [mask[start : start + 2 * WORD] for start in range(0, n, 2 * WORD)]
    marked, listed = MarkedRows.of(parts, n), ArrayRows(np.flatnonzero(mask), n)
    assert marked.n == listed.n
    boundaries = np.arange(n + 1)
    np.testing.assert_array_equal(marked.count_before(boundaries), listed.count_before(boundaries))
    starts, stops = (np.array([min(s[i], n) for s in stretches], np.int64) for i in (0, 1))
    np.testing.assert_array_equal(
        marked.members_of(starts, stops), listed.members_of(starts, np.maximum(starts, stops))
    )
    again = pickle.loads(pickle.dumps(marked))
    np.testing.assert_array_equal(all_members(again), np.flatnonzero(mask))
    assert again.digest() == marked.digest()


def test_other_rows_have_another_digest() -> None:
    mask = np.zeros(100, dtype=bool)
    digests = set()
    for row in range(100):
        mask[:] = False
        mask[row] = True
        digests.add(MarkedRows.of([mask], 100).digest())
    assert len(digests) == 100


def test_words_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PlanError, match="2 uint64 words"):
        MarkedRows(np.zeros(1, np.uint64), 65)
    with pytest.raises(PlanError, match="behind the last of 65"):
        MarkedRows(np.array([0, 2], np.uint64), 65)
