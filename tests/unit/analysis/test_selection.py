"""Which cells an analysis sees, in which order, and which noise is theirs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.analysis.selection import Selection
from scvi_dist.errors import ConfigError


@settings(deadline=None, max_examples=100)
@given(
    n_obs=st.integers(1, 40),
    data=st.data(),
    seed=st.integers(0, 3),
)
def test_selections(n_obs: int, data: st.DataObject, seed: int) -> None:
    indices = data.draw(st.lists(st.integers(-n_obs, n_obs - 1), min_size=1, max_size=60))
    selection = Selection(n_obs, indices)
    rows = np.arange(n_obs)[indices]
    np.testing.assert_array_equal(selection.rows(), rows)
    start = data.draw(st.integers(0, len(indices) - 1))
    stop = data.draw(st.integers(start + 1, len(indices)))
    order = selection.reading_order(start, stop)
    positions = np.arange(start, stop) if order is None else order
    assert sorted(positions) == list(range(start, stop))
    assert (np.diff(selection.at(positions)) >= 0).all()
    everywhere = np.arange(len(indices))
    keys = selection.keys(everywhere, seed)
    assert len(set(keys.tolist())) == len(indices)
    np.testing.assert_array_equal(selection.keys(positions, seed), keys[positions])
    whole = Selection(n_obs).keys(np.arange(n_obs), seed)
    _, first = np.unique(rows, return_index=True)
    np.testing.assert_array_equal(keys[first], whole[rows[first]])


def test_selections_that_make_no_sense_are_refused() -> None:
    with pytest.raises(IndexError, match=r"index 7 \(item 1\) is not a row of 5; 2 of 3"):
        Selection(5, [0, 7, -6])
    with pytest.raises(ConfigError, match="expected 5"):
        Selection(5, np.array([True, False]))
    with pytest.raises(ConfigError, match="no cells"):
        Selection(5, [])
    with pytest.raises(ConfigError, match="float64"):
        Selection(5, [0.5])
    assert Selection(5, [1, 2]).digest() != Selection(5, [2, 1]).digest()
    assert Selection(5).digest() != Selection(6).digest()
