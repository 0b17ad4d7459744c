"""Laws of splits: every cell in at most one part, sizes as asked, the same by every method."""

import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scvi_dist.dataloaders.rows import HashedRows, all_members
from scvi_dist.dataloaders.split import SplitConfig, split_from_indices, split_rows, split_sizes
from scvi_dist.errors import ConfigError


@st.composite
def configs(draw: st.DrawFn) -> SplitConfig:
    train = draw(st.one_of(st.none(), st.floats(0.01, 1)))
    rest = 1 - (0.9 if train is None else train)
    validation = draw(st.one_of(st.none(), st.floats(0, max(0.0, rest))))
    assume(validation is None or (validation < 1 and (train or 0.9) + validation <= 1))
    return SplitConfig(
        train_size=train,
        validation_size=validation,
        shuffle_set_split=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
        method=draw(st.sampled_from(["permutation", "hash"])),
    )


@settings(deadline=None, max_examples=150)
@given(configs(), st.integers(1, 1_500), st.sampled_from([1, 2, 3, 64, 128]))
def test_parts_cover_the_store_once_with_the_sizes_asked_for(config, n, batch_size):
    split = split_rows(n, config, batch_size)
    parts = [all_members(part) for part in (split.train, split.validation, split.test)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    n_train, n_validation, n_moved = split_sizes(n, config, batch_size)
    assert [len(part) for part in parts[:2]] == [n_train, n_validation]
    assert n_train >= 1
    assert split.n_moved == n_moved <= 2


@given(st.integers(4, 100_000), st.integers(3, 1_000))
def test_no_tiny_last_minibatch_unless_a_size_was_asked_for(n, batch_size):
    n_train, _, _ = split_sizes(n, SplitConfig(), batch_size)
    assert n_train < batch_size or n_train % batch_size not in (1, 2)
    asked, _, n_moved = split_sizes(n, SplitConfig(train_size=0.9), batch_size)
    assert n_moved == 0
    assert asked >= n_train


def test_the_method_follows_the_number_of_cells():
    small = SplitConfig(permutation_limit=1_000)
    assert not isinstance(split_rows(1_000, small, 128).train, HashedRows)
    assert isinstance(split_rows(1_001, small, 128).train, HashedRows)
    atlas = split_rows(10**9, SplitConfig(), 128)
    assert atlas.train.n + atlas.validation.n == 10**9
    assert len(pickle.dumps(atlas)) < 2_000


def test_unshuffled_splits_are_stretches_of_the_store():
    split = split_rows(
        100, SplitConfig(train_size=0.5, validation_size=0.2, shuffle_set_split=False), 10
    )
    assert all_members(split.validation).tolist() == list(range(20))
    assert all_members(split.train).tolist() == list(range(20, 70))
    assert all_members(split.test).tolist() == list(range(70, 100))


def test_seeds_give_different_cells_of_the_same_number():
    for method in ("permutation", "hash"):
        a, b = (split_rows(1_000, SplitConfig(seed=s, method=method), 128).train for s in (0, 1))
        assert a.n == b.n
        assert (all_members(a) != all_members(b)).any()


def test_a_split_by_the_caller():
    split = split_from_indices(10, np.array([7, 1, 3]), np.array([2]))
    assert all_members(split.train).tolist() == [1, 3, 7]
    assert all_members(split.validation).tolist() == [2]
    assert split.test.n == 0
    assert "train 3" in split.describe()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SplitConfig(train_size=0), r"train_size must be in \(0, 1\], seen 0"),
        (lambda: SplitConfig(train_size=1.1), "seen 1.1"),
        (lambda: SplitConfig(validation_size=1.0), "validation_size"),
        (lambda: SplitConfig(validation_size=0.2), "must not exceed 1, seen 0.9"),
        (lambda: SplitConfig(method="hashed"), "did you mean 'hash'"),
        (lambda: SplitConfig(seed=-1), "negative"),
        (lambda: split_rows(0, SplitConfig(), 128), "no cell would train: 0 cells"),
        (lambda: split_from_indices(5, np.array([1, 2]), np.array([2])), "twice.*row 2"),
        (lambda: split_from_indices(5, np.array([1, 5])), "of a store of 5 rows"),
        (lambda: split_from_indices(5, np.array([])), "no training rows"),
    ],
)
def test_splits_that_cannot_be_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
