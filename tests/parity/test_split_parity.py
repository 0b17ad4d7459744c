"""The cells that scvi-tools takes for training, validation and test."""

import warnings

import numpy as np
import pytest

from scvi_dist.dataloaders.rows import all_members
from scvi_dist.dataloaders.split import SplitConfig, split_rows

pytestmark = pytest.mark.parity

CASES = [
    # cells, train_size, validation_size, shuffle, batch size
    (1_000, None, None, True, 128),
    (1_000, 0.9, None, True, 128),
    (1_001, 0.8, 0.1, True, 128),
    (997, 0.33, 0.5, True, 64),
    (100, 0.55, 0.45, True, 128),  # both sizes rounded claim 101 cells
    (1_281, None, None, True, 128),  # 1153 = 9 · 128 + 1: one cell moves
    (1_282, None, None, True, 128),  # 1154 = 9 · 128 + 2: two cells move
    (1_283, None, None, True, 128),  # 1155 = 9 · 128 + 3: none does
    (1_282, 0.9, None, True, 128),  # a size was asked for: none does
    (1_282, None, 0.0, True, 128),  # nothing validates: moved cells go to the test set
    (500, 1.0, None, True, 128),
    (500, 0.7, 0.2, False, 128),
]


@pytest.fixture(scope="module")
def scvi_settings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi = pytest.importorskip("scvi")
    before = scvi.settings.seed
    yield scvi.settings
    scvi.settings._seed = before


class _Manager:
    """All that scvi-tools' splitter asks of a manager before it makes loaders."""

    class adata:
        n_obs = 0


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(("n", "train", "validation", "shuffle", "batch_size"), CASES)
def test_the_same_cells(scvi_settings, n, train, validation, shuffle, batch_size, seed):
    from scvi.dataloaders import DataSplitter

    manager = _Manager()
    manager.adata.n_obs = n
    scvi_settings._seed = seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = DataSplitter(
            manager,
            train_size=train,
            validation_size=validation,
            shuffle_set_split=shuffle,
            batch_size=batch_size,
        )
        theirs.setup()
    ours = split_rows(
        n,
        SplitConfig(
            train_size=train,
            validation_size=validation,
            shuffle_set_split=shuffle,
            seed=seed,
            method="permutation",
        ),
        batch_size,
    )
    for mine, peer in (
        (ours.train, theirs.train_idx),
        (ours.validation, theirs.val_idx),
        (ours.test, theirs.test_idx),
    ):
        np.testing.assert_array_equal(all_members(mine), np.sort(peer))
